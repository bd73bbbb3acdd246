"""Device, precision, compile, threads, memory, ranks: each chosen once, printed with its reason."""
from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from slm.errors import UserError
from slm.schema import Device as DeviceSpec

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's parameters, from glibc's malloc.h


@dataclass
class Machine:
    """Where a run trains. reasons: one line for each choice that was made for the user."""
    device: torch.device
    precision: str                 # fp32 | tf32 | bf16 | fp16
    compile: bool
    rank: int = 0
    world: int = 1
    reasons: list[str] = field(default_factory=list)

    @property
    def type(self) -> str:
        return self.device.type

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager:
        """Mixed precision for a forward pass; a no-op in fp32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.type, dtype=dtype, enabled=dtype is not None)

    def clock(self) -> float:
        """Now, in seconds, when the device has done what it was asked: else a measurement would be
        charged for what came before it."""
        if self.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()

    def name(self) -> str:
        """The hardware's own name, as in 'NVIDIA H200' or 'AMD EPYC 7B13'."""
        if self.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return cpu_name() if self.type == "cpu" else self.type


# Dense peak of one GPU in its mixed precision (no sparsity), FLOP/s, from the makers' data sheets.
# A slice of a GPU and the slower builds of some have the same word in their names.
OTHER_BUILDS = re.compile(r"PCIe|NVL|MIG|Laptop|Max-Q|\bD\b")
PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
              "RTX 4090": 165e12, "RTX 3090": 71e12, "A10": 125e12, "V100": 125e12, "T4": 65e12}


def peak_flops(machine: Machine) -> float | None:
    """The GPU's dense peak in bf16 or fp16, FLOP/s; None where it is not known: no MFU is better
    than a wrong one."""
    if machine.type != "cuda" or machine.precision not in ("bf16", "fp16"):
        return None
    name = machine.name()
    if OTHER_BUILDS.search(name):
        return None
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
        return f"{names[0]} ({os.cpu_count()} threads)"
    except (OSError, IndexError):
        import platform
        return platform.processor() or platform.machine()


def setup(spec: DeviceSpec) -> Machine:
    """Choose and prepare the machine. Raises UserError for what is not there."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    reasons: list[str] = []
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        # against fragmentation; read once, at the first question that is asked of a GPU
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    device = choose_device(spec.name, reasons)
    machine = Machine(device, choose_precision(spec.precision, device, reasons),
                      choose_compile(spec.compile, device, reasons), rank, world, reasons)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if device.type == "cuda":
        setup_cuda(spec, machine, reasons)
    elif spec.memory_fraction:
        raise UserError(f"device.memory_fraction = {spec.memory_fraction}: reserves GPU memory, "
                        f"but the device is {device.type}")
    if device.type == "cpu":
        threads, cores = torch.get_num_threads(), os.cpu_count() or 1
        why = "device.threads" if spec.threads else "OMP_NUM_THREADS" \
            if os.environ.get("OMP_NUM_THREADS") == str(threads) else "torch's choice"
        reasons.append(f"threads {threads} ({why}"
                       + (f": slow, this machine has {cores} cores)" if threads > cores else ")"))
        if spec.malloc and tune_malloc():
            reasons.append("malloc keeps freed memory (1.3x at a 50k vocabulary; "
                           "--device.malloc=false for less memory)")
    if spec.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        reasons.append("kernels deterministic (device.deterministic)")
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        reasons.append(f"{world} processes under torchrun, each with 1/{world} of the batch")
    return machine


def choose_device(name: str, reasons: list[str]) -> torch.device:
    mps = getattr(torch.backends, "mps", None) and torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        why = {"cuda": "a GPU is here", "mps": "Apple GPU", "cpu": "no GPU found"}[name]
        reasons.append(f"device {name} ({why})")
    else:
        reasons.append(f"device {name} (device.name)")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UserError(f"device.name = {name!r}: should be auto, cpu, cuda, cuda:<i> or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device.name = {name!r}: torch sees no CUDA GPU here; use auto or cpu")
    if kind == "mps" and not mps:
        raise UserError(f"device.name = {name!r}: torch sees no Apple GPU here; use auto or cpu")
    if kind == "cuda":
        index = int(index or os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            raise UserError(f"device.name = {name!r}: GPU {index} asked for, but torch sees "
                            f"{torch.cuda.device_count()} (0 to {torch.cuda.device_count() - 1})")
        return torch.device("cuda", index)
    return torch.device(kind)


def choose_precision(asked: str, device: torch.device, reasons: list[str]) -> str:
    """auto: bf16 on a GPU that computes in it, fp16 on older GPUs, fp32 elsewhere (bf16 on a CPU
    without AMX or AVX512-BF16 is emulated: 15 times slower than fp32, measured)."""
    if asked == "auto":
        if device.type == "cuda":
            # is_bf16_supported counts emulation as support; compute capability 8.0 is the hardware
            native = torch.cuda.get_device_capability(device) >= (8, 0)
            precision = "bf16" if native else "fp16"
            why = "the GPU computes in it" if native else "an older GPU, with a GradScaler"
        else:
            precision, why = "fp32", "no mixed precision that pays on this device"
        reasons.append(f"precision {precision} ({why})")
        return precision
    if asked in ("fp16", "tf32") and device.type != "cuda":
        raise UserError(f"device.precision = {asked}: needs a CUDA GPU, the device is "
                        f"{device.type}; use auto")
    slow = asked == "bf16" and device.type == "cpu" and not cpu_computes_bf16()
    reasons.append(f"precision {asked} (device.precision)"
                   + (": emulated on this CPU, about 15 times slower than fp32" if slow else ""))
    return asked


def cpu_computes_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_compile(asked: str | bool, device: torch.device, reasons: list[str]) -> bool:
    if asked != "auto":
        reasons.append(f"compile {'on' if asked else 'off'} (device.compile)")
        return bool(asked)
    if device.type != "cuda":
        reasons.append("compile off (it wins nothing on this device)")
        return False
    missing = ""
    if importlib.util.find_spec("triton") is None:
        missing = "no triton here"
    elif torch.cuda.get_device_capability(device) < (7, 0):
        missing = "this GPU is too old for triton"
    reasons.append(f"compile off ({missing})" if missing else "compile on (CUDA)")
    return not missing


def setup_cuda(spec: DeviceSpec, machine: Machine, reasons: list[str]) -> None:
    """GPU memory reservation and matmul settings; must precede the first allocation."""
    if not spec.deterministic:
        reasons.append("kernels as fast as they come: a run that is killed and continued ends with "
                       "other last bits (--device.deterministic=true: with the same)")
    device = machine.device
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest" if machine.precision == "fp32" else "high")
    if spec.memory_fraction:
        torch.cuda.set_per_process_memory_fraction(spec.memory_fraction, device)
        total = torch.cuda.get_device_properties(device).total_memory
        reasons.append(f"GPU memory limited to {spec.memory_fraction * total / 2**30:.1f} GiB "
                       "(device.memory_fraction)")


def is_out_of_memory(e: Exception) -> bool:
    """Whether a device's or the machine's memory has run out. torch says so in several ways."""
    return isinstance(e, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(e, RuntimeError)
        and any(said in str(e) for said in ("can't allocate memory", "CUDA error: out of memory")))


def tune_malloc() -> bool:
    """Let glibc keep large freed blocks instead of returning them to the kernel: a step at a 50k
    vocabulary otherwise takes 374,000 page faults (1.3-1.4x slower, measured). False elsewhere."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
