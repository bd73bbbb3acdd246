"""The GPU table, in one command of less than ten minutes:

    python -m benchmarks.gpu --nanogpt ~/nanoGPT --json benchmarks/results/gpu.json
    python -m benchmarks.gpu --tiny           tiny sizes on whatever is here: tries the harness

Training of five shapes, by nanoGPT compiled and by ours eager, compiled and with CUDA graphs:
tokens/s, MFU, memory. Then the seconds to the first step, the head's implementations, cuDNN beside
flash attention, Muon stacked beside looped, and 1, 2, 4, 8 processes that share the GPU.

Every shape is a process that holds all its ways, so that they take turns. The processes are built
together (compiling needs cores, not the GPU) and measured one by one. MFU counts exact matrix
products with the head and full attention (slm.cost, 'matmul'), against 989 TFLOP/s (H100, H200,
dense bf16) and against the rate of a large product measured here. The first step, from before the
model is made, is of processes of their own, each with a compiler's cache of its own and cold."""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, peer
from benchmarks.child import Child, ChildFailed, once
from benchmarks.measure import NO_NANOGPT, Reach, Row, interleave, number, skip, table
from slm.cost import flops_per_token
from slm.errors import UserError
from slm.shape import GPTConfig

PEAK_FLOPS = 989e12
SEED = dict(n_layer=4, n_head=8, n_embd=256, block_size=128)
MEDIUM = dict(n_layer=8, n_head=8, n_embd=512, block_size=512, vocab_size=50304)
GPT2 = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50304)
NANOGPT, COMPILED = "nanoGPT compiled", "ours compiled"
PLAIN = [NANOGPT, "ours eager", COMPILED]
GRAPHS = [*PLAIN, "ours CUDA graphs", "ours reduce-overhead"]
SHAPES = {  # label: shape, batch, ways, what to reach (of the best of ours); the first matter most
    "GPT-2 124M T=1024 B=32": (GPT2, 32, PLAIN, [Reach(1.15, "ratio"), Reach(0.53e6)]),
    "seed V=4,096 B=12": ({**SEED, "vocab_size": 4096}, 12, GRAPHS, [Reach(2.5, "ratio")]),
    "seed V=4,096 B=128": ({**SEED, "vocab_size": 4096}, 128, GRAPHS, [Reach(7e6)]),
    "seed V=50k B=12": ({**SEED, "vocab_size": 50304}, 12, GRAPHS, []),
    "seed V=50k B=128": ({**SEED, "vocab_size": 50304}, 128, GRAPHS, [Reach(2.4e6)]),
    "d512 L8 T512 B=32": (MEDIUM, 32, GRAPHS, [Reach(1.1e6)]),
    "GPT-2 124M T=1024 B=16": (GPT2, 16, GRAPHS, []),
    "GPT-2 124M T=1024 B=64": (GPT2, 64, PLAIN, [])}
TINY = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=512)
TINY_SHAPES = {"tiny B=2": (TINY, 2, GRAPHS, [Reach(1.0, "ratio")])}
HEADS = {"plain": "plain", "plain, compiled": "plain compiled", "chunked": "chunked",
         "torch's": "torch"}
WORK = "benchmarks.gpu_work"


class Bench:
    """What all parts share: options, the time that is left, the cache of compiled code."""

    def __init__(self, args: argparse.Namespace, cache: str) -> None:
        self.nanogpt = str(args.nanogpt.resolve()) if args.nanogpt else None
        self.tiny, self.jobs, self.cache = args.tiny, args.jobs, Path(cache)
        self.ends = time.monotonic() + 60 * args.minutes
        self.seconds, self.rounds = (0.05, 2) if args.tiny else (0.5, 5)
        self.matrix_rate = once(f"{WORK}:MatrixRate", size=256 if args.tiny else 8192
                                )["flops_per_sec"]

    def late(self, need_sec: float) -> bool:
        return time.monotonic() + need_sec > self.ends

    def child(self, name: str, cache: str = "shared", **arguments) -> Child:
        """cache: which of the compiler's caches; one that is not there yet is cold."""
        env = {"TORCHINDUCTOR_CACHE_DIR": str(self.cache / cache)}
        return Child(f"{WORK}:{name}", env, **arguments)


# -- training ----------------------------------------------------------------------------------

