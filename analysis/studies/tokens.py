"""How many tokens do the modern preset and Muon need to reach the loss of GPT-2's preset, and what
is each switch of the preset worth?"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from analysis.plots import base as look
from analysis.studies import HERE, records
from slm.shape import PRESETS

SWEEPS = ["tokens-fables", "tokens-stories", "switches", "zero-init"]
SWITCHES = list(PRESETS["gpt2"])
COLUMNS = ["preset", "optimizer", "n_embd", "lr", "seed", "tokens", "loss", "loss_se", "n_params",
           "flops", "time_sec", "corpus", "tokenizer", *SWITCHES]
PAGE = HERE.parent / "study-tokens.md"
TEMPLATE = HERE / "tokens.template.md"
REFERENCE = ("gpt2", "adamw")
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
COLOURS = {("gpt2", "muon"): look.ORANGE, ("modern", "adamw"): look.BLUE,
           ("modern", "muon"): look.GREEN}
NAMES = {key: f"{key[0]} with {OPTIMIZERS[key[1]]}" for key in COLOURS}
CORPORA = {"fables": "fables", "tinystories": "TinyStories"}
REACH = 0.6                 # of the tokens: what the project hoped for
BEYOND = 1.1                # where the figure shows a loss that was not reached


def train() -> None:
    records.train(SWEEPS)
    records.gather("tokens", SWEEPS, COLUMNS)


def load() -> pd.DataFrame:
    return records.load("tokens")


def tuned(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The runs with the best learning rate (by mean loss over seeds) of each setting, which is what
    the columns `by` say; `edge`: that rate is the least or largest of those tried."""
    parts = []
    for _, cell in runs.groupby(by):
        best, _, edge = records.best_rate(cell)
        parts.append(cell[cell["lr"] == best].assign(edge=edge))
    return pd.concat(parts, ignore_index=True)


def tokens_to_reach(tokens: np.ndarray, loss: np.ndarray, target: float) -> float:
    """Tokens at which a curve comes down to a loss: linear in log tokens and log loss between the
    two horizons around it.

    tokens, loss: (n,), a run's horizons, each decayed to its own end. Returns inf where the last
    is still above the target, -inf where the first is below it (fewer than were tried)."""
    order = np.argsort(tokens)
    tokens, loss = np.asarray(tokens, float)[order], np.asarray(loss, float)[order]
    if loss[-1] > target:
        return np.inf
    if loss[0] <= target:
        return -np.inf
    i = int(np.flatnonzero(loss <= target)[0])
    part = np.log(loss[i - 1] / target) / np.log(loss[i - 1] / loss[i])
    return float(tokens[i - 1] * (tokens[i] / tokens[i - 1]) ** part)


def shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Tokens needed for the reference's final loss, as a share of the reference's.

    Returns a row per (corpus, n_embd, preset, optimizer) but the reference: n_params, target (mean
    final loss of the reference), share (of the mean curve over seeds), by_seed (list; a seed's own
    curve against the same target), loss (mean at the full horizon), edge."""
    rows = []
    best = tuned(runs, ["corpus", "n_embd", "preset", "optimizer", "tokens"])
    for (corpus, width), part in best.groupby(["corpus", "n_embd"]):
        full = part["tokens"].max()
        is_reference = (part["preset"] == REFERENCE[0]) & (part["optimizer"] == REFERENCE[1])
        ends = part[is_reference & (part["tokens"] == full)]
        target = ends["loss"].mean()
        for (preset, optimizer), cell in part[~is_reference].groupby(["preset", "optimizer"]):
            mean = cell.groupby("tokens")["loss"].mean()
            own = [tokens_to_reach(s["tokens"], s["loss"], target) / full
                   for _, s in cell.groupby("seed")]
            rows.append(dict(corpus=corpus, n_embd=width, preset=preset, optimizer=optimizer,
                             n_params=ends["n_params"].iloc[0], target=target,
                             share=tokens_to_reach(mean.index, mean, target) / full,
                             by_seed=sorted(own), loss=mean.iloc[-1], edge=cell["edge"].any(),
                             least=mean.index.min() / full,
                             reference_edge=ends["edge"].any()))
    return pd.DataFrame(rows)


def switch_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Each setting of the switches: its best learning rate and mean loss over seeds, the difference
    to the gpt2 preset and its 95 % interval, and how many switches it changed. A setting is named
    by its distance to the nearer preset."""
    rows, seeds = [], {}
    for values, part in tuned(runs, SWITCHES).groupby(SWITCHES):
        name, changed = nearer_preset(dict(zip(SWITCHES, values)))
        seeds[name] = part["loss"]
        rows.append(dict(switch=name, lr=part["lr"].iloc[0], loss=part["loss"].mean(),
                         edge=part["edge"].any(), changed=changed))
    table = pd.DataFrame(rows).sort_values(["changed", "loss"]).reset_index(drop=True)
    against = [difference(seeds[name], seeds["gpt2"]) for name in table["switch"]]
    return table.assign(**pd.DataFrame(against))


