"""The sections of the report, each a function of the study (analysis.report.Study) that returns
markup. What these runs can't give raises UserError, whose line then stands in its place."""
from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import plots
from analysis.report.page import BREAK, Cell, Html, absent, bullets, figure, join, number, table, \
    tag
from analysis.plots.base import flops_text, interval, time_text
from slm.errors import UserError
from slm.screen import amount, several

ROWS = 2000             # of the table of runs
TEXTS, PROMPTS, LONGEST = 4, 4, 1500
MEASURES = ("words", "distinct_2", "repeated_4", "longest_repeat", "sound", "facts_right",
            "name_slips")
HEADS = {"n_params": "N", "tokens": "D", "flops": "C", "bits_per_byte": "bits/byte",
         "time_sec": "time", "tokens_per_sec": "tokens/s", "n_layer": "layers", "n_head": "heads",
         "n_embd": "width", "unique_tokens": "unique", "loss_se": "± se"}
HOW = {"n_params": amount, "tokens": amount, "flops": flops_text, "time_sec": time_text,
       "tokens_per_sec": amount, "unique_tokens": amount, "batch_tokens": amount,
       "warmup_tokens": amount, "vocab_size": amount, "loss": ".4f", "bits_per_byte": ".4f",
       "floor": ".4f", "train_loss": ".4f", "loss_se": ".4f"}
# always shown where they are known, then those of SETTINGS that differ between the runs
SHOWN = ("n_params", "tokens", "flops", "loss", "loss_se", "bits_per_byte", "time_sec")
SETTINGS = ("n_layer", "n_head", "n_embd", "d_ff", "block_size", "vocab_size", "tied", "preset",
            "parametrization", "dropout", "optimizer", "lr", "muon_lr", "schedule", "warmup_tokens",
            "batch_tokens", "weight_decay", "epochs", "floor", "corpus", "tokenizer", "eval_mode",
            "seed", "data_seed", "group", "hardware", "precision")


def estimate(value: float, low: float, high: float, how=".3f") -> Cell:
    """A value with its interval under it."""
    known = number(value, how)
    return Cell(join([known.text, tag("span", interval(low, high, how), class_="soft")], BREAK),
                known.value, "n")


# -- at the top ------------------------------------------------------------------------------------

def summary(study) -> Html:
    """What there is to know, in words."""
    lines = [state_of(study.runs), *attempt(best_run, study), *attempt(law_line, study),
             *attempt(optimum_line, study), *attempt(prediction_line, study)]
    warned = warnings_of(study)
    block = tag("div", tag("p", f"{several(len(warned), 'thing')} to know before "
                           "trusting this"), bullets(warned), class_="warn") if warned else ""
    return join([bullets(lines, class_="key"), block])


def attempt(line, study) -> list[Html]:
    try:
        return [line(study)]
    except UserError as e:
        return [tag("span", str(e), class_="soft")]


def state_of(runs: pd.DataFrame) -> Html:
    n = runs["run"].nunique()
    parts = [tag("b", several(n, 'run'))]
    if len(runs) != n:
        parts.append(f"{len(runs):,} rows (checkpoints)")
    if "status" in runs:
        parts.append(", ".join(f"{k} {v}" for v, k in
                               runs["status"].fillna("unknown").value_counts().items()))
    for c in ("corpus", "tokenizer"):
        kinds = runs[c].dropna().unique() if c in runs else []
        if len(kinds):
            parts.append(c + " " + ", ".join(map(str, kinds[:4])))
    if runs.attrs.get("filter"):
        parts.append(f"where {runs.attrs['filter']}")
    return join(parts, "; ")


def best_run(study) -> Html:
    from analysis.table import usable
    y = study.compared_by
    kept, _ = usable(study.runs, (y,), allow_mixed=y == "bits_per_byte", decayed=False)
    best = kept.loc[kept[y].idxmin()]
    unit = "nats per token" if y == "loss" else "bits per byte"
    se = f" ± {best['loss_se']:.4f}" if y == "loss" and pd.notna(best.get("loss_se")) else ""
    sizes = [f"{letter} = {how(best[c])}" for c, letter, how in (
        ("n_params", "N", amount), ("tokens", "D", amount), ("flops", "C", flops_text))
        if pd.notna(best.get(c))]
    floor = best.get("floor")
    above = f"; {best['loss'] - floor:.4f} above the entropy of the text" \
        if pd.notna(floor) and y == "loss" else ""
    return join(["Best: ", tag("b", f"{best[y]:.4f}{se} {unit}"), ", run ",
                 tag("code", best["run"]), f" ({', '.join(sizes)}){above}"])


