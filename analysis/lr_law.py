"""A law of the best learning rate, from runs that tried several at each size and horizon.

    python -m analysis.lr_law runs/ --out lr_law.json

Fits lr = scale N^n D^d (analysis/scaling/lr_law.py), prints it with the cells that it rests on and
those left out, and writes it as JSON: optim.lr: auto with optim.lr_law: lr_law.json trains by it.
Exit codes: 0 done, 2 bad input.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from slm.errors import UserError
from slm.screen import command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m analysis.lr_law", description=__doc__,
                                allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", help="folders of runs, or wandb:entity/project")
    p.add_argument("--out", default="lr_law.json", help="default: lr_law.json")
    p.add_argument("--where", help="only these runs, as in \"schedule = cosine and lr < 0.1\"")
    p.add_argument("--over", default="ND", choices=("ND", "N", "D"),
                   help="N or D alone, where they vary together (default: ND)")
    p.add_argument("--n-params", default="n_params", metavar="COLUMN",
                   help="what to take for N: n_params (matmul parameters, the default), "
                   "params_blocks, params_non_embedding or params_total")
    p.add_argument("--level", type=float, default=0.95, help="of the intervals (default 0.95)")
    p.add_argument("--bootstrap", type=int, default=2000, help="resamples (default 2000)")
    p.add_argument("--allow-mixed", action="store_true", help="take runs of several data sets")
    p.add_argument("--cache", help="folder for what is read from W&B")
    return p


def main(args: list[str]) -> int:
    """The command; see the module's docstring."""
    options = parser().parse_args(args)
    try:
        fit = run(options)
        path = Path(options.out).expanduser()
        write(path, fit.to_dict())
        print(fit.summary())
        print(f"wrote {path}: --optim.lr=auto --optim.lr_law={path} trains by it")
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace):
    from analysis.runs import load_runs
    from analysis.scaling.lr_law import fit_lr_law
    from analysis.where import select
    if options.bootstrap < 20:
        raise UserError(f"--bootstrap={options.bootstrap}: should be 20 or more")
    runs = select(load_runs(*options.runs, cache=options.cache), options.where)
    return fit_lr_law(runs, over=options.over, n_params=options.n_params, level=options.level,
                      bootstrap=options.bootstrap, allow_mixed=options.allow_mixed)


def write(path: Path, values: dict) -> None:
    from slm.files import plain, write_whole
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plain(values), indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--out={path}: can't be written ({e.strerror})") from None


if __name__ == "__main__":
    command(main)
