"""The loop: step, log, evaluate, sample, checkpoint, stop.

Step i is a pure function of the weights, the optimiser's state and i: its batch comes from
(data.seed, i), its dropout from (train.seed, i, rank). So evaluation, samples and interruptions
can't change a single bit of the weights."""
from __future__ import annotations

import math
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator

import torch

from slm import checkpoint
from slm.cost import eval_tokens
from slm.device import Machine, is_out_of_memory, peak_flops
from slm.dynamics import announce, measured_step
from slm.errors import UserError
from slm.evaluate import evaluate
from slm.generate import Writer
from slm.init_from import start_from
from slm.loader import Loader, validation
from slm.loss import choose_loss
from slm.model import GPT
from slm.optim import make_optimizer, make_scheduler
from slm.plan import Plan, training_memory
from slm.record import Record
from slm.schema import Spec
from slm.screen import Progress, say
from slm.signals import Signals
from slm.spec import identity


@dataclass
class Outcome:
    """How a run ended. status: finished | preempted | diverged; signal: its number, if any."""
    status: str
    reason: str
    signal: int = 0


class Diverged(Exception):
    pass


class Trainer:
    """One run's state: model, optimiser, schedule, position. `run()` trains it to its horizon.

    Raises UserError for a checkpoint that is broken or of another spec."""

    def __init__(self, spec: Spec, plan: Plan, prepared, machine: Machine, record: Record) -> None:
        self.spec, self.plan, self.machine, self.record = spec, plan, machine, record
        generator = torch.Generator().manual_seed(spec.train.seed)
        self.model = GPT(plan.config, generator).to(machine.device)
        self.model.loss_impl, why = choose_loss(spec.device.loss, machine.type,
                                                plan.config.vocab_size, machine.precision)
        say(f"loss {self.model.loss_impl} ({why})")
        announce(spec.track.dynamics_interval, plan, machine.world)
        self.net = torch.compile(self.model, dynamic=False) if machine.compile else self.model
        if machine.world > 1:
            ids = [machine.device.index] if machine.type == "cuda" else None
            self.net = torch.nn.parallel.DistributedDataParallel(self.net, device_ids=ids)
        self.optimizer = make_optimizer(self.model, plan.optim, machine.type)
        self.scheduler = make_scheduler(self.optimizer, plan.optim, plan.steps, plan.warmup_steps)
        self.scaler = torch.amp.GradScaler(machine.type, enabled=machine.precision == "fp16")
        self.loader = Loader(prepared.train, plan.config.block_size, plan.batch_size,
                             spec.data.seed, machine.rank, machine.world, machine.device)
        self.validation = validation(prepared, spec.data.eval_mode, plan.config.block_size,
                                     spec.data.eval_tokens, eval_tokens(machine.type))
        self.writer = Writer(self.model, prepared.tokenizer)
        self.step = 0
        self.best_val, self.evaluations_since_best = math.inf, 0
        self.latest: dict[str, float] = {}
        self.loss_sum = torch.zeros((), device=machine.device)   # since the last log line
        self.loss_steps = 0
        self.norm = self.loss_sum
        self.branch_files: dict[int, list[Path]] = {}            # slm/branch.py fills it

    # -- one step ----------------------------------------------------------------------------

    def train_step(self) -> None:
        """One optimiser step; nothing in it waits for the device."""
        torch.manual_seed(step_seed(self.spec.train.seed, self.step, self.machine.rank))
        x, y = self.loader.batch(self.step)                      # (b, t) each
        passes = list(zip(x.split(self.plan.micro_batch), y.split(self.plan.micro_batch)))
        for i, (mx, my) in enumerate(passes):
            if self.machine.world > 1:
                self.net.require_backward_grad_sync = i == len(passes) - 1
            with self.machine.autocast():
                loss = self.net(mx, my) / len(passes)
            self.scaler.scale(loss).backward()
            self.loss_sum += loss.detach()
        self.scaler.unscale_(self.optimizer)
        self.norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(),
                                                   self.plan.optim.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.step += 1
        self.loss_steps += 1

    # -- what happens between steps ----------------------------------------------------------

    def due(self, interval: int) -> bool:
        return self.step == self.plan.steps or (interval > 0 and self.step % interval == 0)

    def pauses(self) -> bool:
        """Whether something else than training is due after this step."""
        plan = self.plan
        intervals = (plan.eval_interval, plan.sample_interval, plan.checkpoint_interval)
        return self.step in self.branch_files or any(map(self.due, intervals))

    @property
    def position(self) -> dict[str, float]:
        tokens = self.step * self.plan.tokens_per_step
        return {"tokens": tokens, "flops": tokens * self.plan.flops_per_token["matmul"]}

    def log(self, seconds: float) -> None:
        """One line of training metrics: the mean loss of the steps since the last one. The only
        place where a step's numbers are waited for. Raises Diverged."""
        loss = self.loss_sum.item() / self.loss_steps
        if self.machine.world > 1:  # each rank saw its own share of the batch
            shared = torch.tensor(loss, device=self.machine.device)
            torch.distributed.all_reduce(shared)
            loss = shared.item() / self.machine.world
        rate = self.loss_steps * self.plan.tokens_per_step / max(seconds, 1e-9)
        values = {"train/loss": loss, "lr": self.optimizer.param_groups[0]["lr"],
                  "grad_norm": self.norm.item(), "tokens_per_sec": rate}
        peak = peak_flops(self.machine)
        if peak:
            values["mfu"] = rate * self.plan.flops_per_token["matmul"] / peak / self.machine.world
        self.loss_sum.zero_()
        self.loss_steps = 0
        self.latest.update(values)
        self.record.log(self.step, {**self.position, **values})
        if not math.isfinite(loss) or loss > 2 * math.log(self.plan.config.vocab_size):
            raise Diverged(f"training loss {loss:.4g} at step {self.step}")

    def evaluate(self) -> None:
        """Record the validation metrics; keep the best weights. Raises Diverged."""
        values = evaluate(self.model, self.validation, self.machine)  # shapes vary: never compiled
        self.latest.update(values)
        self.record.log(self.step, {**self.position, **values})
        if not math.isfinite(values["val/loss"]):
            raise Diverged(f"validation loss {values['val/loss']} at step {self.step}")
        if values["val/loss"] < self.best_val:
            self.best_val, self.evaluations_since_best = values["val/loss"], 0
            if self.step and self.machine.is_main:
                checkpoint.save(self.folder / checkpoint.BEST, self.weights())
        else:
            self.evaluations_since_best += 1

    def sample(self) -> None:
        s = self.spec.sample
        for prompt in s.prompts if self.machine.is_main else ():
            text = self.writer.generate(prompt, max_new_tokens=s.max_new_tokens, top_k=s.top_k,
                                        temperature=s.temperature, top_p=s.top_p, seed=s.seed)
            self.record.sample(self.step, self.position["tokens"], prompt, text)

    # -- checkpoints -------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.record.folder / "checkpoints"

    def weights(self) -> dict:
        return {"model": self.model.state_dict(), "config": asdict(self.plan.config),
                "identity": identity(self.spec), "step": self.step, "val_loss": self.best_val}

    def state(self) -> dict:
        """All that the rest of the run depends on."""
        return {**self.weights(), "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict(),
                "precision": self.machine.precision,
                "best_val": self.best_val, "latest": self.latest,
                "evaluations_since_best": self.evaluations_since_best,
                "loss_sum": self.loss_sum, "loss_steps": self.loss_steps}

    def save(self, path: Path | None = None) -> None:
        """A checkpoint of this very step; never one of weights that are no longer finite."""
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            raise Diverged(f"weights are no longer finite at step {self.step}")
        if not self.machine.is_main:
            return
        checkpoint.save(path or checkpoint.step_file(self.folder, self.step), self.state())
        checkpoint.keep_last(self.folder, self.spec.track.keep)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError for one of another spec."""
        state = checkpoint.load(path)
        if state["identity"] != identity(self.spec):
            raise UserError(f"{path}: a checkpoint of another spec ({state['identity']}, this one "
                            f"is {identity(self.spec)}); move it away or use another track.dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        before = state.get("precision", self.machine.precision)
        if before != self.machine.precision:
            say(f"precision {self.machine.precision} from here on, {before} up to step "
                f"{state['step']}: not the numbers of a run in one precision")
        self.step = state["step"]
        if state["scheduler"] is None:  # a branch: the trunk's schedule had another horizon
            for _ in range(self.step):
                self.scheduler.step()
        else:
            self.scheduler.load_state_dict(state["scheduler"])
        self.best_val = state["best_val"]
        self.evaluations_since_best = state["evaluations_since_best"]
        self.latest = state["latest"]
        self.loss_sum.copy_(state["loss_sum"])
        self.loss_steps = state["loss_steps"]

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the horizon, or until something stops it."""
        try:
            with Signals() as signals, Progress(self.plan.steps, self.step) as bar:
                return self.loop(signals, bar)
        except Diverged as e:
            kept = checkpoint.last(self.folder) or self.folder / checkpoint.BEST
            return Outcome("diverged", f"{e}; " + (
                "the last good checkpoint is kept" if kept.exists() else "no checkpoint yet"))

    def loop(self, signals: Signals, bar: Progress) -> Outcome:
        plan, spec = self.plan, self.spec
        if self.step == 0:
            if spec.model.init_from:
                start_from(spec.model.init_from, spec.model.init_fingerprint, self.model,
                           self.writer.tokenizer)
                say(f"weights {spec.model.init_from}")
            self.evaluate()
            bar.update(0, self.latest)
        started, busy = time.monotonic(), 0.0
        while self.step < plan.steps:
            busy += measured_step(self)
            logged = evaluated = False
            if self.due(spec.track.log_interval):
                self.log(self.machine.clock() - started - busy)
                started, busy, logged = time.monotonic(), 0.0, True
            # what the device has still to do by then is training
            pause = self.machine.clock() if self.pauses() else None
            if self.due(plan.eval_interval):
                self.evaluate()
                evaluated = True
            if self.due(plan.sample_interval):
                self.sample()
            for path in self.branch_files.get(self.step, ()):
                self.save(path)
            outcome = self.stop_reason(signals)
            if outcome or self.due(plan.checkpoint_interval):
                self.save()
            if pause is not None:
                busy += self.machine.clock() - pause
            bar.update(self.step, self.latest, evaluated=evaluated, logged=logged)
            if outcome:
                return outcome
        return Outcome("finished", "reached its horizon")

    def stop_reason(self, signals: Signals) -> Outcome | None:
        """A reason to stop before the horizon. Ranks agree on it at log lines."""
        if self.step == self.plan.steps:
            return None
        train, number = self.spec.train, signals.received
        if not number and self.record.stop_asked:  # on W&B's page, or by its early termination
            number = signal.SIGTERM
        late = train.time_limit_sec and self.record.seconds() > train.time_limit_sec
        if self.machine.world > 1:
            if not self.due(self.spec.track.log_interval):
                return None
            flags = torch.tensor([number, int(bool(late))], device=self.machine.device)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
            number, late = flags.tolist()
        if number:
            return Outcome("preempted", f"signal {number}, saved at step {self.step}; the same "
                                        "command goes on from there", number)
        if late:
            return Outcome("finished", f"time limit of {train.time_limit_sec:g} s")
        if train.patience and self.evaluations_since_best >= train.patience:
            return Outcome("finished", f"no better val loss in {train.patience} evaluations")
        return None


@contextmanager
def memory_advice(spec: Spec, plan: Plan, machine: Machine) -> Iterator[None]:
    """Where memory runs out within, raise UserError with what to change."""
    try:
        yield
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        micro, limit = plan.micro_batch, spec.device.memory_fraction
        loss = choose_loss(spec.device.loss, machine.type, plan.config.vocab_size)[0]
        less = [f"--train.micro_batch={micro // 2}"] if micro > 1 else []
        less += ["--device.loss=chunked"] if loss == "plain" else []
        ways = [f"{' or '.join(less)} (same numbers up to rounding)"] if less else []
        ways += [f"a larger device.memory_fraction than {limit}"] if limit else []
        total = training_memory(spec, plan, machine.type)["total"]
        raise UserError(f"out of memory on {machine.device} with {micro} sequences of "
                        f"{plan.config.block_size} tokens a pass (--plan: about "
                        f"{total / 1e9:.1f} GB): try {', '.join(ways + ['a smaller model'])}"
                        ) from None


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one step's dropout: distinct (seed, step, rank) give unrelated streams
    (splitmix64's finaliser, Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) \
        & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
