"""W&B as a mirror of the run folder: a child process reads the folder's files as they grow and
sends what it finds. So training never waits for W&B, never dies of it, and imports none of it; a
mirror that fell behind, lost its server or was killed catches up from the files, at the next resume
or with

    python -m slm.mirror runs/<run> ...        send finished runs to W&B now, or again

W&B's run id is kept in <folder>/wandb_id, its own files in <folder>/wandb. The child's half is in
slm/mirror_child.py; they talk in JSON lines over its stdin and stdout.
"""
from __future__ import annotations

import argparse
import configparser
import importlib.util
import json
import math
import netrc
import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import yaml

from slm.errors import UserError
from slm.files import is_locked, plain, private, shown
from slm.lr_law import NAMED, read_law
from slm.mirror_child import TURN
from slm.screen import command, say
from slm.shape import round_up

ORDER = ("online", "offline", "disabled")  # from most to least
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # W&B's own; a key may be kept for either
# Seconds that W&B is given, as with W&B's own variables of these names: to answer at the start, and
# to take what is left at the end.
TIMEOUTS = {"WANDB_INIT_TIMEOUT": 20.0, "WANDB_FINISH_TIMEOUT": 30.0}


def timeout(name: str) -> float:
    try:
        return float(os.environ.get(name, TIMEOUTS[name]))
    except ValueError:
        return TIMEOUTS[name]


# -- online, offline or not at all -------------------------------------------------------------

def settings() -> dict[str, str]:
    """W&B's own settings, as `wandb login` and `wandb offline` keep them: the global file, then the
    local one, then the environment."""
    found: dict[str, str] = {}
    config = os.environ.get("WANDB_CONFIG_DIR", os.path.expanduser("~/.config/wandb"))
    for folder in (config, os.path.join(os.environ.get("WANDB_DIR", "."), "wandb")):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(os.path.join(folder, "settings"))
            found |= dict(parser["default"])
        except (configparser.Error, KeyError, OSError, UnicodeDecodeError):
            continue
    names = ("mode", "api_key", "base_url", "identity_token_file")
    env = {name: os.environ.get(f"WANDB_{name.upper()}") for name in names}
    return found | {k: v for k, v in env.items() if v}


