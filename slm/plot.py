"""loss.png: what a run did, on one page, from its folder alone."""
from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median

from slm.files import read_rows
from slm.screen import amount

# Okabe and Ito's palette: told apart by colour-blind readers; light and dark in grey print.
TRAIN, SMOOTH, VAL, FLOOR, RATE = "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#333333"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
         "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6}


def series(rows: list[dict], key: str) -> tuple[list[float], list[float]]:
    """(tokens, values) of one metric, by tokens; of several lines of one step the last counts.
    Missing values and those that were not finite are left out."""
    points = {row.get("tokens", row["step"]): row[key] for row in rows
              if isinstance(row.get(key), (int, float)) and "step" in row}
    return list(points), list(points.values())


def lost(rows: list[dict]) -> tuple[float, int] | None:
    """(tokens, step) of the first loss that was not finite, if any was not."""
    return next(((row.get("tokens", row["step"]), row["step"]) for row in rows if "step" in row
                 and None in (row.get("train/loss", 0), row.get("val/loss", 0))), None)


def smooth(values: list[float], window: int) -> list[float]:
    """Median over a centred window, which a spike does not move; narrower at the ends, where it
    would otherwise leave the data."""
    out = []
    for i in range(len(values)):
        half = min(window // 2, i, len(values) - 1 - i)
        out.append(median(values[i - half:i + half + 1]))
    return out


def title(folder: Path, summary: dict, val: list[float]) -> str:
    params = summary.get("params") or {}
    parts = [summary.get("name", folder.name)]
    if params.get("total"):
        parts.append(f"{amount(params['total'])} parameters")
    if val:
        se = summary.get("val_loss_se")
        parts.append(f"val loss {val[-1]:.4f}" + (f" ± {se:.4f}" if se else ""))
    if summary.get("status") not in (None, "finished", "running"):
        parts.append(summary["status"])
    return " · ".join(parts)


def limits(curves: list[tuple[list, list]], floor: float | None) -> tuple[float, float]:
    """Of the loss axis. The fall from ln V in the first twentieth of the tokens, and single spikes,
    may leave it at the top where they would squash all that comes after."""
    extra = [floor] if floor is not None else []
    everything = [v for _, values in curves for v in values] + extra
    start = 0.05 * max(x for tokens, _ in curves for x in tokens)
    later = sorted(v for tokens, values in curves for x, v in zip(tokens, values) if x > start)
    later = later[:max(2, math.ceil(0.99 * len(later)))]
    low, high = min(everything), max(everything)
    if len(later) >= 10 and (top := later[-1] + 0.25 * (later[-1] - low)) < high:
        high = top
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def plot_run(folder: Path) -> Path:
    """Draw folder/loss.png from metrics.jsonl and summary.json: training loss (light) with its
    smoothed course (a running median), validation loss, the floor where it is known, all in nats
    per token against tokens; the learning rate below. A run that diverged has a line where it did.
    Returns its path. A run with nothing recorded gives empty axes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    folder = Path(folder)
    rows = read_rows(folder / "metrics.jsonl")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    train_x, train = series(rows, "train/loss")
    val_x, val = series(rows, "val/loss")
    rate_x, rate = series(rows, "lr")
    floors = series(rows, "val/floor")[1]
    floor = floors[-1] if floors else None

    end = max((row.get("tokens", row["step"]) for row in rows if "step" in row), default=0)

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        draw_losses(loss_axes, (train_x, train), (val_x, val), floor)
        if summary.get("status") == "diverged" and (where := lost(rows)):
            draw_end(loss_axes, *where)
        draw_rate(rate_axes, rate_x, rate)
        rate_axes.set_xlim(0, 1.015 * end or 1)
        figure.suptitle(title(folder, summary, val), fontsize=10.5)
        temporary = folder / ".loss.png.tmp"
        figure.savefig(temporary, format="png", metadata={"Software": None})
        temporary.replace(folder / "loss.png")
    return folder / "loss.png"


def draw_losses(axes, train: tuple[list, list], val: tuple[list, list],
                floor: float | None) -> None:
    many = len(train[0]) >= 20
    if train[0]:
        axes.plot(*train, color=TRAIN, linewidth=1.0, alpha=0.65 if many else 1.0,
                  marker="" if len(train[0]) > 1 else "o", markersize=4,
                  label="train, each point the mean since the last")
    if many:
        axes.plot(train[0], smooth(train[1], max(5, len(train[0]) // 25)), color=SMOOTH,
                  linewidth=1.8, label="train, smoothed")
    if val[0]:
        axes.plot(*val, color=VAL, linewidth=1.4, marker="o", markersize=3.6, label="validation",
                  zorder=3)
    if floor is not None:
        axes.axhline(floor, color=FLOOR, linewidth=1.4, linestyle="--", zorder=2,
                     label=f"floor {floor:.4f}: the entropy of the text")
    if train[1] or val[1]:
        axes.set_ylim(*limits([train, val], floor))
        first = (val[1] or train[1])[0]
        if first > axes.get_ylim()[1]:
            axes.annotate(f"↑ {first:.2f} at the start", (0.075, 0.97), va="top", fontsize=9,
                          xycoords="axes fraction", color=VAL if val[1] else SMOOTH)
        axes.legend(loc="best" if len(train[0]) < 20 else "upper right", frameon=False)
    else:
        axes.text(0.5, 0.5, "no losses recorded", transform=axes.transAxes, ha="center",
                  color="#777777")
    axes.set_ylabel("loss (nats per token)")


def draw_end(axes, tokens: float, step: int) -> None:
    """Where the loss stopped being a number."""
    axes.axvline(tokens, color=RATE, linewidth=1.4, linestyle=":")
    axes.annotate(f"diverged at step {step:,}", (tokens, 0.5), (-5, 0), color=RATE, ha="right",
                  xycoords=axes.get_xaxis_transform(), textcoords="offset points")


def draw_rate(axes, tokens: list[float], rate: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    if rate:
        axes.plot(tokens, rate, color=RATE, linewidth=1.4,
                  marker="" if len(rate) > 1 else "o", markersize=4)
        axes.set_ylim(0, 1.08 * max(rate) or 1.0)
    axes.set_ylabel("learning rate")
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.2g}"))
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: amount(x)))