def difference(one: pd.Series, other: pd.Series) -> dict[str, float]:
    """Mean loss of one setting's seeds minus that of another's, with Welch's 95 % interval."""
    low, high = ttest_ind(one, other, equal_var=False).confidence_interval()
    return dict(difference=one.mean() - other.mean(), low=low, high=high)


def zeros_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The modern preset without zero_init beside that with it, for each optimiser and width at the
    full horizon, each with its best learning rate: losses `without` and `with_zeros`, and the
    difference with its interval. runs: those of sweeps/zero-init.yaml and the preset's own."""
    full = runs[runs["tokens"] == runs["tokens"].max()]
    best, rows = tuned(full, ["optimizer", "n_embd", "zero_init"]), []
    for (optimizer, width), part in best.groupby(["optimizer", "n_embd"]):
        zeros, without = (part.loc[part["zero_init"] == has, "loss"] for has in (True, False))
        rows.append(dict(optimizer=optimizer, n_embd=width, without=without.mean(),
                         with_zeros=zeros.mean(), edge=part["edge"].any(),
                         **difference(without, zeros)))
    return pd.DataFrame(rows)


def nearer_preset(shape: dict) -> tuple[str, int]:
    """'gpt2, position=rope' and the number of switches that differ from gpt2's."""
    presets = {name: {k: v for k, v in shape.items() if v != PRESETS[name][k]}
               for name in ("gpt2", "modern")}
    name = min(presets, key=lambda name: len(presets[name]))
    changes = [f"{k}={str(v).lower()}" for k, v in presets[name].items()]
    return ", ".join([name, *changes]), len(presets["gpt2"])


@look.styled
def figure(table: pd.DataFrame):
    """Share of the reference's tokens against N; points are seeds, lines the mean curve's."""
    corpora = list(dict.fromkeys(table["corpus"]))
    fig, axes = look.canvas(None, 1, len(corpora), height=4.0, sharey=True)
    for ax, corpus in zip(axes, corpora):
        for key, part in table[table["corpus"] == corpus].groupby(["preset", "optimizer"]):
            part = part.sort_values("n_params")
            least = part["least"].iloc[0]
            shown = part["share"].replace(-np.inf, least)
            ax.plot(part["n_params"], shown.where(np.isfinite(shown)), color=COLOURS[key],
                    label=NAMES[key])
            for r in part.itertuples():
                own = [min(max(x, least), BEYOND) for x in r.by_seed]
                look.dots(ax, [r.n_params] * len(own), own, COLOURS[key])
        ax.axhline(1, color=look.GREY, linewidth=0.8)
        ax.axhline(REACH, color=look.GREY, linewidth=0.8, linestyle="--")
        look.log_axis(ax, "x", "n_params")
        ax.set_title(CORPORA.get(corpus, corpus))
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("tokens to gpt2's final loss,\nas a share of gpt2's tokens")
    axes[0].legend(loc="center right", bbox_to_anchor=(1, 0.7))
    look.caption(fig, "points: seeds; lines: mean over seeds; dashed: 60 %",
                 f"at {table['least'].min():.0%} (the shortest horizon): that or less",
                 f"at {BEYOND:.0%}: not reached"
                 if np.isposinf(np.concatenate(table["by_seed"])).any() else "")
    return fig


def write() -> list[Path]:
    """Draw the figure and write the page; the paths. Raises UserError without records."""
    shown = figure(shares(by_sweep(load(), "tokens-")))
    return records.publish(PAGE, text(), {HERE / "tokens.png": shown})


def text() -> str:
    """The page, from the records."""
    return TEMPLATE.read_text(encoding="utf-8").format(**facts(load()))


