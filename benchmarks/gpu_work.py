"""What the processes of benchmarks/gpu.py do: training steps in several ways, and kernels alone.

Needs of slm only the model, its loss and its optimisers (no pydantic, no W&B), and runs on a CPU
with tiny sizes to prove itself. Every process times itself between two synchronisations."""
from __future__ import annotations

import gc
import time
from types import SimpleNamespace
from typing import Any, Callable

import torch
from torch import Tensor

OPTIM = SimpleNamespace(name="adamw", lr=6e-4, muon_lr=0.02, weight_decay=0.1, beta1=0.9,
                        beta2=0.95, eps=1e-8)
CLIP, BATCHES, CHUNK = 1.0, 8, 10      # batches on the device; steps between looks at the clock
CUDA_ONLY = {"ours CUDA graphs", "ours reduce-overhead"}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def autocast() -> Any:
    """bf16 on CUDA; none on a CPU."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=device().type == "cuda")


def compiled(net: Any, mode: str | None = None) -> Any:
    """torch.compile; on a CPU with the backend that compiles nothing: only the way is tried."""
    if device().type == "cpu":
        return torch.compile(net, dynamic=False, backend="eager")
    return torch.compile(net, dynamic=False, mode=mode)


# -- training steps ----------------------------------------------------------------------------

class Training:
    """A model that trains on batches which lie on the device. mode: None eager, 'default' or
    'reduce-overhead' compiled. Nothing in step() waits for the device."""

    def __init__(self, model: torch.nn.Module, batches: list[tuple[Tensor, Tensor]],
                 mode: str | None) -> None:
        self.model, self.batches, self.graphs = model, batches, mode == "reduce-overhead"
        self.net = model if mode is None else compiled(model, mode)
        self.optimizer = self.make_optimizer()
        self.done = 0

    def make_optimizer(self) -> torch.optim.Optimizer:
        from slm.optim import make_optimizer
        return make_optimizer(self.model, OPTIM, device().type)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with autocast():
            return self.net(x, y)

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.detach()

    def step(self) -> Tensor:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.update(*self.batches[self.done % BATCHES])
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.clone() if self.graphs else loss


class NanoGPT(Training):
    """nanoGPT's model, which returns logits too, with its own optimiser."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.model.configure_optimizers(OPTIM.weight_decay, OPTIM.lr,
                                               (OPTIM.beta1, OPTIM.beta2), device().type)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with autocast():
            return self.net(x, y)[1]


class WholeStepGraph(Training):
    """EXPERIMENT, not yet run on a GPU: forward, backward, clipping and AdamW of the compiled model
    captured as one CUDA graph. Learning rates are tensors, batches are copied into static buffers,
    and gradients live in the graph's pool: they are None when it is captured, so that each replay
    writes them anew. After the capture weights and optimiser are set back to the start, in place,
    so that its losses can be compared with the eager ones."""

    def __init__(self, model: torch.nn.Module, batches: list[tuple[Tensor, Tensor]],
                 mode: str | None) -> None:
        super().__init__(model, batches, mode)
        start = [p.detach().clone() for p in model.parameters()]
        self.x, self.y = (t.clone() for t in batches[0])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):          # compiles, and makes the optimiser's state
            for _ in range(3):
                self.update(self.x, self.y)
                self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(side)
        gc.collect()                           # a graph of a warm-up step must not outlive it
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.update(self.x, self.y)
        with torch.no_grad():
            for p, value in zip(model.parameters(), start):
                p.copy_(value)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()

    def make_optimizer(self) -> torch.optim.Optimizer:
        from slm.optim import param_groups
        groups = param_groups(self.model, OPTIM)
        for group in groups:
            group["lr"] = torch.tensor(group["lr"], device=device())
        return torch.optim.AdamW(groups, betas=(OPTIM.beta1, OPTIM.beta2), fused=True,
                                 capturable=True)

    def step(self) -> Tensor:
        x, y = self.batches[self.done % BATCHES]
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()
        self.done += 1
        return self.result.clone()


