"""Ours beside its peers, on this machine, now.

    python -m benchmarks                          every section (half an hour on 2 cores)
    python -m benchmarks train memory --nanogpt ~/nanoGPT --json benchmarks/results/cpu.json

Each ratio is of two results of one round, the sides taking turns in processes of their own; the
table gives medians and quartiles. Without --nanogpt the rows that need it say so. GPUs have a
command of their own: python -m benchmarks.gpu
"""
from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from benchmarks import machine, peer
from benchmarks.child import ChildFailed
from benchmarks.measure import Options, Row, rounded, skip, table
from slm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {  # name: (module:function, what, minutes on 2 cores)
    "train": ("training:steps", "a training step of the seed shape", 4),
    "parity": ("parity:rows", "100 training steps from the same weights and batches", 3),
    "memory": ("training:memory", "peak memory of that step", 1),
    "text": ("text:rows", "text to tokens", 3),
    "write": ("writing:rows", "generation", 5),
    "start": ("starting:answers", "start to answer of the commands", 1),
    "fixed": ("starting:fixed_cost", "a run's cost beside its steps", 1),
    "track": ("tracking:rows", "metrics, samples and W&B offline, per step", 3),
    "loader": ("loading:rows", "the data loader: share of a step, growth of memory", 2),
    "laws": ("laws:rows", "fitting a law", 3),
    "sweep": ("sweep:rows", "the verbs of a sweep", 3),
    "growth": ("growth:rows", "how cost grows with batch, layers, runs", 5),
}


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections:\n" + "\n".join(f"  {name:<8} {what} (about {minutes} min)"
                                         for name, (_, what, minutes) in SECTIONS.items()))
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR",
                        help="a checkout of karpathy/nanoGPT, the peer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too; "
                        "growth.png is drawn beside it")
    parser.add_argument("--quick", action="store_true",
                        help="tiny sizes: tries the harness, measures nothing")
    options = parser.parse_args(args)
    unknown = [s for s in options.sections if s not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    return options


def reference_data() -> Path | None:
    """The folder of real data: SLM_REFERENCE_DATA, else ../shared/data, if it is there."""
    given = os.environ.get("SLM_REFERENCE_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def run_section(name: str, options: Options) -> tuple[dict, dict[str, float]]:
    """Rows of a section and how long it took; how busy others were meanwhile."""
    target, _, _ = SECTIONS[name]
    module, _, function = target.partition(":")
    others, started = machine.Others(), time.monotonic()
    try:
        rows = getattr(importlib.import_module(f"benchmarks.{module}"), function)(options)
    except ChildFailed as e:
        rows = [skip(name, f"FAILED: {str(e).strip().splitlines()[-1]}")]
        print(e, file=sys.stderr)
    busy = {name: rounded(x) for name, x in others.cores().items()}
    return {"rows": rows, "sec": round(time.monotonic() - started, 1)}, busy


def main(args: list[str]) -> int:
    asked = parse(args)
    try:
        nanogpt = peer.check(asked.nanogpt) if asked.nanogpt else None
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    about, others = machine.describe(), machine.Others()
    time.sleep(0.2 if asked.quick else 2)
    about["at_start"] = others.cores()
    print(machine.heading(about))
    if note := machine.warning(about["at_start"], "at the start"):
        print(note)
    plot = asked.json.with_name("growth.png") if asked.json else None
    options = Options(asked.nanogpt.resolve() if asked.nanogpt else None, reference_data(), plot,
                      asked.quick)
    result = {"machine": about, "nanogpt": nanogpt, "quick": asked.quick, "sections": {}}
    for name in asked.sections or SECTIONS:
        found, busy = run_section(name, options)
        print(f"\n{name}: {SECTIONS[name][1]} ({found['sec']:.0f} s)\n{table(found['rows'])}",
              flush=True)
        if note := machine.warning(busy, "meanwhile"):
            print(note)
        result["sections"][name] = found | busy | {"rows": [Row.as_json(r) for r in found["rows"]]}
        if asked.json:  # after each section: one that is interrupted keeps what it has
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
