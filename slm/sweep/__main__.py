"""The verbs of a sweep, over W&B's own sweep file.

  python -m slm.sweep check  FILE     is this file sound? every fault, in words
  python -m slm.sweep plan   FILE     every point with its cost; what is dropped and why; totals
  python -m slm.sweep run    FILE     run it here without a server; again = only what is missing
  python -m slm.sweep status FILE     done, running, failed, to do; best so far
  python -m slm.sweep agents ENTITY/PROJECT/ID     one `wandb agent` per GPU of this machine
  python -m slm.sweep slurm  FILE     write a job array for a cluster

Any --section.key=value is given to every point, as in --train.tokens=100000.
Exit codes: 0 done, 1 points failed, 2 bad input, 128 + signal interrupted.
"""
from __future__ import annotations

import argparse
import sys

from slm.errors import UserError
from slm.screen import command


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m slm.sweep", description=__doc__,
                                  allow_abbrev=False,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, file: bool = True) -> argparse.ArgumentParser:
        p = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        if file:
            p.add_argument("file", help="a W&B sweep file")
            p.add_argument("--seed", type=int, default=None, help="of random and bayes searches "
                           "(default: that of the sweep's folder, else 0)")
        return p

    def placed(p: argparse.ArgumentParser) -> None:
        p.add_argument("--slots", type=positive, help="runs at a time on the CPU (default: the "
                       "GPUs, or where there are none one for each core)")
        p.add_argument("--runs-per-gpu", type=per_gpu, default=None, metavar="K|auto",
                       help="runs that share a GPU (default: auto)")

    verb("check", "every fault of a sweep file, in words")
    p = verb("plan", "every point with its cost")
    placed(p)
    p.add_argument("--all", action="store_true", help="every row of a long table")
    p.add_argument("--json", action="store_true", help="as JSON")
    p = verb("run", "run a sweep on this machine, without a server")
    placed(p)
    p.add_argument("--retries", type=int, default=1, help="of a failed point (default 1)")
    p.add_argument("--wandb", choices=["auto", "online", "offline", "disabled"],
                   help="as --track.wandb: offline runs can be sent later with `wandb sync`")
    p.add_argument("--point", type=positive, help="this point alone, by its number in the plan")
    p = verb("status", "where each point stands")
    p.add_argument("--all", action="store_true", help="every row of a long table")
    p.add_argument("--json", action="store_true", help="as JSON")
    p = verb("agents", "one `wandb agent` per visible GPU (or CPU slot)", file=False)
    p.add_argument("sweep", metavar="ENTITY/PROJECT/ID", help="as printed by `wandb sweep`")
    p.add_argument("--slots", type=positive, help="agents on the CPU (default: the GPUs, or where "
                   "there are none one for each core)")
    p.add_argument("--per-gpu", type=per_gpu, default=None, metavar="K|auto",
                   help="agents that share a GPU")
    p.add_argument("--gpus-per-agent", type=positive, default=1, metavar="N", help="of a sweep "
                   "whose command is torchrun --nproc_per_node=N (default 1)")
    p.add_argument("--count", type=positive, help="runs of each agent (default: to the end)")
    p = verb("slurm", "write a job array")
    p.add_argument("--sweep", metavar="ENTITY/PROJECT/ID", help="each task is a `wandb agent` of "
                   "this sweep (default: one point a task, without a server)")
    p.add_argument("--time", default="04:00:00", help="limit of a task (default 04:00:00)")
    p.add_argument("--gpus", type=int, default=1, help="of a task; 0: CPU only (default 1)")
    p.add_argument("--cpus", type=positive, help="cores of a task (default 4 with a GPU, else 1)")
    p.add_argument("--at-once", type=positive, help="tasks that may run at one time")
    p.add_argument("--sbatch", action="append", default=[], metavar="OPTION",
                   help="a further option of sbatch, as in --sbatch=--partition=main")
    p.add_argument("--out", help="where to write the script (default: <sweep>.sbatch)")
    return top


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("should be 1 or more")
    return value


def per_gpu(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def main(argv: list[str]) -> int:
    options, overrides = parser().parse_known_args(argv)
    try:
        if options.verb == "agents":
            from slm.sweep.agents import run_agents
            return run_agents(options, overrides)
        if getattr(options, "wandb", None):
            overrides.append(f"--track.wandb={options.wandb}")
        from slm.sweep import verbs
        return getattr(verbs, options.verb)(options, overrides)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    command(main)
