"""Fables: probabilities, entropy and readings against enumeration, sampling and structure."""
from __future__ import annotations

import itertools
import math
import os
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from slm.corpora import fables_grammar as language
from slm.corpora.fables import MAX_CHOICES, VAL_START, Fables, _name_lists, fact_of, world
from slm.corpora.fables_engine import Grammar, Mention, Rule, Slot
from slm.corpora.fables_weights import Table, Weights, word_table
from slm.errors import UserError

TINY = """
story:
    3 | Once <who> had {toy:a}. <loss> <end>
    1 | {toy:A} was gone. <who> cried. "Where is the {toy}?"
who:
    2 | {hero} the {hero:kind}
    1 | a {hero:kind} named {hero}
loss:
    {hero} lost the {toy}, and {hero:she} got {toy2:a}.
    {hero} met {friend} the {friend:kind}.
    {hero} met a {friend:kind} named {friend}. <end>
end:
    0.5 | The {toy} was {hue}.
    The end.
"""


@pytest.fixture(scope="module")
def fables() -> Fables:
    return Fables()


@pytest.fixture(scope="module")
def sample(fables):
    return [fables.derivation(10 ** 6 + i) for i in range(15_000)]


@pytest.fixture(scope="module")
def tiny() -> Grammar:
    names, kinds = ["Mia", "Tom", "Mia", "Eva"], ["fox", "fox", "owl", "owl"]
    subjects = Table({"": names, "kind": kinds, "she": ["she", "he", "she", "she"]},
                     [8, 4, 2, 1], groups=[0, 1, 0, 2])
    return Grammar(TINY, {"toy": word_table("ball, egg, cup", 1.0), "hue": word_table("red, blue"),
                          "subject": subjects}, {"hero": "subject", "friend": "subject"})


# --- a grammar small enough to write out ---

def test_tiny_probabilities_sum_to_one(tiny):
    derivations = list(tiny.derivations())
    assert len(derivations) > 300
    assert len({d.text for d in derivations}) == len({d.choices for d in derivations}) == len(
        derivations)
    assert math.isclose(math.fsum(math.exp(-d.nats) for d in derivations), 1, abs_tol=1e-12)


def test_tiny_entropy_and_collision_by_enumeration(tiny):
    p = [math.exp(-d.nats) for d in tiny.derivations()]
    entropy, same = tiny.sums()
    assert math.isclose(entropy, -math.fsum(x * math.log(x) for x in p), rel_tol=1e-12)
    assert math.isclose(same, math.fsum(x * x for x in p), rel_tol=1e-12)


def test_tiny_is_read_back(tiny):
    for d in tiny.derivations():
        assert tiny.parses(d.text) == [d]
    for text in ("", "Once Mia the fox had a ball. The end.",
                 "A cup was gone. Eva the fox cried. \"Where is the cup?\"",  # Eva is an owl
                 "A cup was gone. Tom the fox cried. \"Where is the egg?\"",
                 "Once Tom the fox had a cup. Tom met Tom the fox. The end."):
        assert tiny.parses(text) == []


def test_tiny_mentions_by_enumeration(tiny):
    for word, variable in ((" got ", "toy2"), ("red|blue", "hue")):
        p = math.fsum(math.exp(-d.nats) for d in tiny.derivations() if re.search(word, d.text))
        assert math.isclose(tiny.mentions(lambda s, v=variable: s.variable == v), p)


@pytest.mark.parametrize("taken", [(), (0,), (1,), (0, 3)])
def test_pick_follows_the_weights(taken):
    w = Weights([8, 4, 2, 1, 1], groups=[0, 1, 0, 2, 3])
    n = 40_000
    counts = Counter(w.pick((i + 0.5) / n, taken) for i in range(n))
    p = {i: math.exp(-w.surprisal(i, taken)) for i in range(5) if w.group[i] not in taken}
    assert math.isclose(sum(p.values()), 1) and set(counts) == set(p)
    assert all(abs(counts[i] / n - p[i]) < 2 / n for i in p)  # an even grid leaves no noise


