"""The few calm lines a person sees. Text goes above the progress bar, never through it."""
from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, NoReturn


def say(line: str = "") -> None:
    """Print one line on stdout, above a progress bar if one is drawn; silent on ranks > 0."""
    if not is_main():
        return
    tqdm = sys.modules.get("tqdm")  # only if somebody draws a bar: importing it costs 30 ms
    if tqdm is not None and getattr(tqdm.tqdm, "_instances", None):
        tqdm.tqdm.write(line, file=sys.stdout)
    else:
        print(line, flush=True)


def command(main: Callable[[list[str]], int]) -> NoReturn:
    """End the process with the exit code of main(arguments); where whoever reads its output has
    left (`... | head`), quietly and with that of SIGPIPE."""
    try:
        try:
            code = main(sys.argv[1:])
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        code = 128 + 13
    sys.exit(code)


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def on_terminal() -> bool:
    try:  # some pseudo-terminals have no width: a bar would be nothing there
        return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False


def amount(x: float) -> str:
    """12.3M: a number as a person reads it, to three digits."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def several(n: int, what: str) -> str:
    """(1, 'run') -> '1 run', (1000, 'run') -> '1,000 runs'"""
    return f"{n:,} {what}{'s' * (n != 1)}"


def duration(sec: float) -> str:
    """1 h 02 min, 3 min 20 s, 12.3 s."""
    if sec < 60:
        return f"{sec:.1f} s"
    minutes, hours = int(sec) // 60, int(sec) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {int(sec) % 60:02d} s"


class Progress:
    """One bar over the steps of a run, with losses, speed and time left. Where stdout is no
    terminal, a line at each evaluation, or at each tenth of the run where these are further apart;
    never a carriage return.

        with Progress(total_steps, start_step) as bar:
            bar.update(step, latest_metrics, evaluated=..., logged=...)    # every step: < 1 µs
    """

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        self.total, self.first, self.step = total_steps, start_step, start_step
        self.said = start_step              # the step of the last line, without a terminal
        self.evaluated: int | None = None   # the step of the validation loss, where it is known
        self.started = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        if is_main() and on_terminal():
            from tqdm import tqdm
            self.bar = tqdm(
                total=self.total, initial=self.first, file=sys.stdout, dynamic_ncols=True,
                mininterval=0.2, smoothing=0.05, unit="step",
                bar_format="{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}{postfix}"
                           "  {remaining} left")
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, step: int, metrics: dict[str, float], evaluated: bool = False,
               logged: bool = False) -> None:
        """Show that `step` steps are done. metrics: the newest value of each, by its name in
        metrics.jsonl; evaluated, logged: whether some of them are new. A validation loss is shown
        in the line of the step where it was measured, and on the bar with that step."""
        done, self.step = step - self.step, step
        if evaluated or step == 0:
            self.evaluated = step
        if self.bar is not None:
            if evaluated or logged:
                self.bar.set_postfix_str(describe(metrics, step, self.evaluated), refresh=False)
            self.bar.update(done)
        elif evaluated or (logged and step - self.said >= self.total / 10):
            self.said = step
            measured = step if evaluated else None
            say(f"step {step:>{len(str(self.total))}}/{self.total}  "
                f"{describe(metrics, step, measured)}  {self.left()}")

    def left(self) -> str:
        done = self.step - self.first
        if done == 0:
            return ""
        sec = (time.monotonic() - self.started) / done * (self.total - self.step)
        return f"{duration(sec)} left"


def describe(metrics: dict[str, float], step: int, evaluated: int | None) -> str:
    """The losses and the speed at a step, in one line. evaluated: the step of the validation loss,
    which is told where it is another; None: it is left out."""
    older = f" (step {evaluated})" if evaluated != step else ""
    shown = [("train", "train/loss", "")]
    if evaluated is not None:
        shown += [("val", "val/loss", older), ("floor", "val/floor", "")]
    parts = [f"{name} {metrics[key]:.4f}{note}" for name, key, note in shown
             if metrics.get(key) is not None]
    if metrics.get("tokens_per_sec"):
        parts.append(f"{amount(metrics['tokens_per_sec'])} tokens/s")
    return "  ".join(parts)


def final_summary(folder: Path) -> None:
    """Print how a run ended, from its folder: losses, cost, the last sample, where things are."""
    from slm.files import shown
    folder = Path(folder)
    s = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows: list[tuple[str, str]] = [(s["status"], s.get("reason") or folder.name)]
    loss, floor, se = s.get("val_loss"), s.get("val_floor"), s.get("val_loss_se")
    if loss is not None:
        rows.append(("val loss", f"{loss:.4f}" + (f" ± {se:.4f}" if se is not None else "")
                     + " nats per token"))
    if s.get("val_bits_per_byte") is not None:
        rows.append(("bits per byte", f"{s['val_bits_per_byte']:.4f}"))
    if loss is not None and floor is not None:
        rows.append(("floor", f"{floor:.4f} nats per token, the entropy of the text; the model is "
                              f"{loss - floor:.4f} above it"))
    if s.get("tokens"):
        rows.append(("tokens", f"{s['tokens']:,} in {several(s.get('steps_done', 0), 'step')}"))
    if s.get("flops"):
        rows.append(("compute", f"{s['flops']:.3g} FLOPs"))
    if s.get("time_sec"):
        speed = f", {amount(s['tokens'] / s['time_sec'])} tokens/s" if s.get("tokens") else ""
        rows.append(("time", duration(s["time_sec"]) + speed))
    sample = last_sample(folder)
    if sample:
        rows.append(("sample", sample))
    rows.append(("folder", shown(folder)))
    if (folder / "loss.png").exists():
        rows.append(("plot", shown(folder / "loss.png")))
    say()
    for name, text in rows:
        for line in textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False) or [""]:
            say(f"{name:<15}{line}")
            name = ""


def last_sample(folder: Path) -> str:
    from slm.files import read_rows
    rows = read_rows(folder / "samples.jsonl")
    return rows[-1]["text"] if rows else ""