def by_sweep(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs of the sweeps whose names begin so."""
    return runs[runs["sweep"].str.startswith(name)]


def facts(runs: pd.DataFrame) -> dict:
    """The fields of the template."""
    main, alone, without = (by_sweep(runs, name) for name in ("tokens-", "switches", "zero-init"))
    table, switches = shares(main), switch_table(alone)
    preset = main[(main["preset"] == "modern") & main["corpus"].isin(without["corpus"])]
    zeros = zeros_table(pd.concat([without, preset]))
    full = main["tokens"].max()
    return {
        "n_runs": len(runs), "n_seeds": main["seed"].nunique(),
        "sweeps": "`, `sweeps/".join(f"{name}.yaml" for name in runs["sweep"].unique()),
        "minutes": f"{runs.loc[runs['tokens'] == full, 'time_sec'].sum() / 60:.0f}",
        "tokens": f"{full:,.0f}",
        "widths": ", ".join(f"{w:g}" for w in sorted(main["n_embd"].unique())),
        "rates": rates_tried(main),
        "modern_muon": span(table, "modern", "muon"), "gpt2_muon": span(table, "gpt2", "muon"),
        "modern_adamw": span(table[table["corpus"] == "fables"], "modern", "adamw"),
        "zeros_cost": " to ".join(f"{-x:.1f}" for x in sorted(
            zeros.loc[zeros["optimizer"] == "adamw", "difference"].agg(["min", "max"]))[::-1]),
        "table": "\n".join(share_row(r) for r in table.itertuples()),
        "switch_rates": ", ".join(f"{x:g}" for x in sorted(alone["lr"].unique())),
        "switches": "\n".join(switch_row(r) for r in switches.itertuples()),
        "zeros": "\n".join(zeros_row(r) for r in zeros.itertuples())}


def rates_tried(runs: pd.DataFrame) -> str:
    """'on fables 0.001, ... for AdamW and 0.006, ... for Muon; on TinyStories ...'."""
    def of(part: pd.DataFrame) -> str:
        return " and ".join(f"{', '.join(f'{x:g}' for x in sorted(own['lr'].unique()))} for "
                            f"{OPTIMIZERS[name]}" for name, own in part.groupby("optimizer"))
    return "; ".join(f"on {CORPORA.get(corpus, corpus)} {of(part)}"
                     for corpus, part in runs.groupby("corpus", sort=False))


def span(table: pd.DataFrame, preset: str, optimizer: str) -> str:
    """The least and the largest share of a setting: 'less than 25% to 31%'."""
    part = table[(table["preset"] == preset) & (table["optimizer"] == optimizer)]
    least, most = part.loc[part["share"].idxmin()], part["share"].max()
    first = f"less than {least['least']:.0%}" if least["share"] == -np.inf \
        else f"{least['share']:.0%}"
    return f"{first} to {most:.0%}"


def share_row(r) -> str:
    """A line of the table of shares. A rate at the edge may not be the best: a better one would
    lower the share where it is the setting's own, and raise it where it is the reference's."""
    def told(x: float) -> str:
        return "not reached" if x == np.inf else f"< {r.least:.0%}" if x == -np.inf else f"{x:.0%}"
    bounds = [text for text, edge in (("at most: rate at the edge", r.edge),
                                      ("at least: gpt2's rate at the edge", r.reference_edge))
              if edge]
    return (f"| {CORPORA.get(r.corpus, r.corpus)} | {r.n_embd:g} | {r.n_params:,.0f} | "
            f"{NAMES[r.preset, r.optimizer]} | {told(r.share)} | "
            f"{', '.join(told(x) for x in r.by_seed)} | {r.target:.3f} | {r.loss:.3f} | "
            f"{'; '.join(bounds)} |")


def switch_row(r) -> str:
    """A line of the table of switches."""
    edge = " (edge)" if r.edge else ""
    against = "" if r.changed == 0 else interval(r)
    return f"| {r.switch} | {r.lr:g}{edge} | {r.loss:.3f} | {against} |"


def zeros_row(r) -> str:
    """A line of the table of zeros."""
    return (f"| {OPTIMIZERS[r.optimizer]} | {r.n_embd:g} | {r.with_zeros:.3f} | {r.without:.3f} | "
            f"{interval(r)} | {'rate at the edge' if r.edge else ''} |")


def interval(r) -> str:
    """A difference with its 95 % interval."""
    return f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]"
