"""A child process that does one thing again and again when it is asked to, and times itself.

A process of its own for each side: mallopt, threads, imports and peak memory belong to a process,
so two sides in one would share them. The children wait for each other's turn on a pipe.

    with Child("benchmarks.training:OurStep", vocab_size=4096) as step:
        step()          # {"sec": 0.41, "cpu_sec": 0.8, "loss": 8.32}
"""
from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent


class ChildFailed(Exception):
    """A child ended or raised; the message is its traceback, or the end of its stderr."""


def environment(**extra: str) -> dict[str, str]:
    """Ours without W&B's variables, with this repository first on the path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    path = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return {**env, "PYTHONPATH": path, **extra}


class Child:
    """`target(**arguments)` is made in a new process; calling the child calls what that returned.

    target: "module:name" of a class or a function that returns a callable. What the callable
    returns (a dict or None) comes back with its seconds. Raises ChildFailed."""

    def __init__(self, target: str, env: dict[str, str] | None = None, **arguments: Any) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"], stdin=subprocess.PIPE, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment(**(env or {})))
        self.ready: dict | None = None
        self.ask({"target": target, "arguments": arguments})

    def ask(self, message: dict) -> None:
        """Send without waiting: several children can then work at once."""
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.answer()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise ChildFailed(f"ended with {code}: " + self.errors.read()[-2000:])
        message = json.loads(line)
        if "error" in message:
            raise ChildFailed(message["error"])
        return message

    def wait(self) -> dict[str, Any]:
        """Until the target is made; returns {"sec": seconds that took}."""
        if self.ready is None:
            self.ready = self.answer()
        return self.ready

    def __call__(self, **arguments: Any) -> dict[str, Any]:
        self.wait()
        self.ask({"call": arguments})
        return self.answer()

    def close(self) -> dict[str, Any]:
        """End it. Returns {"peak_bytes": its peak resident set, "wall_sec": its whole life}."""
        try:
            self.wait()
            self.ask({"end": True})
            report = self.answer()
            self.process.stdin.close()
            self.process.wait()
            return report | {"wall_sec": time.perf_counter() - self.started}
        finally:
            self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            try:
                stream.close()
            except OSError:  # what was never sent to it
                pass

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def once(target: str, env: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """One call in a process of its own, with what close() reports."""
    with Child(target, env, **arguments) as child:
        result = child()
        return result | child.close()


def memory(field: str, pid: int | str = "self") -> int:
    """A field of /proc/<pid>/status in bytes: VmHWM (peak), VmRSS, RssAnon. Elsewhere than on
    Linux the peak, whatever is asked. (ru_maxrss alone would count the parent's, which a child has
    until exec.)"""
    try:
        with open(f"/proc/{pid}/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(f"{field}:"))
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def timed(work: Callable, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    started, cpu = time.perf_counter(), time.process_time()
    value = work(**arguments)
    return {"sec": time.perf_counter() - started, "cpu_sec": time.process_time() - cpu}, value


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the target prints is no reply
    work = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "target" in message:
                module, _, name = message["target"].partition(":")
                target = getattr(importlib.import_module(module), name)
                reply, work = timed(target, message["arguments"])
            elif "call" in message:
                reply, value = timed(work, message["call"])
                reply |= value or {}
            else:
                reply = {"peak_bytes": memory("VmHWM")}
        except Exception:
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
