"""Train one GPT from one spec.

    python run.py experiments/base.yaml --model.n_layer=6 --optim.lr=1e-3
    python run.py experiments/base.yaml --plan     what would be trained, what it costs
    python run.py --help                           every key, its type, default and meaning

The same command again continues a run that was stopped, or says that it is done. Exit codes:
0 done, 2 bad input (one line says what), 3 diverged, 128 + signal stopped, and saved if it was
training."""
from __future__ import annotations

import os
import sys

from slm.signals import ctrl_c_ends

if __name__ == "__main__":  # before the imports that take their time
    ctrl_c_ends("stopped at once; the same command goes on from the last checkpoint, if any")

from slm.errors import ImpossiblePoint, UserError  # noqa: E402
from slm.orphan import die_with_parent  # noqa: E402
from slm.schema import Spec  # noqa: E402
from slm.screen import command, final_summary, say  # noqa: E402
from slm.spec import (as_dict, help_text, identity, load_spec, parse_arguments,  # noqa: E402
                      run_folder)

UNDER_AGENT = "WANDB_SWEEP_ID" in os.environ


def main(args: list[str]) -> int:
    if {"--help", "-h"} & set(args):
        print(__doc__ + "\n" + help_text())
        return 0
    try:
        files, overrides = parse_arguments([a for a in args if a != "--plan"])
        if not files:
            raise UserError("give a spec, as in: python run.py experiments/base.yaml (--help lists "
                            "every key)")
        spec = load_spec(files, overrides)
        return plan(spec) if "--plan" in args else train_with_branches(spec)
    except UserError as e:
        if UNDER_AGENT and isinstance(e, ImpossiblePoint):  # the sweep goes on past such a point
            from slm.mirror import report_skipped
            report_skipped(str(e))
            say(f"skipped: {e}")
            return 0
        print(e, file=sys.stderr)
        return 2


def plan(spec: Spec) -> int:
    from slm.plan import describe, make_plan
    from slm.prepare import find_prepared
    from slm.sweep.machine import gpus
    from slm.tokenizer import nominal_vocab
    meta = find_prepared(spec.data)
    vocab = meta["vocab_size"] if meta else nominal_vocab(spec.data.tokenizer)
    on_gpu = gpus() if spec.device.name == "auto" or spec.device.name.startswith("cuda") else ()
    print(describe(spec, make_plan(spec, vocab, meta["train"]["tokens"] if meta else None),
                   on_gpu[0].name if on_gpu else None))
    print(f"{'folder':<11} {run_folder(spec)}")
    return 0


def train_with_branches(spec: Spec) -> int:
    if UNDER_AGENT:
        from slm.mirror import refuse_unswept
        die_with_parent()
        refuse_unswept(as_dict(spec))
    code = train(spec)
    if code == 0 and spec.train.branches:
        from slm.branch import seed_branches
        for child in seed_branches(spec):
            code = code or train(child)
    return code


def train(spec: Spec) -> int:
    """One run from its start or its checkpoint to its end. Returns the exit code."""
    from slm.record import Record
    folder = run_folder(spec)
    done = Record.peek(folder)
    if done and done["status"] in ("finished", "diverged"):
        say(f"{folder} is {done['status']}: nothing to do; remove the folder to train it again")
        if UNDER_AGENT:  # the agent's run still wants its numbers
            from slm.mirror import send
            send(folder, spec.track)
        return exit_code(done["status"])
    from slm.device import setup
    from slm.plan import advice, make_plan
    from slm.prepare import prepare
    machine = setup(spec.device)
    for line in machine.reasons:
        say(line)
    prepared = prepare(spec.data)
    plan = make_plan(spec, prepared.tokenizer.vocab_size, prepared.meta["train"]["tokens"],
                     machine.world)
    for name, how in plan.rules.items():
        say(f"{name} {how}")
    for line in advice(plan):
        say(line)
    with Record.open(folder, as_dict(spec), identity(spec), main=machine.is_main) as record:
        try:
            outcome = follow(spec, plan, prepared, machine, record)
        except BrokenPipeError:  # nobody reads the screen any more, as after `| head`
            raise
        except Exception as e:
            record.finish("failed", str(e) if isinstance(e, UserError) else repr(e))
            raise
    if machine.is_main:
        final_summary(folder)
    return exit_code(outcome.status, outcome.signal)


def follow(spec: Spec, plan, prepared, machine, record):
    """The order of events: model, checkpoint, record, loop."""
    from slm import checkpoint
    from slm.branch import branch_steps
    from slm.facts import describe_run
    from slm.train import Trainer, memory_advice
    with memory_advice(spec, plan, machine):
        trainer = Trainer(spec, plan, prepared, machine, record)
        trainer.branch_files = branch_steps(spec, plan, record.folder)
        latest = checkpoint.last(record.folder / "checkpoints")
        if latest:
            trainer.resume(latest)
            say(f"resuming {record.folder} at step {trainer.step} of {plan.steps}")
        if machine.is_main:
            prepared.tokenizer.save(record.folder)
        record.start(trainer.step, describe_run(spec, plan, prepared.meta, machine), spec.track)
        outcome = trainer.run()
    record.finish(outcome.status, outcome.reason,
                  {"steps_done": trainer.step, **trainer.position})  # perhaps past the last line
    return outcome


def exit_code(status: str, signal: int = 0) -> int:
    if status == "diverged":
        return 0 if UNDER_AGENT else 3  # a result of the sweep, not a failure of its agent
    return 128 + signal if signal else 0


if __name__ == "__main__":
    command(main)