def law_line(study) -> Html:
    law = study.law
    values = [f"{k} = {v:.4g} {interval(*law.intervals[k], '.4g')}" if k in law.intervals else
              f"{k} = {v:.4g} (known)" for k, v in law.params.items()]
    floors = law.runs["floor"].dropna() if "floor" in law.runs else []
    beside = ""
    if "E" in law.intervals and len(floors) and np.ptp(floors) < 1e-3 * floors.max():
        low, high = law.intervals["E"]
        held = "inside" if low <= floors.iloc[0] <= high else "outside"
        beside = f"; the known entropy, {floors.iloc[0]:.4f}, lies {held} the interval of E"
    return join(["Law: ", tag("b", law.form.equation), f" with {', '.join(values)}; {law.level:.0%}"
                 f" intervals, {law.runs['run'].nunique()} runs, scatter about the "
                 f"law {law.resamples.noise.scale:.2%}{beside}"])


def optimum_line(study) -> Html:
    frontier = study.frontier
    row = frontier.table.set_index("approach").loc["3"]
    return join(["Compute-optimal: ", tag("b", f"N* ~ C^{row['a']:.3f}"),
                 f" {interval(row['a_low'], row['a_high'])}, D* ~ C^{row['b']:.3f} "
                 f"{interval(row['b_low'], row['b_high'])}; {frontier.disagreement()}"])


def prediction_line(study) -> Html:
    told = study.outcomes
    done = told[told["counts"].astype(bool) & told["loss"].notna()]
    if done.empty:
        return Html(f"Predictions: {len(told)} recorded, no outcome yet")
    inside = int(done["inside"].astype(bool).sum())
    lines = [f"{r.loss:.4f} against {r.value:.4f} {interval(r.low, r.high, '.4f')} "
             f"({r.error:+.2%})" for r in done.head(3).itertuples()]
    return join(["Predicted in advance: ", tag("b", f"{inside} of {len(done)} inside the interval"),
                 "; reached " + "; ".join(lines)])


def warnings_of(study) -> list[str]:
    """Of the law and the frontier, each once."""
    lines = []
    for of in ("law", "frontier"):
        try:
            lines += getattr(study, of).warnings
        except UserError:
            pass
    return list(dict.fromkeys(lines))


# -- runs ------------------------------------------------------------------------------------------

def run_table(study) -> Html:
    """Every run, sortable; settings that all runs share stand above it."""
    runs = study.runs
    known = [c for c in (*SHOWN, *SETTINGS) if c in runs and runs[c].notna().any()]
    same = [c for c in SETTINGS if c in known and runs[c].notna().all()
            and runs[c].astype(str).nunique() == 1 and len(runs) > 1]
    shown = [c for c in known if c not in same]
    extra = [c for c in runs.columns if "." in str(c) and runs[c].notna().any()]
    columns, has_status, rows = [*shown, *extra], "status" in runs, []
    for _, r in runs.head(ROWS).iterrows():
        rows.append([Cell(str(r["run"]), None, "name"), *[status_cell(r)] * has_status,
                     *[value_cell(r[c], c) for c in columns]])
    heads = ["run", *["status"] * has_status, *[HEADS.get(c, c) for c in columns]]
    parts = []
    if same:
        parts.append(tag("p", "The same in all runs: " + ", ".join(
            f"{c} {value_cell(runs[c].dropna().iloc[0], c).text}" for c in same), class_="soft"))
    off = runs[~runs["status"].isin(("finished",))] if "status" in runs else runs.iloc[:0]
    if len(off):
        parts += [tag("p", f"Not finished, kept and left out of fits: {len(off)}"),
                  bullets(join([tag("code", r.run), f" {r.status}", ": " if r.reason else "",
                                r.reason or ""]) for r in off.head(12).itertuples())]
    keys = ["run", *["status"] * has_status, *[str(c).replace(".", "_") for c in columns]]
    parts.append(table(heads, rows, keys, sortable=True))
    if len(runs) > ROWS:
        parts.append(tag("p", f"the first {ROWS:,} of {len(runs):,}", class_="soft"))
    return join([*parts, tag("p", "A click on a heading sorts.", class_="soft"),
                 bullets(runs.attrs.get("notes", []), class_="soft")])


