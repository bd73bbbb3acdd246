"""Generated stories: measures that need no judge, tables by run and step, stories side by side.

Measures are of what a model wrote: where the prompt is known it is taken off. Fables can be checked
exactly: the grammar tells whether a story holds together and agrees with its world.
"""
from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Iterable

import numpy as np
import pandas as pd

from analysis.samples.copies import TrainingIndex, documents_of, words_of
from slm.errors import UserError

if TYPE_CHECKING:
    from slm.corpora.fables import Fables

DISTINCT = (1, 2, 3)
REPEATED = 4
SENTENCE_END = re.compile(r"""[.!?]+["'”’)]*(?=\s|$)""")
BATCH = 64


def measures(texts: Iterable[str], training: TrainingIndex | None = None,
             prompts: Iterable[str] | None = None) -> dict[str, float]:
    """Numbers on some stories together.

    n_texts; words and sentences: means per story
    distinct_1, _2, _3: different n-grams / all n-grams, over all texts together (Li et al. 2016,
        arXiv 1510.03055); it falls with the number of words: compare equally many
    repeated_4: share of a story's 4-grams that it has said before, mean over stories (rep-n of
        Welleck et al. 2020, arXiv 1908.04319)
    longest_repeat: words of the longest span that a story says twice (overlaps count), mean
    copied_<n>: share of n-grams that the training text has; nan without an index

    Values without anything to measure are nan. Raises UserError: no texts, one that is no text,
    prompts of another number."""
    told = written(texts, prompts)
    words = [words_of(t) for t in told]
    out = {"n_texts": len(told), "words": float(np.mean([len(w) for w in words])),
           "sentences": float(np.mean([sentences(t) for t in told]))}
    for n in DISTINCT:
        grams = [g for w in words for g in ngrams(w, n)]
        out[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else float("nan")
    again = [1 - len(set(g)) / len(g) for g in (ngrams(w, REPEATED) for w in words) if g]
    out[f"repeated_{REPEATED}"] = float(np.mean(again)) if again else float("nan")
    out["longest_repeat"] = float(np.mean([longest_repeat(w) for w in words]))
    if training is None:
        return out
    copied, tested = np.sum([training.copied(t) for t in told], axis=0)
    return out | {f"copied_{training.n}": float(copied / tested) if tested else float("nan")}


def named(measure: str) -> str:
    """A measure as people say it: repeated_4 -> repeated 4-grams."""
    name, _, n = measure.rpartition("_")
    if name in ("repeated", "copied"):
        return f"{name} {n}-grams"
    return f"{name}-{n}" if name == "distinct" else measure.replace("_", " ")


def written(texts: Iterable[str], prompts: Iterable[str] | None = None) -> list[str]:
    """The texts without their prompts. Raises UserError."""
    texts = list(texts)
    starts = [""] * len(texts) if prompts is None else list(prompts)
    if not texts:
        raise UserError("no texts to measure")
    if len(starts) != len(texts):
        raise UserError(f"{len(texts)} texts and {len(starts)} prompts: give one for each")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {i} is {text!r}: it should be a string")
    return [t.removeprefix(s) if isinstance(s, str) else t for t, s in zip(texts, starts)]


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n))))


def sentences(text: str) -> int:
    """Sentences that end, and one more where the text stops in the middle of one."""
    ends = [m.end() for m in SENTENCE_END.finditer(text)]
    return len(ends) + bool(words_of(text[ends[-1]:] if ends else text))


def longest_repeat(words: list[str]) -> int:
    """Length of the longest sequence of words that occurs at two places."""
    low, high = 0, max(len(words) - 1, 0)       # a span that repeats holds shorter ones that do
    while low < high:
        n = (low + high + 1) // 2
        grams = ngrams(words, n)
        low, high = (n, high) if len(set(grams)) < len(grams) else (low, n - 1)
    return low


