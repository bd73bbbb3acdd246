"""What one model pays for facts, by how often they are met.

A model reads probe stories of its own world: the same subjects with the same facts, but met with
Zipf exponent 1, which gives each octave of ranks (1, 2-3, 4-7, ...) about as many tellings,
whatever the exponent that the model was trained on.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.runs.local import read_spec
from analysis.studies.zipf import ideal
from analysis.studies.zipf.tellings import costs, probe
from slm.corpora.fables import Fables
from slm.generate import find_checkpoint, load_model
from slm.tokenizer import load_tokenizer

STORIES = 1500


def octave(k: np.ndarray) -> np.ndarray:
    """0 for the subject met most often, 1 for the next two, 2 for the next four, ..."""
    return np.floor(np.log2(np.asarray(k) + 1)).astype(int)


def measure(folders: list[Path]) -> pd.DataFrame:
    """What runs of one world and one tokenizer (a trunk and its branches) pay, from the weights in
    their folders. A row for each run, fact and octave of ranks:

    told    tellings read
    paid    what the model pays, as a share of what a reader pays who knows no fact (the log of the
            number of values): the mean over tellings, weighted as the run's own stories meet them
    se      its standard error, tellings taken as independent
    """
    spec = read_spec(folders[0])
    settings = spec["data"]["fables"]
    world = Fables(**settings)
    flat = Fables(settings["seed"], facts=settings["facts"], zipf=1.0, val_stories=STORIES)
    reads = probe(flat, flat.documents("val"), load_tokenizer(folders[0]),
                  spec["model"]["block_size"])
    ratio = dict(zip(ideal.VARIABLES, ideal.met(world) / ideal.met(flat)))
    frame = pd.DataFrame({
        "fact": [t.fact for t in reads.tellings],
        "octave": octave([t.k for t in reads.tellings]),
        "weight": [ratio[t.variable][t.k] for t in reads.tellings]})
    ceiling = frame["fact"].map(dict(zip(ideal.FACTS, ideal.VALUE_NATS)))
    rows = []
    for folder in folders:
        nats = costs(load_model(find_checkpoint(folder, "last")), reads)
        rows += [{"run": folder.name, "fact": fact, "octave": place, **mean_of(part)} for
                 (fact, place), part in frame.assign(share=nats / ceiling).groupby(
                     ["fact", "octave"])]
    return pd.DataFrame(rows)


def mean_of(part: pd.DataFrame) -> dict[str, float]:
    """told, paid and se of some tellings."""
    n, w = len(part), (part["weight"] / part["weight"].sum()).to_numpy()
    paid = float(w @ part["share"])
    spread = float((w ** 2 * (part["share"] - paid) ** 2).sum())
    return {"told": n, "paid": paid, "se": np.sqrt(spread * n / (n - 1)) if n > 1 else np.nan}