def status_cell(row: pd.Series) -> Cell:
    status = row.get("status")
    if status is None or pd.isna(status):
        return Cell("")
    reason = row.get("reason")
    text = f"{status}: {reason}" if isinstance(reason, str) and reason and status != "finished" \
        else str(status)
    return Cell(text, None, {"finished": "good", "running": ""}.get(status, "bad reason"))


def value_cell(value, column: str) -> Cell:
    if isinstance(value, (bool, np.bool_)):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, float, np.number)):
        return number(float(value), HOW.get(column, ".4g"))
    return Cell("" if value is None or value is pd.NaT else str(value))


def curves(study) -> Html:
    history = study.history
    return join([figure(lambda: plots.loss_curves(history, study.runs)),
                 figure(lambda: plots.loss_curves(history, study.runs, "flops"))])


def losses(study) -> Html:
    y = study.compared_by
    try:
        law = study.law if y == "loss" else None
    except UserError:
        law = None
    note = tag("p", "Several tokenizers: losses per token do not compare, bits per byte do.") \
        if y != "loss" else ""
    columns = ["n_params", "tokens", "flops"] + ["time_sec"] * ("time_sec" in study.runs)
    return join([note, *[figure(lambda x=x: plots.loss_vs(study.runs, x, law, y))
                         for x in columns]])


# -- the law ---------------------------------------------------------------------------------------

def law(study) -> Html:
    found = study.law
    check = found.cross_check
    rows = []
    for name, value in found.params.items():
        low, high = found.intervals.get(name, (np.nan, np.nan))
        rows.append([name, number(value), Cell("-∞", None, "n") if low == -np.inf else number(low),
                     number(high), number(check.get(name, np.nan))])
    words = {"cross_validation": "Held out, 5-fold cross-validation",
             "largest": "Held out, the largest fifth predicted from the rest"}
    covered = []
    for key, label in words.items():
        c = found.coverage[key]
        covered.append(f"{label}: " + (c["skipped"] if "skipped" in c else
                       f"{c['inside']} of {c['n']} inside {c['level']:.0%} prediction intervals, "
                       f"mean error {c['error']:.2%}"))
    fit = found.fit
    return join([
        tag("p", tag("b", found.form.equation), f" — {found.form.source}"),
        table(["parameter", "value", f"{found.level:.0%} from", "to", "variable projection"], rows),
        bullets([f"objective {fit.objective:.6g}: sum of Huber (δ = {fit.delta:g}) of log loss; "
                 f"{fit.n_starts:,} starts, {fit.n_polished:,} followed, "
                 f"{fit.share_at_optimum:.0%} of them to the optimum", *covered, *found.notes]),
        figure(lambda: plots.residuals(found)),
        figure(lambda: plots.bootstrap_pairs(found), pixels=True)])


def optimum(study) -> Html:
    frontier = study.frontier
    t = frontier.table
    rows = [[Cell(r.label, None, "i"), number(r.points, ".0f"), estimate(r.a, r.a_low, r.a_high),
             number(r.bias, "+.3f"), estimate(r.b, r.b_low, r.b_high),
             estimate(r.n_params, r.n_params_low, r.n_params_high, amount),
             estimate(r.tokens, r.tokens_low, r.tokens_high, amount)] for r in t.itertuples()]
    at = flops_text(t["flops"].iloc[0])
    heads = ["approach", "points", "a", "bias of a", "b", f"N* at {at}", f"D* at {at}"]
    # where there are no profiles, that is said once
    profiles = dict.fromkeys(figure(lambda x=x: plots.isoflop(frontier, x))
                             for x in ("n_params", "tokens"))
    return join([
        tag("p", "N* ~ C^a, D* ~ C^b; ", frontier.disagreement()), table(heads, rows),
        bullets(frontier.notes, class_="soft"), *profiles,
        figure(lambda: plots.optimum(frontier)),
        figure(lambda: plots.contours(frontier.law, frontier), pixels=True)])


def conventions(study) -> Html:
    t = study.conventions
    rows = [[Cell(r.convention, None, "i"), r.who, estimate(r.a, r.a_low, r.a_high),
             estimate(r.b, r.b_low, r.b_high), number(r.alpha, ".3f"),
             number(r.beta, ".3f"), number(r.E, ".3f"), number(r.warnings, ".0f")]
            for r in t.itertuples()]
    heads = ["convention", "counts", "a", "b", "α", "β", "E", "warnings"]
    few, many = study.resamples
    other = f" Intervals here are of {few:,} resamples, those of the optimum above of {many:,}: " \
        "for matmul they are two estimates of the same." if few != many else ""
    return join([tag("p", "What N and C are is a choice; here is what it does to the exponents of "
                     f"these runs.{other}"), figure(lambda: plots.conventions(t), pixels=True),
                 table(heads, rows)])