def test_weights_keep_their_digits_beside_a_likely_entry():
    w = Weights([(k + 1) ** -50.0 for k in range(1000)])
    left = [math.exp(-w.surprisal(i, (0,))) for i in range(1, 1000)]
    assert math.isclose(math.fsum(left), 1, rel_tol=1e-12)
    assert math.isclose(left[0], 1 / sum((2 / (k + 2)) ** 50 for k in range(999)), rel_tol=1e-12)
    assert w.pick(0.5, (0,)) == 1 and w.pick(1 - 2 ** -53, ()) == 0
    assert math.isclose(math.fsum(w.second()), 1, rel_tol=1e-9)


# --- no two derivations give one text: a proof over the grammar's wording ---

def tokens(text: str) -> tuple[str, ...]:
    return tuple(re.findall("[A-Za-z]+|[^A-Za-z]", text))


def steps(todo) -> tuple[dict[str, set], bool]:
    """(next word -> what may follow, whether the end is reached); todo is a linked list of token
    tuples, slots and rules. Slots may say any entry: memory only removes possibilities."""
    if todo is None:
        return {}, True
    part, rest = todo
    after: dict[str, set] = defaultdict(set)
    if isinstance(part, tuple):
        if not part:
            return steps(rest)
        after[part[0]].add((part[1:], rest))
    elif isinstance(part, Slot):
        for said in part.where:
            first, *more = tokens(said)
            after[first].add((tuple(more), rest))
    else:
        for alternative in part.alternatives:
            then = rest
            for p in reversed(alternative):
                then = (tokens(p) if isinstance(p, str) else p, then)
            for word, states in steps(then)[0].items():
                after[word] |= states
    return after, False


def one_begins_the_other(a, b) -> bool:
    """Whether a text of a is a text of b or the beginning of one, or the reverse."""
    queue, seen = [(frozenset([a]), frozenset([b]))], set()
    while queue:
        pair = queue.pop()
        if pair in seen:
            continue
        seen.add(pair)
        merged = []
        for states in pair:
            after: dict[str, set] = defaultdict(set)
            for state in states:
                found, ended = steps(state)
                if ended:
                    return True
                for word, then in found.items():
                    after[word] |= then
            merged.append(after)
        queue += [(frozenset(merged[0][w]), frozenset(merged[1][w]))
                  for w in merged[0].keys() & merged[1].keys()]
    return False


def conflicts(grammar: Grammar) -> list[str]:
    """Choices that the words to come may not tell apart (none: left to right, each choice is
    forced, so a text has one reading)."""
    found = []
    for rule in grammar.rules.values():
        for alternative in rule.alternatives:
            edges = [(x if isinstance(x, str) else "a", y if isinstance(y, str) else "a")
                     for x, y in zip(alternative, alternative[1:])]
            found += [f"{rule.name}: no word boundary" for x, y in edges
                      if x[-1].isalpha() and y[0].isalpha()]
        for i, j in itertools.combinations(range(len(rule.alternatives)), 2):
            a, b = ((Rule(""), None) for _ in "ab")
            a[0].alternatives, b[0].alternatives = ((rule.alternatives[k],) for k in (i, j))
            if one_begins_the_other(a, b):
                found.append(f"{rule.name}: {i} and {j}")
    for slot in grammar._slots.values():
        said = sorted(map(tokens, slot.where))  # of a prefix and its extensions, neighbours show
        found += [f"{slot.variable}: {x}" for x, y in zip(said, said[1:]) if y[:len(x)] == x]
    return found