def has_key(found: dict[str, str]) -> bool:
    """Whether W&B would find credentials, without importing it (0.8 s)."""
    if found.get("api_key") or found.get("identity_token_file"):
        return True
    host = urlsplit(found.get("base_url", "")).netloc
    for name in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        try:
            known = netrc.netrc(os.path.expanduser(name)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if any(h in known for h in ([host] if host else HOSTS)):
            return True
    return False


def choose_mode(wanted: str) -> tuple[str, str]:
    """track.wandb -> (online | offline | disabled, the reason in words). WANDB_MODE speaks for the
    machine: it can lower what the spec asks for, and decides where the spec says auto."""
    found = settings()
    key, mode = has_key(found), found.get("mode")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if wanted == "auto":
        agent = "WANDB_SWEEP_ID" in os.environ
        if mode in ORDER:
            choice, why = mode, "WANDB_MODE"
        elif key or agent:
            choice, why = "online", "an API key is configured" if key else "a sweep's agent"
        else:
            choice, why = "disabled", "no API key; `wandb login`, or --track.wandb=offline"
    else:
        choice, why = wanted, f"track.wandb = {wanted}"
        if mode in ORDER and ORDER.index(mode) > ORDER.index(choice):
            choice, why = mode, f"WANDB_MODE = {mode}, against {why}"
    if choice == "online" and not key and "WANDB_SWEEP_ID" not in os.environ:
        choice, why = "offline", f"{why}, but there is no API key: run `wandb login`"
    if choice != "disabled" and importlib.util.find_spec("wandb") is None:
        choice, why = "disabled", "wandb is not installed"
    return choice, why


# -- sweeps ------------------------------------------------------------------------------------

def swept() -> dict[str, Any]:
    """What a sweep's agent asked of this run: dotted key -> value; empty without an agent."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, yaml.YAMLError) as e:
        raise UserError(f"WANDB_SWEEP_PARAM_PATH: can't be read ({private(str(e))})") from None
    out: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        else:
            out[key] = value

    for name, entry in (given or {}).items():
        if isinstance(entry, dict) and "value" in entry and not name.startswith("_"):
            walk(entry["value"], name)
    return out


def check_swept(config: dict[str, Any]) -> list[str]:
    """Where the resolved spec (plain nested dicts) is not what the sweep asked for: one line a key;
    empty where all is well. A record must never claim a value that was not trained."""
    lines = []
    for key, want in swept().items():
        got: Any = config
        for part in key.split("."):
            got = got.get(part) if isinstance(got, dict) else None
        if key == "optim.lr_law" and want and got:
            want = want if want in NAMED else str(read_law(want))
        if not _same(want, got) and not (got is None and _derived(key, want, config)):
            lines.append(f"the sweep asked for {key} = {want!r}, but this run has {got!r}")
    return lines


def refuse_unswept(config: dict[str, Any]) -> None:
    """Raises UserError where check_swept finds a difference."""
    if lines := check_swept(config):
        raise UserError("\n".join(lines))


def _same(want: Any, got: Any) -> bool:
    if isinstance(want, list) and isinstance(got, list):
        return len(want) == len(got) and all(map(_same, want, got))
    try:  # YAML reads 1e-4 as text
        return math.isclose(float(want), float(got), rel_tol=1e-12)
    except (TypeError, ValueError):
        return want == got


def _derived(key: str, want: Any, config: dict[str, Any]) -> bool:
    """Keys that a resolved spec no longer has: they have become n_head and n_embd."""
    model = config.get("model", {})
    d, heads, layers = (model.get(k) for k in ("n_embd", "n_head", "n_layer"))
    if key == "model.head_size":
        return d == float(want) * heads
    if key == "model.aspect_ratio":
        return d in {round_up(layers * float(want), m) for m in (64, d // heads, heads)}
    return want is None or str(want).lower() in ("none", "null", "~")


# -- the mirror --------------------------------------------------------------------------------

class Mirror:
    """The parent's half: starts the child, passes on its lines, ends it in bounded time.

    mode: online | offline | disabled; ready: W&B has begun to take it; stop_asked: W&B's page, or
    its early termination, asks for this run's end. No method raises; only finish() waits."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = Path(folder), mode
        self.ready = self.stop_asked = False
        self.child: subprocess.Popen | None = None
        self.lines: list[dict] = []

    @classmethod
    def start(cls, track, folder: Path, config: dict[str, Any],
              name: str | None = None) -> Mirror:
        """Begin to mirror a run folder, whose files are as they should be up to here.

        track: the spec's section (wandb project entity group tags); config: what W&B shows as the
        run's config; name: of the W&B run, left out: the folder's."""
        mode, why = choose_mode(track.wandb)
        mirror = cls(folder, mode)
        if mode == "disabled":
            say(f"W&B off ({why})")
            return mirror
        if mode == "offline" != track.wandb:
            say(f"W&B offline ({why})")
        project = None if track.project == "slm" and os.environ.get("WANDB_PROJECT") \
            else track.project
        order = {"mode": mode, "project": project, "entity": track.entity, "group": track.group,
                 "tags": list(track.tags), "config": plain(config), "pid": os.getpid(),
                 "name": name or mirror.folder.name, "turn": secrets.token_hex(8),
                 "init_timeout": timeout("WANDB_INIT_TIMEOUT"),
                 "finish_timeout": timeout("WANDB_FINISH_TIMEOUT")}
        try:
            mirror._launch(order)
        except OSError as e:
            say(f"W&B off (its process can't be started: {e})")
            mirror.mode = "disabled"
        return mirror

    def _launch(self, order: dict) -> None:
        turn = self.folder / TURN
        turn.parent.mkdir(exist_ok=True)
        turn.write_text(order["turn"])  # an earlier mirror that has not begun leaves it to this one
        root = str(Path(__file__).resolve().parent.parent)
        env = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self.child = subprocess.Popen(
            [sys.executable, "-m", "slm.mirror_child", str(self.folder)], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True)  # a Ctrl-C in the terminal is not meant for it
        self.listener = threading.Thread(target=self._listen, args=(self.child.stdout,),
                                         daemon=True)
        self.listener.start()
        self._tell(order)

    def _listen(self, stream) -> None:
        for line in stream:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                continue

    def _tell(self, message: dict) -> None:
        try:
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
        except (OSError, ValueError):  # it is gone; finish() says so
            pass

    def poll(self) -> None:
        """Say what the child had to say. Costs a microsecond where there is nothing."""
        while self.lines:
            message = self.lines.pop(0)
            if "say" in message:
                say(f"W&B {message['say']}")
            if message.get("stop"):
                self.stop_asked = True
            self.mode = message.get("mode", self.mode)
            self.ready |= message.get("ready", False)

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Let W&B have the rest: the last lines, samples, plot, summary. Waits no longer than the
        time limits; what was not sent then can be sent later, and a line says how."""
        if self.child is None:
            return
        self._tell({"exit_code": exit_code, "preempted": preempted})
        try:
            self.child.wait(timeout("WANDB_INIT_TIMEOUT") + timeout("WANDB_FINISH_TIMEOUT") + 10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.listener.join(1.0)
        self.poll()
        if self.child.returncode != 0:
            say(f"W&B did not take the end of this run; send it later: {self.later()}")
        self.let_go()

    def later(self) -> str:
        return f"python -m slm.mirror {shown(self.folder)}"

    def let_go(self) -> None:
        """Without finish(): the child sends what there is, ends W&B's run as failed, and exits."""
        if self.child is not None:
            try:
                self.child.stdin.close()
            except OSError:
                pass
            self.child = None


def send(folder: Path, track=None, exit_code: int | None = None) -> None:
    """Send a run folder that is over to W&B, or what W&B lacks of it. Under a sweep's agent, it
    becomes the agent's run. track: the spec's section; left out: as in the folder's spec.yaml.
    Raises UserError for what is no run folder or still running."""
    folder = Path(folder)
    try:
        spec = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise UserError(f"{folder}: is no run folder (spec.yaml and summary.json)") from None
    if is_locked(folder):
        raise UserError(f"{folder}: still running, and mirrored by its own process")
    if track is None:
        blank = {"project": "slm", "entity": None, "group": None, "tags": []}
        track = SimpleNamespace(**blank | spec.get("track", {}) | {"wandb": "online"})
    if exit_code is None:
        exit_code = int(summary.get("status") not in ("finished", "diverged", "skipped"))
    facts = {k: v for k, v in summary.items() if isinstance(v, dict)}
    Mirror.start(track, folder, {**spec, "facts": facts}).finish(exit_code)


def report_skipped(reason: str) -> None:
    """Under a sweep's agent: end this run at once, with status skipped and the reason."""
    import tempfile
    track = SimpleNamespace(wandb="auto", project="slm", entity=None, group=None, tags=[])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        summary = {"status": "skipped", "reason": private(reason)}
        Path(folder, "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        Mirror.start(track, Path(folder), {}, name="skipped").finish(0)


def main(args: list[str]) -> int:
    """`python -m slm.mirror`; returns the exit code."""
    parser = argparse.ArgumentParser("python -m slm.mirror", allow_abbrev=False, description="Send "
                                     "finished runs to W&B now, or again.")
    parser.add_argument("folders", nargs="+", metavar="folder", help="run folder, runs/<run>")
    try:
        for folder in parser.parse_args(args).folders:
            send(Path(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    command(main)
