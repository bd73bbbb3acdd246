"""The study of Zipf exponents: exact theory against counting, tellings against enumeration, and the
page against its records."""
from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch
from pages import assert_pictures, assert_same
from scipy.stats import binom

from analysis.studies.zipf import ideal
from analysis.studies.zipf.tellings import costs, probe, reading, tellings
from slm.corpora.fables import Fables
from slm.corpora.fables_engine import Grammar
from slm.corpora.fables_weights import Table
from slm.tokenizer import get_tokenizer

WHO = ("name", "species", *ideal.FACTS)


def plain(said: str) -> str:
    """Without the article."""
    return re.sub("^an? ", "", said)


@pytest.fixture(scope="module")
def world() -> Fables:
    return Fables(facts=40, zipf=1.3)


@pytest.fixture(scope="module")
def stories(world) -> list[str]:
    return [world.story(i) for i in range(600)]


# --- the ideal reader ---

def test_a_reader_without_facts_pays_what_the_corpus_says(world):
    assert ideal.cost(ideal.rates(world), 0) == pytest.approx(sum(world.fact_nats()), rel=1e-12)


@pytest.mark.parametrize("meetings", [1, 3])
def test_ideal_readers_of_real_stories_pay_what_is_expected(world, stories, meetings):
    """20 readers, each of its own 30 stories: facts counted in the text, no probabilities."""
    rate, size = ideal.rates(world), 30
    subjects = [world.subject(k) for k in range(world.facts)]
    paid = []
    for i in range(0, len(stories), size):
        seen = Counter()
        for text in stories[i:i + size]:
            said: dict[str, dict[str, str]] = {}
            for m in reading(world.grammar, text):
                form = m.slot.form.removeprefix("a ") or "name"
                said.setdefault(m.slot.variable, {})[form] = plain(m.said)
            for variable in said.keys() & set(ideal.VARIABLES):
                facts = {f: s for f, s in said[variable].items() if f in WHO}
                [k] = [k for k, s in enumerate(subjects) if facts.items() <= s.items()]
                seen.update((k, f) for f in facts if f in ideal.FACTS)
        unknown = np.array([[seen[k, f] < meetings for f in ideal.FACTS]
                            for k in range(world.facts)])
        paid.append((rate * ideal.VALUE_NATS * unknown).sum())
    expected = ideal.cost(rate, size, meetings)
    assert np.std(paid) < 0.2 * expected
    assert abs(np.mean(paid) - expected) < 3 * np.std(paid) / math.sqrt(len(paid) - 1)


def test_unknown_is_a_binomial_tail():
    rate = np.array([[0.5, 0.1], [1e-3, 1e-6]])
    for m in (1, 2, 7):
        assert ideal.unknown(rate, 50, m) == pytest.approx(binom.cdf(m - 1, 50, rate), rel=1e-9)


@pytest.mark.parametrize("zipf", [1.5, 2.0])
@pytest.mark.parametrize("meetings", [1, 20])
def test_many_facts_give_the_power_of_the_theory(zipf, meetings):
    """Hutter's and Michaud's a / (1 + a), reached by the exact sum for every threshold."""
    p = np.arange(1.0, 200_001) ** -zipf
    rate = np.zeros((len(p), len(ideal.FACTS)))
    rate[:, 0] = p / p.sum()
    n = np.array([2e3, 1e4])
    found = ideal.exponent(n, [ideal.cost(rate, x, meetings) for x in n])
    assert found == pytest.approx(ideal.asymptotic(zipf), abs=0.03)
    assert ideal.asymptotic(1.0) == ideal.asymptotic(0.5) == 0


# --- where facts are told ---

TOLD = """
story:
    <intro> <end>
intro:
    {hero} the {hero:species} lived {hero:home}. She <loved>
    {hero:a trait} {hero:species} named {hero} lived {hero:home}. She <loved>
loved:
    loved {hero:food}.
    loved to {hero:hobby}.
    liked to {hero:hobby} and eat {hero:food}.
end:
    {hero} met {friend} the {friend:species}, who lived {friend:home}.
    Back {hero:home}, {hero} was {hero:trait}.
    Back by the fire, {hero} slept.
"""


