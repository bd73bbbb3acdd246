"""The mirror's own process: follows a run folder and sends what it finds to W&B (slm/mirror.py).

Stdin: an order (the first line), then how the run ended; its end without that means that the
trainer is gone. Stdout: objects with say, mode, ready or stop. Nothing here may raise: whatever W&B
does, the folder stays the truth.
"""
from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import random
import signal
import string
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from slm.files import fcntl, private, rows_of, shown

POLL_SEC = 0.5
TURN = Path("wandb", ".lock")  # in a run folder: held by the mirror at work, names the newest one
X_AXES = ("train/*", "val/*", "lr", "grad_norm", "tokens_per_sec", "mfu")
# Of W&B's own, what would carry paths, names of the machine and its user, or the code.
QUIET = dict(silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True,
             disable_job_creation=True, x_save_requirements=False, symlink=False, host="local",
             program="run.py", x_executable="python")


def tell(**message: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # the trainer is gone: nobody listens
        print(json.dumps(message), flush=True)


class Tail:
    """The whole new lines of a growing .jsonl file, as dicts."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def read(self) -> list[dict]:
        try:
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                raw = f.read()
        except OSError:
            return []
        raw = raw[:raw.rfind(b"\n") + 1]
        self.offset += len(raw)
        return [row for row, _ in rows_of(raw)]


def unreachable(base_url: str, seconds: float) -> str | None:
    """Why W&B's server can't be used now; None where it answers. In a thread, since looking a name
    up heeds no timeout."""
    answer = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(base_url, timeout=seconds).close()
            answer[0] = ""
        except urllib.error.HTTPError as e:
            answer[0] = f"HTTP {e.code}" if e.code >= 500 else ""
        except Exception as e:
            answer[0] = str(getattr(e, "reason", e))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] or None


STOPPED = """query RunStoppedStatus($entity: String, $project: String, $runId: String!) {
  project(name: $project, entityName: $entity) { run(name: $runId) { stopped } } }"""


def is_stopped(run: Any) -> bool:
    """Whether W&B asked this run to stop, as its own client asks (it does so every 15 s only). Such
    a run is over; if it were marked as preempted, its sweep would give it out again and again."""
    import wandb
    settings = wandb.setup().settings
    key = base64.b64encode(f"api:{settings.api_key}".encode()).decode()
    asked = {"query": STOPPED, "variables": {"entity": run.entity, "project": run.project,
                                             "runId": run.id}}
    request = urllib.request.Request(
        settings.base_url.rstrip("/") + "/graphql", data=json.dumps(asked).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(json.load(answer)["data"]["project"]["run"]["stopped"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not known


class Child:
    """One W&B run fed from one folder."""

    def __init__(self, folder: Path, order: dict) -> None:
        self.folder, self.order, self.mode = folder, order, order["mode"]
        self.run: Any = None
        self.failures = 0

    # -- connecting --------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin (or go on with) the W&B run, online if it can be, else offline."""
        import wandb
        if self.mode == "online":
            base = wandb.setup().settings.base_url
            problem = unreachable(base, min(5.0, self.order["init_timeout"]))
            if problem is None:
                try:
                    self.begin(wandb)
                except ConnectionError:     # its own process died: survive() begins again
                    raise
                except Exception as e:
                    problem = str(e).splitlines()[0] if str(e) else type(e).__name__
                    with contextlib.suppress(Exception):
                        wandb.teardown()    # else the same run id would be "in use"
            if problem is not None:
                self.mode = "offline"
                tell(mode="offline", say=f"can't be reached ({private(problem)}): recorded "
                                         "offline")
        if self.mode == "offline":
            self.begin(wandb)
        tell(mode=self.mode, ready=True,
             say=self.run.url if self.mode == "online" else self.how_to_sync())

    def begin(self, wandb: Any) -> None:
        o = self.order
        agent = "WANDB_SWEEP_ID" in os.environ  # then W&B ignores these three, with a warning
        place = {} if agent else {"project": o["project"], "entity": o["entity"], "id": self.id()}
        if agent:
            (self.folder / "wandb_id").write_text(os.environ.get("WANDB_RUN_ID", "") + "\n")
        self.run = wandb.init(
            **place, dir=str(self.folder), mode=self.mode, resume="allow", config=o["config"],
            name=o["name"], group=o["group"], tags=o["tags"] or None,
            settings=wandb.Settings(
                **QUIET, x_stats_pid=o["pid"], init_timeout=o["init_timeout"],
                finish_timeout=o["finish_timeout"], finish_timeout_raises=True,
                x_transaction_log_flush_interval=1.0, stop_fn=lambda: tell(stop=True)))
        self.forget_paths()
        self.metrics, self.samples = (Tail(self.folder / f"{name}.jsonl")
                                      for name in ("metrics", "samples"))
        self.newest: dict = {}              # the newest step's row, which may still get more keys
        self.texts: list[dict] = []
        self.texts_sent = 0
        self.first = self.first_step()
        self.step = -1                      # the newest step sent
        self.run.define_metric("tokens")
        for name in X_AXES:
            self.run.define_metric(name, step_metric="tokens")

    def id(self) -> str:
        """The W&B run's id: the folder's, else WANDB_RUN_ID, else a new one; kept in the folder."""
        path = self.folder / "wandb_id"
        kept = path.read_text().strip() if path.exists() else ""
        new = "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8))
        run_id = kept or os.environ.get("WANDB_RUN_ID") or new
        path.write_text(run_id + "\n")
        return run_id

    def first_step(self) -> int:
        """The first step to send. Online, the server says which it has. Offline, all of them go
        into this one, and earlier offline parts, which it then contains, are marked as sent;
        unless W&B may have a part already: then only what is new."""
        if self.mode == "online":
            first = self.run.starting_step
            if first == 0:
                self.supersede()
            return first
        parts = [p for p in self.parts() if p.parent.name not in str(self.run.dir)]
        if all(p.parent.name.startswith("offline-") and not synced(p).exists() for p in parts):
            self.supersede()
            return 0
        newest = [row["step"] for row in self.metrics.read() if "step" in row]
        return max(newest, default=-1) + 1

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("wandb/*run-*/run-*.wandb"))

    def supersede(self) -> None:
        for path in self.parts():
            if path.parent.name.startswith("offline-") and \
                    path.parent.name not in str(self.run.dir):
                synced(path).touch()

    def forget_paths(self) -> None:
        """W&B's own debug logs name this machine's folders; it goes on without them."""
        logs = Path(self.run.dir).parent / "logs"
        for name in ("debug.log", "debug-core.log"):
            (logs / name).unlink(missing_ok=True)

    def how_to_sync(self) -> str:
        return f"offline; to send it later: wandb sync {shown(Path(self.run.dir).parent)}"

    # -- sending -----------------------------------------------------------------------------

    def pump(self, last: bool = False) -> None:
        """Send what the folder has and W&B has not. A step is sent once it is complete: when a
        later one has begun, or the run has ended in good order (last)."""
        for row in self.metrics.read():
            if row.get("step", -1) < self.first:
                continue
            if self.newest and row["step"] > self.newest["step"]:
                self.send_row()
            self.newest |= row
        if last and self.newest:
            self.send_row()
        self.texts += self.samples.read()
        if self.texts[self.texts_sent:] and self.texts[-1].get("step", 0) <= self.step:
            self.send_texts()               # all prompts of a step in one table

    def send_row(self) -> None:
        self.step = self.newest.pop("step")
        self.run.log({k: float("nan") if v is None else v for k, v in self.newest.items()},
                     step=self.step)
        self.newest = {}

    def send_texts(self) -> None:
        import wandb
        columns = ["step", "tokens", "prompt", "text"]
        rows = [[row.get(c) for c in columns] for row in self.texts]
        table, step = wandb.Table(columns=columns, data=rows), max(self.step, self.first)
        if self.mode == "offline":  # a file of the run; as an artifact it would lie in, and name,
            table.bind_to_run(self.run, "samples", step)               # the user's home folder
        self.run.log({"samples": table}, step=step)
        self.texts_sent = len(self.texts)

    def end(self, exit_code: int, preempted: bool, gone: bool = False) -> None:
        """The rest, and the end of the W&B run. gone: the trainer was killed; it, like one that was
        preempted, goes on later, so no step after its newest row may be used up here."""
        import wandb
        self.pump(last=not gone)
        if not gone and not preempted:
            if self.texts[self.texts_sent:]:
                self.send_texts()
            plot = self.folder / "loss.png"
            if plot.exists():
                self.run.log({"loss": wandb.Image(str(plot))}, step=max(self.step, self.first))
        with contextlib.suppress(OSError, ValueError):
            summary = json.loads((self.folder / "summary.json").read_bytes())
            self.run.summary.update({k: v for k, v in summary.items()   # facts are in the config
                                     if not isinstance(v, dict)})
        if preempted and not (self.mode == "online" and is_stopped(self.run)):
            self.run.mark_preempting()
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            where = shown(Path(self.run.dir).parent)
            tell(say=f"could not take all in {self.order['finish_timeout']:g} s; to send the rest: "
                     f"wandb sync --include-online {where}")

    def survive(self, work) -> None:
        """Do a piece of work; where W&B fails in it, begin again from the files, then give up."""
        while self.failures < 3:
            try:
                if self.run is None:
                    self.connect()
                return work()
            except Exception as e:
                self.failures += 1
                self.run = None
                if self.failures == 2:
                    self.mode = "offline"
                reason = private(f"{type(e).__name__}: {e}".splitlines()[0])
                tell(say=f"failed ({reason}); " + ("beginning again" if self.failures < 3 else
                                                   "off for the rest of this run"))
                with contextlib.suppress(Exception):
                    import wandb
                    wandb.teardown()        # frees the run's id, and a dead process's connection


