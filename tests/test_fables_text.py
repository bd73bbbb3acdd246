"""Fables as text: English, length in tokens, and the judging of texts that a model wrote."""
from __future__ import annotations

import math
import re
import statistics
from collections import Counter

import pytest

from slm.corpora import fables_grammar as language
from slm.corpora.fables import Fables
from slm.corpora.fables_engine import Slot


@pytest.fixture(scope="module")
def fables() -> Fables:
    return Fables()


@pytest.fixture(scope="module")
def sample(fables):
    return [fables.derivation(10 ** 6 + i) for i in range(10_000)]


# --- the stories as text ---

def test_english(sample):
    for d in sample[:5000]:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  |\.\.|\s[.,!?]| $", d.text), d.text
        assert not re.search(r'[.!?]"? [a-z](?!.*?" )', d.text.split("\n")[0]), d.text
        assert re.fullmatch(r'[A-Z].*\.\n[A-Z].*[.!]"?', d.text), d.text
        assert d.text.count('"') % 2 == 0
    starts = Counter(d.text[:16] for d in sample)
    assert 0.5 < starts["Once upon a time"] / len(sample) < 0.9
    words = {w for d in sample for w in re.findall(r"\b[a-z]+\b", d.text)}
    assert len(words) > 450


def test_gender_agrees(fables, sample):
    gender = {name: g for g, names in enumerate(language.NAMES) for name in names}
    alone = 0
    for d in sample[:3000]:
        who = {gender[w] for w in re.findall("[A-Z][a-z]+", d.text) if w in gender}
        said = {int(w in ("he", "his", "him"))
                for w in re.findall(r"\b(she|her|hers|he|his|him)\b", d.text.lower())}
        assert said <= who
        alone += len(who) == 1
    assert alone > 500


def test_stories_fit_a_block_of_128(fables, sample):
    """No story is longer than 127 tokens of bpe:1024: measured, and over every derivation (with
    each slot at its longest). Byte-level BPE never merges across words, so lengths add up."""
    tokenizers = pytest.importorskip("tokenizers")
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    texts = [d.text for d in sample]
    tok.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, show_progress=False))
    lengths = [len(e.ids) for e in tok.encode_batch(texts[:5000])]
    assert 78 <= statistics.mean(lengths) <= 95 and max(lengths) <= 115
    memo: dict = {}

    def cost(text: str, space: bool) -> tuple[int, bool]:
        """(tokens, whether a space is left over for the next word)."""
        text = " " * space + text
        return len(tok.encode(text.removesuffix(" ")).ids), text.endswith(" ")

    def longest(part, space: bool) -> tuple[int, bool]:
        if (part, space) not in memo:
            if isinstance(part, str):
                memo[part, space] = cost(part, space)
            elif isinstance(part, Slot):
                memo[part, space] = max(cost(said, space) for said in part.where)
            else:
                memo[part, space] = max(chain(a, space) for a in part.alternatives)
        return memo[part, space]

    def chain(parts, space: bool) -> tuple[int, bool]:
        total = 0
        for part in parts:
            n, space = longest(part, space)
            total += n
        return total, space

    assert max(lengths) <= longest(fables.grammar.start, False)[0] <= 127


# --- texts that a model wrote ---

def test_check_of_true_stories(fables, sample):
    for d in sample[:100]:
        verdict = fables.check(d.text)
        assert verdict.parsed and verdict.consistent and not verdict.unfinished
        assert verdict.facts == verdict.facts_right and verdict.position == len(d.text)
    for cut in range(len(sample[0].text)):
        verdict = fables.check(sample[0].text[:cut])
        assert verdict.unfinished and verdict.consistent and verdict.position == cut


def test_check_finds_what_is_wrong(fables):
    hero, friend = fables.subject(3), fables.subject(4)
    assert hero["name"] != friend["name"]
    home = next(h for h in language.FACTS["home"] if h != hero["home"])
    she, her = hero["she"], hero["her"]
    text = (f"Once upon a time, there was a little {hero['species']} named {hero['name']}. "
            f"{she.title()} lived {home}.\nOne day, {hero['name']} lost {her} shiny drum. "
            f"{she.title()} looked in the mud and in the hay. Then {friend['name']} the "
            f"{friend['species']} came by and found it in the grass. \"Thank you, "
            f"{friend['name']}!\" said {hero['name']}, and {she} hugged the drum.")
    [slip] = fables.check(text).slips
    assert (slip.variable, slip.form, slip.said, slip.expected) == ("hero", "home", home,
                                                                    hero["home"])
    assert text[slip.position:].startswith(home)
    right = text.replace(home, hero["home"])
    assert fables.check(right).consistent and fables.check(right).facts == 1
    assert math.isfinite(fables.surprisal(right)) and fables.surprisal(text) == math.inf

    def slips(old: str, new: str) -> list[tuple]:
        assert old in right
        return [(s.variable, s.form, s.said, s.expected) for s in fables.check(
            right.replace(old, new)).slips]

    assert slips("hugged the drum", "hugged the doll") == [("thing", "", "doll", "drum")]
    other = "he" if she == "she" else "she"
    assert slips(f"and {she} hugged", f"and {other} hugged") == [("hero", "she", other, she)]
    assert slips(f"Thank you, {friend['name']}", f"Thank you, {hero['name']}")[0][0] == "friend"
    assert slips("in the hay", "in the mud") == [("spot2", "", "in the mud",
                                                  "another than the spot")]
    assert ("hero", "", "Zorbo", None) in slips(hero["name"], "Zorbo")
    left = fables.check(right.replace("came by and", "came and"))
    assert not left.parsed and not left.unfinished
    assert right[:left.position].endswith("came ") and left.facts == 1
    assert fables.check("").unfinished and fables.check("The cat").position == 3