# -- settings, predictions, texts ------------------------------------------------------------------

def settings(study) -> Html:
    found = study.comparison
    rows = [[r.setting, number(r.mean, ".4f"), number(r.se, ".2g"), number(r.n_seeds, ".0f"),
             Cell(r.verdict, None, "i")] for r in found.table.head(25).itertuples()]
    more = len(found.table) - len(rows)
    return join([
        tag("p", "Best first" + (", at equal " + ", ".join(found.within) if found.within else "")
            + f"; {found.noise}."),
        table(["setting", found.column, "± se", "seeds", "verdict"], rows),
        tag("p", f"{more} more settings", class_="soft") if more > 0 else "",
        tag("pre", found.effects.summary()) if found.effects else "",
        bullets(found.notes, class_="soft"),
        figure(lambda: plots.lr_curves(study.runs)), figure(lambda: plots.heat_maps(study.runs))])


def predictions(study) -> Html:
    parts = []
    try:
        told = study.outcomes
        rows = []
        for r in told.itertuples():
            kind = "" if r.inside is None else "good" if r.inside else "bad"
            verdict = "no outcome yet" if r.inside is None else "inside" if r.inside else "outside"
            rows.append([Cell(str(r.name), None, "name"), number(r.n_params, amount),
                         number(r.tokens, amount), number(r.flops, flops_text),
                         estimate(r.value, r.low, r.high, ".4f"), number(r.loss, ".4f"),
                         number(r.error, "+.2%"), Cell(verdict, None, kind),
                         f"{r.form}, floor known" if pd.notna(r.floor) else str(r.form),
                         Cell("; ".join(filter(None, (
                             str(r.made)[:16].replace("T", " "),
                             "" if r.honest else "not in advance", r.note))))])
        parts.append(table(["run", "N", "D", "C", "predicted", "reached", "error", "", "law",
                            "made"], rows))
    except UserError as e:
        parts.append(absent(e))
    held, words = study.extrapolated
    return join([*parts, tag("p", words), figure(lambda: plots.extrapolation(
        study.law_without(held), held))])


def samples(study) -> Html:
    """The last texts of a few runs at the same prompts, and measures of them."""
    from analysis.samples import longest_runs, named, sample_table, side_by_side
    texts = study.samples
    sized = longest_runs(study.runs[study.runs["run"].isin(texts["run"])])
    few = sized.iloc[np.unique(np.linspace(0, len(sized) - 1, TEXTS).round().astype(int))]
    last = texts[texts["step"] == texts.groupby("run")["step"].transform("max")]
    last = last[last["run"].isin(few["run"])]
    beside = side_by_side(last, list(dict.fromkeys(last["prompt"]))[:PROMPTS], runs=few)
    facts, heads = few.set_index("run"), []
    for run, step in beside.columns:
        f = facts.loc[run]
        size = f"N = {amount(f['n_params'])}, " if pd.notna(f.get("n_params")) else ""
        loss = f", loss {f['loss']:.3f}" if pd.notna(f.get("loss")) else ""
        heads.append(join([run, tag("span", f"{size}step {step}{loss}", class_="soft")], BREAK))
    shown_texts = [join([tag("h3", f"“{prompt}”"), table(heads, [
        [Cell(shortened(t), None, "text") for t in row]])])
        for prompt, row in zip(beside.index, beside.to_numpy())]
    measured = sample_table(last, few, by=("run",))
    shown = [c for c in MEASURES if c in measured and measured[c].notna().any()]
    measures = [[Cell(str(r["run"]), None, "name"), number(r.get("n_params", np.nan), amount),
                 number(r.get("loss", np.nan), ".4f"), number(r["n_texts"], ".0f"),
                 *[number(r[c], ".3g") for c in shown]] for _, r in measured.iterrows()]
    return join([
        tag("p", f"The last texts of {len(few)} of {texts['run'].nunique()} runs that wrote some, "
            "smallest model first; of each size its longest run.", class_="soft"), *shown_texts,
        tag("h3", "Measures of these texts"),
        table(["run", "N", "loss", "texts", *map(named, shown)], measures),
        bullets(measured.attrs.get("notes", []), class_="soft")])


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " […]"