def synced(path: Path) -> Path:
    """The marker by which `wandb sync` knows what it need not send."""
    return path.with_suffix(".wandb.synced")


def only_one(folder: Path, turn: str) -> bool:
    """Wait, for a while, until the mirror of an earlier process of this run is done. False: a later
    process has begun one meanwhile. It sends all that this one would, and this one, coming after
    it, would end the W&B run a second time, as failed."""
    path = folder / TURN
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # until we exit
    for _ in range(120):
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.5)
    return path.read_text() == turn


def listen(inbox: queue.Queue) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    inbox.put({"exit_code": 1, "preempted": False, "gone": True})


def main(folder: Path, scratch: str) -> int:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):  # a cluster signals every process; the
        if hasattr(signal, name):                              # trainer says when it is over
            signal.signal(getattr(signal, name), lambda *_: None)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["WANDB_DATA_DIR"] = scratch  # W&B names it in the manifest of every table
    inbox: queue.Queue = queue.Queue()
    threading.Thread(target=listen, args=(inbox,), daemon=True).start()
    order = inbox.get()
    if not only_one(folder, order["turn"]):
        return 0
    child = Child(folder, order)
    ending = None
    while ending is None:
        child.survive(child.pump)
        try:
            ending = inbox.get(timeout=POLL_SEC)
        except queue.Empty:
            continue
    child.survive(lambda: child.end(**ending))
    return 0 if child.failures < 3 else 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="slm-wandb-") as temporary:
        code = main(Path(sys.argv[1]), temporary)
    os._exit(code)  # W&B's own exit handlers may hang, and all that matters is done