def fable_verdicts(texts: Iterable[str], fables: Fables | None = None) -> pd.DataFrame:
    """What the grammar says of whole texts (prompt included), a row each, exactly.

    parsed      a whole story        unfinished  the beginning of one
    read        share of the characters before it leaves the grammar
    facts       facts told about subjects of this world; facts_right: that agree with it
    name_slips  a hero or friend that changes name or species, or that nobody is called
    fact_slips  facts told wrongly   other_slips  things, places or genders that change
    sound       parsed or unfinished, and no slip: all that it says holds together

    fables: the world that the model was trained on (default: the default world). A text outside
    the grammar has no slips only because nothing of it was understood: read `sound`."""
    from slm.corpora.fables import fact_of
    fables = fables or world()
    rows = []
    for text in written(texts):
        v = fables.check(text)
        facts = sum(fact_of(s.form) is not None for s in v.slips)
        names = sum(s.variable in ("hero", "friend") and s.form.removeprefix("a ") in
                    ("", "a", "species") for s in v.slips)
        rows.append({"parsed": v.parsed, "unfinished": v.unfinished,
                     "read": v.position / len(text) if text else 0.0, "facts": v.facts,
                     "facts_right": v.facts_right, "name_slips": names, "fact_slips": facts,
                     "other_slips": len(v.slips) - names - facts,
                     "sound": (v.parsed or v.unfinished) and v.consistent and bool(text)})
    return pd.DataFrame(rows)


def world(spec: dict | None = None) -> Fables:
    """The fables of a resolved spec (default: the default world). Raises UserError."""
    settings = ((spec or {}).get("data") or {}).get("fables") or {}
    return _world(tuple(sorted(settings.items())))


@lru_cache(maxsize=8)
def _world(settings: tuple) -> Fables:
    from slm.corpora.fables import Fables
    try:
        return Fables(**dict(settings))
    except TypeError as e:
        raise UserError(f"data.fables: not the settings of this version ({e})") from None


def samples_of(source: pd.DataFrame) -> pd.DataFrame:
    """A table of samples as it is, or those of a table of runs. Raises UserError for none."""
    if isinstance(source, pd.DataFrame) and "text" not in source and "where" in source:
        from analysis.runs import load_samples
        source = load_samples(source)
    missing = [c for c in ("run", "text") if not isinstance(source, pd.DataFrame)
               or c not in source]
    if missing:
        raise UserError(f"a table of samples has columns run, step, prompt, text (no "
                        f"{', '.join(missing)} here): make one with load_samples(runs)")
    source = source[source["text"].notna()]
    if source.empty:
        raise UserError("no samples: these runs have written none yet")
    return source.reset_index(drop=True)


def sample_table(samples: pd.DataFrame, runs: pd.DataFrame | None = None, *,
                 training: TrainingIndex | None = None, fables: Fables | None = None,
                 by: tuple[str, ...] = ("run", "step", "prompt")) -> pd.DataFrame:
    """Measures of samples by run, step and prompt (or fewer of these), small models first.

    samples: of load_samples or fresh_samples (or a table of runs). runs: gives n_params and loss,
    and which runs were trained on fables, each checked against its own world: parsed, sound and
    read are then means, facts_right a share of the facts told, name_slips a mean. fables: the
    world of all samples instead. ended: share that the model ended by itself, where the samples
    know. `.attrs["notes"]`: what could not be checked. Raises UserError: no samples."""
    if runs is None and isinstance(samples, pd.DataFrame) and "where" in samples:
        runs = samples
    samples = samples_of(samples)
    by = [c for c in by if c in samples]
    if not by:
        raise UserError("by: none of these columns is in the table of samples")
    worlds, notes = ({}, []) if fables is not None else worlds_of(samples, runs)
    known = {} if runs is None else runs.drop_duplicates("run").set_index("run")
    rows = []
    for key, part in samples.groupby(by, sort=False, dropna=False):
        row = dict(zip(by, key))
        if "run" in by:
            row |= {c: known[c].get(row["run"], np.nan) for c in ("n_params", "loss") if c in known}
        if "tokens" in part and part["tokens"].nunique() == 1:
            row["tokens"] = part["tokens"].iloc[0]
        row |= measures(part["text"], training, part["prompt"] if "prompt" in part else None)
        if "ended" in part and part["ended"].notna().any():
            row["ended"] = float(part["ended"].dropna().astype(float).mean())
        row |= judged_by_grammar(part, worlds, fables)
        rows.append(row | ({"text": part["text"].iloc[0]} if len(part) == 1 else {}))
    table = pd.DataFrame(rows)
    order = [c for c in ("n_params", "run", "step") if c in table]
    if order:
        table = table.sort_values(order, kind="stable", ignore_index=True)
    table = table[[c for c in table if c != "text"] + ["text"] * ("text" in table)]
    table.attrs["notes"] = notes
    return table