class Steps:
    """One shape and batch, trained in several ways from the same weights on the same batches.

    The first call, way=None, tells of each way its seconds to the end of the first step (compiling
    included), peak memory and first losses, or why it is not there."""

    def __init__(self, shape: dict[str, int], batch: int, ways: list[str],
                 nanogpt: str | None = None) -> None:
        if device().type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.shape, self.nanogpt, self.report, self.ways = shape, nanogpt, {}, {}
        generator = torch.Generator().manual_seed(0)
        size = (batch, shape["block_size"] + 1)
        rows = [torch.randint(shape["vocab_size"], size, generator=generator).to(device())
                for _ in range(BATCHES)]
        self.batches = [(r[:, :-1].contiguous(), r[:, 1:].contiguous()) for r in rows]
        for way in ways:
            if way in CUDA_ONLY and device().type != "cuda":
                self.report[way] = {"skipped": "needs CUDA"}
                continue
            try:
                self.report[way] = self.begin(way)
            except Exception as e:   # out of memory, a compiler's fault: the other ways go on
                self.report[way] = {"skipped": f"{type(e).__name__}: {str(e)[:300]}"}
                self.ways.pop(way, None)
            if device().type == "cuda":
                torch.cuda.empty_cache()

    def begin(self, way: str) -> dict[str, Any]:
        cuda = device().type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        started = time.perf_counter()
        self.ways[way] = training = self.make(way)
        losses = [training.step()]
        sync()
        first = time.perf_counter() - started
        losses += [training.step() for _ in range(4)]
        sync()
        peak = torch.cuda.max_memory_allocated() - before if cuda else None
        return {"first_step_sec": first, "peak_bytes": peak, "losses": [x.item() for x in losses]}

    def make(self, way: str) -> Training:
        from slm.model import GPT
        from slm.shape import GPTConfig
        model = GPT(GPTConfig(**self.shape, bias=False))
        if way.startswith("nanoGPT"):
            from benchmarks.peer import make_model
            theirs = make_model(self.nanogpt, self.shape, model.state_dict()).to(device())
            return NanoGPT(theirs, self.batches, "default" if "compiled" in way else None)
        model = model.to(device())
        if way == "ours CUDA graphs":
            return WholeStepGraph(model, self.batches, "default")
        modes = {"ours eager": None, "ours compiled": "default",
                 "ours reduce-overhead": "reduce-overhead"}
        return Training(model, self.batches, modes[way])

    def __call__(self, way: str | None = None, seconds: float = 0.5) -> dict[str, Any]:
        if way is None:
            return {"report": self.report}
        training = self.ways[way]
        sync()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for _ in range(CHUNK):
                loss = training.step()
            sync()
            steps += CHUNK
        return {"steps": steps, "work_sec": time.perf_counter() - started, "loss": loss.item()}


# -- kernels alone -----------------------------------------------------------------------------

def clock(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds of one call, and on CUDA the memory it takes above what was there."""
    cuda = device().type == "cuda"
    work()
    sync()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    sync()
    ms = 1000 * (time.perf_counter() - started) / repeats
    return {"ms": ms, "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6 if cuda else 0}


class MatrixRate:
    """Square products in bf16 (float32 on a CPU): the rate that nothing here can exceed."""

    def __init__(self, size: int) -> None:
        dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
        self.size, self.a = size, torch.randn(size, size, device=device(), dtype=dtype)

    def __call__(self) -> dict[str, float]:
        ms = clock(lambda: self.a @ self.a, 20)["ms"]
        return {"flops_per_sec": 2 * self.size ** 3 / ms * 1000}


class Heads:
    """Head and cross-entropy, forward and backward, by implementation."""

    def __init__(self, tokens: int, d: int, v: int) -> None:
        self.h = torch.randn(1, tokens, d, device=device(), requires_grad=True)
        self.w = (0.02 * torch.randn(v, d, device=device())).requires_grad_()
        self.y = torch.randint(v, (1, tokens), device=device())
        self.compiled = compiled(self.loss)

    @staticmethod
    def loss(h: Tensor, w: Tensor, y: Tensor, impl: str) -> Tensor:
        from slm.loss import lm_loss
        with autocast():
            return lm_loss(h, w, y, impl)

    def __call__(self, name: str) -> dict[str, Any]:
        impl, _, how = name.partition(" ")
        if impl == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
            return {"skipped": f"torch {torch.__version__} has no F.linear_cross_entropy"}
        loss = self.compiled if how == "compiled" else self.loss

        def work() -> None:
            self.h.grad = self.w.grad = None
            loss(self.h, self.w, self.y, impl).backward()
        return clock(work, 10)


class Attention:
    """Causal attention, forward and backward, by kernel."""

    def __init__(self, b: int, h: int, t: int, k: int) -> None:
        dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
        self.qkv = [torch.randn(b, h, t, k, device=device(), dtype=dtype, requires_grad=True)
                    for _ in range(3)]

    def __call__(self, kernel: str) -> dict[str, Any]:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        if kernel == "cuDNN" and device().type != "cuda":
            return {"skipped": "needs CUDA"}
        backend = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[kernel]

        def work() -> None:
            with sdpa_kernel([backend]):
                out = torch.nn.functional.scaled_dot_product_attention(*self.qkv, is_causal=True)
            out.backward(out.detach())
        return clock(work, 10)


class MuonWays:
    """One optimiser step on the hidden matrices of a model: stacked by shape (slm.muon), looped
    over matrices, torch's own."""

    def __init__(self, n_layer: int, d: int) -> None:
        shapes = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * n_layer
        self.params = [torch.nn.Parameter(torch.randn(s, device=device())) for s in shapes]
        for p in self.params:
            p.grad = torch.randn_like(p)

    def __call__(self, name: str) -> dict[str, Any]:
        from slm.muon import Muon
        if name == "torch.optim.Muon":
            if not hasattr(torch.optim, "Muon"):
                return {"skipped": f"torch {torch.__version__} has no torch.optim.Muon"}
            return clock(torch.optim.Muon(self.params, lr=1e-4).step, 3)
        groups = [self.params] if name == "stacked" else [[p] for p in self.params]
        optimizers = [Muon([{"params": g, "muon": True}], lr=1e-4) for g in groups]
        return clock(lambda: [o.step() for o in optimizers], 3)