def training(bench: Bench) -> list[Row]:
    """Tokens per second of every shape and way."""
    children, rows = {}, []
    shapes = list((TINY_SHAPES if bench.tiny else SHAPES).items())
    try:
        for at in range(0, len(shapes), bench.jobs):      # as many compile at once as are allowed
            if bench.late(60) and children:
                break
            group = {label: bench.child("Steps", shape=shape, batch=batch, nanogpt=bench.nanogpt,
                                        ways=[w for w in ways if w != NANOGPT or bench.nanogpt])
                     for label, (shape, batch, ways, _) in shapes[at:at + bench.jobs]}
            for label, child in group.items():
                try:
                    child.wait()
                    children[label] = child
                except ChildFailed as e:
                    child.stop()
                    rows.append(failed(label, e))
        for label, (shape, batch, _, reach) in shapes:
            if label in children and not bench.late(20):
                try:
                    rows += shape_rows(bench, label, children[label], shape, batch, reach)
                except ChildFailed as e:
                    rows.append(failed(label, e))
            elif not any(row.what == label for row in rows):
                rows.append(skip(label, "no time left"))
    finally:
        for child in children.values():
            child.stop()
    return rows if bench.nanogpt else rows + [skip("beside nanoGPT", NO_NANOGPT)]


def failed(label: str, error: ChildFailed) -> Row:
    return skip(label, f"FAILED: {str(error).strip().splitlines()[-1]}")


def shape_rows(bench: Bench, label: str, child: Child, shape: dict[str, int], batch: int,
               reach: list[Reach]) -> list[Row]:
    report = child()["report"]
    here = [way for way, said in report.items() if "skipped" not in said]
    tokens = batch * shape["block_size"]
    found = interleave({way: lambda way=way: child(way=way, seconds=bench.seconds)
                        for way in here}, bench.rounds, warmup=1)
    child.stop()                                             # its memory is for the next
    rates = {way: [tokens * r["steps"] / r["work_sec"] for r in results]
             for way, results in found.items()}
    theirs = rates.pop(NANOGPT, [])
    best = max(rates, key=lambda way: sum(rates[way]), default=None)
    rows = []
    for way, said in report.items():
        if way in rates:
            rows.append(Row(f"{label}: {way}", "tokens/s", rates[way], theirs, NANOGPT,
                            note=note_of(bench, way, report, shape, max(rates[way])), more=said))
            targets = reach if way == best else []
            rows[-1].reach = targets[0] if targets else None
            rows += [Row("  and", "tokens/s", rates[way], reach=r) for r in targets[1:]]
        elif "skipped" in said:
            rows.append(skip(f"{label}: {way}", said["skipped"]))
    return rows


def note_of(bench: Bench, way: str, report: dict, shape: dict[str, int], rate: float) -> str:
    flops = rate * flops_per_token(GPTConfig(**shape, bias=False))["matmul"]
    said = report[way]
    note = (f"at best {100 * flops / PEAK_FLOPS:.1f} % MFU, "
            f"{100 * flops / bench.matrix_rate:.1f} % of the measured product")
    for other, its in ((way, said), (NANOGPT, report.get(NANOGPT, {}))):
        if its.get("peak_bytes"):
            note += f"; {other}: {number(its['peak_bytes'] / 1e9)} GB"
    other = NANOGPT if way == "ours eager" else "ours eager"
    if "losses" in report.get(other, {}):
        worst = max(abs(a - b) for a, b in zip(said["losses"], report[other]["losses"]))
        note += f"; first losses at most {worst:.1e} from {other}'s"
    return note


def starting(bench: Bench) -> list[Row]:
    """Seconds to the end of the first step, compiling included: one process a way, in turn."""
    label = "tiny B=2" if bench.tiny else "seed V=4,096 B=12"
    shape, batch, _, _ = (TINY_SHAPES if bench.tiny else SHAPES)[label]
    ways = [w for w in (NANOGPT, COMPILED, "ours eager") if w != NANOGPT or bench.nanogpt]
    seconds: dict[str, float] = {}
    for way in ways:
        with bench.child("Steps", cache=way, shape=shape, batch=batch, nanogpt=bench.nanogpt,
                         ways=[way]) as child:
            child.wait()
            said = child()["report"][way]
        if "skipped" not in said:
            seconds[way] = said["first_step_sec"]
    theirs = [seconds[NANOGPT]] if NANOGPT in seconds else []
    return [Row(f"{label}: {way}", "s", [seconds[way]], theirs if way != NANOGPT else [], NANOGPT)
            if way in seconds else skip(f"{label}: {way}", "failed to start") for way in ways]


def processes(bench: Bench) -> list[Row]:
    """Total tokens per second of several processes that train the same small shape."""
    label, counts = ("tiny B=2", (1, 2)) if bench.tiny else ("seed V=4,096 B=12", (1, 2, 4, 8))
    shape, batch, _, _ = (TINY_SHAPES if bench.tiny else SHAPES)[label]
    way = "ours eager" if bench.tiny else COMPILED
    children = [bench.child("Steps", shape=shape, batch=batch, ways=[way])
                for _ in range(max(counts))]
    try:
        for child in children:
            child.wait()
            said = child()["report"][way]
            if "skipped" in said:
                return [skip(f"{label}, {way}", said["skipped"])]

        def together(n: int) -> float:
            for child in children[:n]:
                child.ask({"call": {"way": way, "seconds": 3 * bench.seconds}})
            done = [child.answer() for child in children[:n]]
            return sum(d["steps"] / d["work_sec"] for d in done) * batch * shape["block_size"]

        found = interleave({n: lambda n=n: together(n) for n in counts}, bench.rounds)
    finally:
        for child in children:
            child.stop()
    return [Row(f"{label}, {way}: {n} processes", "tokens/s", found[n], found[1], "one process",
                Reach(3, "ratio") if n == max(counts) and not bench.tiny else None)
            for n in counts[1:]]