@pytest.fixture(scope="module")
def small() -> Grammar:
    columns = {"": ["Mia", "Tom", "Mia"], "species": ["fox", "fox", "owl"],
               "home": ["by the sea", "in the cave", "by the mill"], "food": ["figs", "to", "eggs"],
               "hobby": ["sing", "run", "sew"], "trait": ["kind", "brave", "kind"]}
    subjects = Table(columns, [3, 2, 1], groups=[0, 1, 0])
    return Grammar(TOLD, {"subject": subjects}, {"hero": "subject", "friend": "subject"})


def test_tellings_are_where_all_stories_of_that_beginning_go_on_so(small):
    """By enumeration of all stories, memory kept: after the same beginning every story says the
    same fact; where that is so and the subject was named, it is a telling (unless one came
    before). The wording alone is asked, so a subject called "to" may hide one."""
    texts = {d.text for d in small.derivations()}
    found = set()
    for text in texts:
        told = tellings(small, text)
        for t in told:
            before = text[:t.start].rstrip(" ")
            assert {x[t.start:t.end] for x in texts if x.startswith(before)} == {
                text[t.start:t.end]}
        assert len({t[:2] for t in told}) == len(told)
        found |= {(t.variable, t.fact, text[:t.start].split()[-1]) for t in told}
    assert found == {("hero", "home", "lived"), ("friend", "home", "lived"),
                     ("hero", "hobby", "to"), ("hero", "food", "eat"), ("hero", "trait", "was")}


def test_a_known_story():
    world = Fables(facts=30)
    me, you = world.subject(4), world.subject(9)
    start = (f"{me['name']} was {'an' if me['trait'][0] in 'aeiou' else 'a'} {me['trait']} "
             f"{me['species']}. {me['she'].capitalize()} lived {me['home']} and loved {me['food']}."
             "\nOne day, ")
    text = next(s for s in (start + f"{end}" for end in (
        f"{me['name']} was sad because {me['she']} was afraid of {me['fear']}. \"When I am afraid, "
        f"I {you['hobby']},\" said {you['name']} the {you['species']}. So they did that. After "
        f"that, {me['name']} felt much better. The end.",)) if world.grammar.parses(s))
    told = tellings(world.grammar, text)
    assert [(t.variable, t.fact, t.k, text[t.start:t.end]) for t in told] == [
        ("hero", "home", 4, me["home"]), ("hero", "food", 4, me["food"]),
        ("hero", "fear", 4, me["fear"])]         # a trait, a hobby: before the name was said


def test_tellings_are_facts_of_the_world(world, stories):
    told = [(text, t) for text in stories[:150] for t in tellings(world.grammar, text)]
    assert len(told) > 200 and {t.fact for _, t in told} == set(ideal.FACTS)
    for text, t in told:
        assert plain(text[t.start:t.end]) == world.subject(t.k)[t.fact]
        assert world.subject(t.k)["name"] in text[:t.start]
        assert world.subject(t.k)["species"] in text[:t.start]


class Numbers(torch.nn.Module):
    """Pays for each token its own number."""

    def forward(self, x, y, reduction):
        assert ((x[:, 1:] == y[:, :-1]) | (y[:, :-1] == -1) | (y[:, 1:] == -1)).all()
        return y.clamp(min=0).float()


def test_costs_are_those_of_the_tokens_that_say_the_fact(world, stories, tmp_path):
    few = Fables(stories=300, facts=40)
    tokenizer = get_tokenizer("bpe:300", few, tmp_path, say=lambda line: None)
    reads = probe(world, stories[:60], tokenizer, block_size=100)
    paid = costs(Numbers(), reads)
    assert len(reads.rows) == 60 and len(paid) == len(reads.tellings) > 80
    for (row, a, b), telling, nats in zip(reads.told, reads.tellings, paid):
        ids = reads.rows[row][1:]
        assert plain(tokenizer.decode(ids[a:b]).strip()) == world.subject(telling.k)[telling.fact]
        assert nats == sum(ids[a:b])


# --- the page ---

def test_the_page_follows_from_the_records():
    from analysis.studies.zipf import page
    assert_same(page.text(page.load()), "study-zipf.md")


def test_every_picture_of_the_page_is_there_and_small():
    assert_pictures("study-zipf.md", at_least=3)