def worlds_of(samples: pd.DataFrame,
              runs: pd.DataFrame | None) -> tuple[dict[str, Fables], list[str]]:
    """run -> its fables, for runs trained on them, and a note for each that can't be known."""
    found, notes = {}, []
    if runs is None or "corpus" not in runs or "where" not in runs:
        return found, notes
    from analysis.runs import load_spec_of
    here = runs["run"].isin(samples["run"]) & (runs["corpus"].astype(object) == "fables")
    for _, row in runs[here].iterrows():
        try:
            found[row["run"]] = world(load_spec_of(row, runs.attrs.get("cache")))
        except UserError as e:
            notes.append(f"{row['run']}: its fables are not checked ({e})")
    return found, notes


def judged_by_grammar(part: pd.DataFrame, worlds: dict[str, Fables],
                      fables: Fables | None) -> dict[str, float]:
    """Means of fable_verdicts over the samples of runs whose world is known; {} for none."""
    parts = [fable_verdicts(texts, fables or worlds[run]) for run, texts in part.groupby("run")[
        "text"] if fables is not None or run in worlds]
    if not parts:
        return {}
    v = pd.concat(parts)
    out = {c: float(v[c].mean()) for c in ("parsed", "sound", "read", "facts")}
    told = v["facts"].sum()
    return out | {"facts_right": float(v["facts_right"].sum() / told) if told else float("nan"),
                  "name_slips": float(v["name_slips"].mean())}