def unnamed(grammar: Grammar, keys: dict[str, set[str]]) -> set[str]:
    """Variables that some story mentions without all the forms that name their entry."""
    memo: dict[str, set[frozenset]] = {}

    def told(part) -> set[frozenset]:
        if isinstance(part, str):
            return {frozenset()}
        if isinstance(part, Slot):
            form = part.form.removeprefix("a ") if part.form != "a" else ""
            return {frozenset([(part.variable, form.lower()), (part.variable, "*")]) if form.lower()
                    in keys.get(part.table_name, {""}) else frozenset([(part.variable, "*")])}
        if part.name not in memo:
            memo[part.name] = set()
            for alternative in part.alternatives:
                sets = {frozenset()}
                for p in alternative:
                    sets = {x | y for x in sets for y in told(p)}
                memo[part.name] |= sets
        return memo[part.name]

    tables = {s.variable: s.table_name for s in grammar._slots.values()}
    return {v for story in told(grammar.start) for v, form in story if form == "*"
            and not {(v, key) for key in keys.get(tables[v], {""})} <= story}


def test_ambiguity_is_found_where_it_is(tiny):
    assert conflicts(tiny) == [] and unnamed(tiny, {"subject": {"", "kind"}}) == set()
    toys = {"toy": word_table("ball, cup"), "hue": word_table("red, red ball")}
    for text in ("s:\n    a {toy}\n    a ball", "s:\n    a{toy}", "s:\n    a {hue}",
                 "s:\n    a {toy} here\n    a <t>\nt:\n    cup here too"):
        assert conflicts(Grammar(text, toys)), text
    assert unnamed(Grammar(TINY.replace("{friend} the ", "the "), tiny.tables, tiny.aliases),
                   {"subject": {"", "kind"}}) == {"friend"}


def test_no_text_has_two_derivations(fables):
    grammar = fables.grammar
    assert conflicts(grammar) == []
    assert unnamed(grammar, {"subject": {"", "species"}}) == set()
    columns = grammar.tables["subject"].columns
    assert len(set(zip(columns[""], columns["species"]))) == fables.facts
    assert all(len(set(t.columns[""])) == len(t.columns[""]) for t in language.TABLES.values())
    # Other worlds differ in their names only: single words, all different, none of the rules'.
    names = list(itertools.chain(*_name_lists()))
    assert len(set(names)) == len(names) and all(re.fullmatch("[A-Z][a-z]+", n) for n in names)
    assert not set(names) & set(re.findall("[A-Za-z]+", language.RULES))


def test_no_two_stories_collide(fables, sample):
    texts: dict[str, tuple] = {}
    for d in itertools.chain(sample, map(fables.derivation, range(20_000))):
        assert texts.setdefault(d.text, d.choices) == d.choices
    assert fables.collision() < 1e-9


def test_no_story_needs_more_numbers(fables):
    memo: dict[Rule, dict[frozenset, int]] = {}

    def most(part) -> dict[frozenset, int]:
        """By the set of variables drawn: the most rules chosen on the way."""
        if not isinstance(part, Rule):
            return {frozenset([part.variable] if isinstance(part, Slot) else []): 0}
        if part not in memo:
            memo[part] = defaultdict(int)
            for alternative in part.alternatives:
                ways = {frozenset(): int(len(part.alternatives) > 1)}
                for step in map(most, alternative):
                    longer: dict[frozenset, int] = defaultdict(int)
                    for (x, n), (y, m) in itertools.product(ways.items(), step.items()):
                        longer[x | y] = max(longer[x | y], n + m)
                    ways = longer
                for drawn, n in ways.items():
                    memo[part][drawn] = max(memo[part][drawn], n)
        return memo[part]

    assert max(len(x) + n for x, n in most(fables.grammar.start).items()) <= MAX_CHOICES


# --- the corpus ---

@pytest.mark.parametrize("knobs", [{}, {"zipf": 0.0}, {"facts": 2}, {"zipf": 2.5, "seed": 7}])
def test_entropy_is_the_mean_surprisal(knobs, sample):
    f = Fables(**knobs)
    nats = [d.nats for d in (sample if not knobs else map(f.derivation, range(6000)))]
    error = statistics.stdev(nats) / len(nats) ** 0.5
    assert abs(statistics.mean(nats) - f.entropy()) < 4 * error < 0.4