# -- kernels -----------------------------------------------------------------------------------

def kernels(bench: Bench, name: str, arguments: dict, choices: dict[str, str], key: str,
            label: str) -> list[Row]:
    """The choices of one kernel by turns; the peer of each is the first of them."""
    with bench.child(name, **arguments) as child:
        child.wait()
        found = interleave({what: lambda value=value: child(**{key: value})
                            for what, value in choices.items()}, bench.rounds, warmup=1)
    first, rows = next(iter(choices)), []
    for what, results in found.items():
        if "skipped" in results[0]:
            rows.append(skip(f"{label}: {what}", results[0]["skipped"]))
            continue
        base = found[first] if what != first and "ms" in found[first][0] else []
        memory = results[0]["peak_mb"]
        rows.append(Row(f"{label}: {what}", "ms", [r["ms"] for r in results],
                        [r["ms"] for r in base], first,
                        note=f"{number(memory)} MB above what was there" if memory else ""))
    return rows


def heads(bench: Bench) -> list[Row]:
    sizes = [(64, 32, 512)] if bench.tiny else [(16384, 256, 50304), (32768, 768, 50304)]
    return [row for tokens, d, v in sizes
            for row in kernels(bench, "Heads", dict(tokens=tokens, d=d, v=v), HEADS, "name",
                               f"head {tokens:,} tokens d{d} V={v:,}")]


def attention(bench: Bench) -> list[Row]:
    sizes = [(1, 2, 32, 16)] if bench.tiny else [(128, 8, 128, 32), (32, 8, 512, 64),
                                                 (32, 12, 1024, 64)]
    return [row for b, h, t, k in sizes
            for row in kernels(bench, "Attention", dict(b=b, h=h, t=t, k=k),
                               {"flash": "flash", "cuDNN": "cuDNN"}, "kernel",
                               f"attention {b}x{h}x{t}x{k}")]


def muon(bench: Bench) -> list[Row]:
    sizes = [(1, 32)] if bench.tiny else [(4, 256), (12, 768)]
    return [row for layers, d in sizes
            for row in kernels(bench, "MuonWays", dict(n_layer=layers, d=d),
                               {x: x for x in ("torch.optim.Muon", "looped", "stacked")}, "name",
                               f"Muon, {layers} layers d{d}")]


PARTS = {"training": (training, 0), "starting": (starting, 90), "heads": (heads, 60),
         "attention": (attention, 20), "muon": (muon, 30),
         "processes": (processes, 60)}                       # and the seconds it needs, about


def describe_gpu() -> str:
    try:
        found = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm",
                                "--format=csv,noheader"], capture_output=True, text=True)
        return found.stdout.strip()
    except OSError:
        return ""


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing that ends later")
    parser.add_argument("--jobs", type=int, default=3, help="processes that compile at once")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: tries the harness")
    asked = parser.parse_args(args)
    if wrong := [p for p in asked.parts if p not in PARTS]:
        parser.error(f"no part {', '.join(wrong)}: there are {', '.join(PARTS)}")
    try:
        nanogpt = peer.check(asked.nanogpt) if asked.nanogpt else None
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    gpu = describe_gpu()
    if not gpu and not asked.tiny:
        print("no GPU here (nvidia-smi finds none): --tiny tries the harness on the CPU",
              file=sys.stderr)
        return 2
    about = machine.describe() | {"gpu": gpu or None}
    print(f"{machine.heading(about)}\nGPU: {gpu or 'none, every part of CUDA alone is skipped'}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        bench = Bench(asked, cache)
        print(f"matrix product: {bench.matrix_rate / 1e12:.3g} TFLOP/s")
        result = {"machine": about, "nanogpt": nanogpt, "tiny": asked.tiny,
                  "matrix_flops_per_sec": bench.matrix_rate, "sections": {}}
        for name in asked.parts or PARTS:
            part, need_sec = PARTS[name]
            try:
                rows = [skip(name, "no time left")] if bench.late(need_sec) else part(bench)
            except ChildFailed as e:
                print(e, file=sys.stderr)
                rows = [failed(name, e)]
            print(f"\n{name}\n{table(rows)}", flush=True)
            result["sections"][name] = {"rows": [row.as_json() for row in rows]}
            if asked.json:
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                asked.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