def longest_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Of runs that share n_params the one with most tokens (of equals the lowest loss), smallest
    first, so that models can be compared by what they write at their best. Runs of unknown size
    are all kept, at the end."""
    by = [c for c in ("n_params", "tokens", "loss") if c in runs]
    if "n_params" not in by:
        return runs
    ordered = runs.sort_values(by, ascending=[c != "tokens" for c in by], kind="stable")
    return ordered[~ordered["n_params"].duplicated() | ordered["n_params"].isna()]


def side_by_side(samples: pd.DataFrame, prompts: Iterable[str] | None = None,
                 runs: pd.DataFrame | None = None, steps: str = "last") -> pd.DataFrame:
    """Stories at the same prompts: a row per prompt, a column per (run, step), runs by size.

    samples: of load_samples (or a table of runs). prompts: these, in this order; default all.
    runs: gives the sizes; without it runs stay in their order. steps: 'last' of each run, or 'all'.
    Where a run wrote several at a step and prompt, the first is shown; '' where it wrote none.
    Raises UserError: no samples, a prompt that nobody was given."""
    if runs is None and isinstance(samples, pd.DataFrame) and "where" in samples:
        runs = samples
    samples = samples_of(samples)
    if steps not in ("last", "all"):
        raise UserError(f"steps={steps!r} is not one of last, all")
    samples = samples.assign(**{c: "" if c == "prompt" else 0 for c in ("step", "prompt")
                                if c not in samples})
    there = list(dict.fromkeys(samples["prompt"]))
    wanted = there if prompts is None else list(dict.fromkeys(prompts))
    strange = [p for p in wanted if p not in there]
    if strange:
        raise UserError(f"no sample begins with {strange[0]!r}; prompts here: "
                        + ", ".join(map(repr, there[:5])))
    if steps == "last":
        samples = samples[samples["step"] == samples.groupby("run")["step"].transform("max")]
    size = {}
    if runs is not None and "n_params" in runs:
        size = runs.drop_duplicates("run").set_index("run")["n_params"].to_dict()
    order = list(dict.fromkeys(samples["run"]))
    columns = sorted(set(zip(samples["run"], samples["step"])), key=lambda c: (
        size.get(c[0]) if pd.notna(size.get(c[0])) else np.inf, order.index(c[0]), c[1]))
    first = samples.drop_duplicates(["prompt", "run", "step"]).set_index(["prompt", "run", "step"])
    text = first["text"].to_dict()
    return pd.DataFrame([[text.get((p, *c), "") for c in columns] for p in wanted],
                        index=pd.Index(wanted, name="prompt"),
                        columns=pd.MultiIndex.from_tuples(columns, names=["run", "step"]))


def reference_measures(spec: dict, n: int = 200, training: TrainingIndex | None = None) -> dict:
    """The same measures of n validation stories: what a perfect model's would be. In a small
    language much of a true story is in the training text too. spec: of load_spec_of. Raises
    UserError where the corpus can't be opened here."""
    texts = list(documents_of(spec, "val", n))
    out = measures(texts, training)
    if spec["data"]["corpus"] == "fables":
        frame = pd.DataFrame({"run": "validation", "text": texts})
        out |= judged_by_grammar(frame, {}, world(spec))
    return out


def fresh_samples(folder: str | Path, prompts: Iterable[str], n: int = 1, *,
                  max_new_tokens: int = 200, temperature: float = 0.8, top_k: int | None = None,
                  top_p: float | None = None, seed: int = 0, which: str = "best",
                  device: str | None = None) -> pd.DataFrame:
    """n new stories for each prompt from a run with checkpoints, as a table of samples with
    `sample` (0 to n - 1) and `ended` (whether the model ended the story by itself).

    Story k of a prompt is what `python -m slm.generate` writes with seed + k. Raises UserError as
    slm.load does."""
    from slm import checkpoint
    from slm.generate import check_sampling, find_checkpoint, generate_ids, load
    folder, prompts = Path(folder), list(prompts)
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    if n < 1 or not prompts:
        raise UserError(f"fresh_samples: {len(prompts)} prompts, n={n}: at least 1 of each")
    writer = load(folder, which, device)
    step = checkpoint.load(find_checkpoint(folder, which)).get("step")
    try:
        batch = json.loads((folder / "summary.json").read_text("utf-8"))["batch"]["tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        batch = float("nan")
    eot, rows = writer.tokenizer.eot, []
    jobs = [(prompt, k) for prompt in prompts for k in range(n)]
    for i in range(0, len(jobs), BATCH):
        part = jobs[i:i + BATCH]
        starts = [[eot, *writer.tokenizer.encode(prompt)] for prompt, _ in part]
        texts = generate_ids(writer.model, starts, max_new_tokens, temperature=temperature,
                             top_k=top_k, top_p=top_p, eot=eot, seeds=[seed + k for _, k in part],
                             n_vocab=writer.tokenizer.n_vocab)
        for (prompt, k), start, ids in zip(part, starts, texts):
            ended = len(ids) > len(start) and ids[-1] == eot
            rows.append({"run": folder.name, "step": step, "tokens": (step or 0) * batch,
                         "prompt": prompt, "sample": k, "ended": ended,
                         "text": writer.tokenizer.decode(ids[1:-1] if ended else ids[1:])})
    return pd.DataFrame(rows)