def test_story_is_read_back(fables, sample):
    for d in sample[:400]:
        assert fables.grammar.parses(d.text) == [d]  # text, choices and the same nats to the bit
    assert fables.surprisal(sample[0].text) == sample[0].nats
    assert fables.surprisal(sample[0].text[:-1]) == math.inf


def test_story_is_a_pure_function(fables):
    numbers = [5, 0, VAL_START, 17, 2 ** 70]
    code = f"from slm.corpora.fables import *; print([Fables().story(i) for i in {numbers}])"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env,
                         cwd=os.path.dirname(os.path.dirname(__file__)), check=True).stdout
    assert eval(out) == [fables.story(i) for i in numbers]
    assert [Fables().story(i) for i in reversed(numbers)][::-1] == eval(out)


def test_splits_share_no_story(fables, tiny):
    train = list(fables.documents("train"))
    assert len(train) == 20_000 and train[17] == fables.story(17)
    assert not set(train) & set(fables.documents("val"))
    small = Fables(stories=300, val_stories=30)
    small.grammar = tiny  # so small that the splits would share stories
    train, val = (list(small.documents(split)) for split in ("train", "val"))
    assert len(train) == 300 and len(val) == 30 and not set(train) & set(val)
    assert val == [small.story(VAL_START + i) for i in range(30)]
    assert set(small.story(i) for i in range(300)) & set(val)  # they would have
    nats = {d.text: d.nats for d in tiny.derivations()}
    assert [nats[t] for t in train] == list(small.surprisals("train"))


def hero_of(text: str) -> tuple[str, str]:
    """The first name and the first species of a story are the hero's."""
    names = "|".join(itertools.chain(*language.NAMES))
    return tuple(re.search(rf"\b({words})\b", text)[1]
                 for words in (names, "|".join(language.SPECIES)))


@pytest.mark.parametrize("zipf", [0.0, 1.0, 2.0])
def test_subjects_are_met_by_zipf(zipf):
    f, n = Fables(facts=40, zipf=zipf), 6000
    key = {(f.subject(k)["name"], f.subject(k)["species"]): k for k in range(40)}
    met = Counter(key[hero_of(f.story(i))] for i in range(n))
    total = sum((k + 1) ** -zipf for k in range(40))
    for k in (0, 1, 2, 9, 39):
        p = (k + 1) ** -zipf / total
        assert abs(met[k] / n - p) < 4.5 * (p * (1 - p) / n) ** 0.5 + 1 / n


def test_worlds():
    assert world(0, 300) != world(1, 300)
    assert {form: column[:300] for form, column in world(0, 3000).items()} == world(0, 300)
    w = world(3, 1152)
    assert all(set(w[fact]) == set(values) for fact, values in language.FACTS.items())


def test_every_knob_is_in_the_fingerprint(fables):
    knobs = [{}, {"seed": 1}, {"stories": 7}, {"val_stories": 7}, {"facts": 7}, {"zipf": 0.7}]
    assert len({Fables(**k).fingerprint for k in knobs}) == len(knobs)
    assert Fables(zipf=1).fingerprint == fables.fingerprint


@pytest.mark.parametrize("knobs, line", [
    ({"facts": 1}, "facts = 1"), ({"facts": 10 ** 7}, "only"), ({"zipf": 100.0}, "zipf = 100")])
def test_impossible_knobs(knobs, line):
    with pytest.raises(UserError, match=line):
        Fables(**knobs)


def test_facts_cost_what_a_stranger_pays(fables, sample):
    cost = {fact: math.log(len(values)) for fact, values in language.FACTS.items()}
    paid = []
    for d in sample[:1500]:
        slots = (m.slot for m in fables.grammar.read(d.text).whole[0] if isinstance(m, Mention))
        told = {(s.variable, fact_of(s.form)) for s in slots if fact_of(s.form)}
        paid.append(sum(cost[fact] for _, fact in told))
    error = statistics.stdev(paid) / len(paid) ** 0.5
    assert abs(statistics.mean(paid) - sum(fables.fact_nats())) < 4 * error
    assert fables.fact_nats()[0] > fables.fact_nats()[10] > fables.fact_nats()[900] > 0
