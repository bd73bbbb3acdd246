"""What is chosen for the user on devices that are not here: CUDA is played by stand-ins."""
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm import checkpoint, device, loader
from slm.device import Machine, is_out_of_memory, peak_flops, setup
from slm.errors import UserError
from slm.schema import Device


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA A100-PCIE-40GB", 312e12), ("NVIDIA GeForce RTX 4090", 165e12), ("Tesla T4", 65e12),
    ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("NVIDIA RTX A1000", None), ("T400", None),
    ("NVIDIA H100 PCIe", None), ("NVIDIA H200 NVL", None), ("NVIDIA GeForce RTX 4090 D", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None)])
def test_the_peak_is_that_of_this_very_gpu_or_unknown(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: name)
    assert peak_flops(Machine(torch.device("cuda"), "bf16", True)) == peak
    assert peak_flops(Machine(torch.device("cuda"), "fp32", True)) is None


@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
                                   {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}])
def test_the_allocator_is_told_before_the_first_question_to_a_gpu(monkeypatch, given):
    """Its settings are read once. Of the two names the older wins, so only one may be set."""
    names, seen = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), []
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def available():
        seen.append({n: os.environ[n] for n in names if n in os.environ})
        return False
    monkeypatch.setattr(torch.cuda, "is_available", available)
    setup(Device())
    assert seen[0] == (given or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


@pytest.mark.parametrize("triton, capability, compiles, says", [
    (object(), (9, 0), True, "compile on"), (None, (9, 0), False, "no triton"),
    (object(), (6, 1), False, "too old")])
def test_compile_is_chosen_where_it_can_work(monkeypatch, triton, capability, compiles, says):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capability)
    reasons = []
    assert device.choose_compile("auto", torch.device("cuda"), reasons) == compiles
    assert says in reasons[0]


def test_threads_are_said_with_their_true_reason(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "abc")
    assert any("torch's choice" in r for r in setup(Device()).reasons)
    before = torch.get_num_threads()
    try:
        said = setup(Device(threads=500)).reasons
    finally:
        torch.set_num_threads(before)
    assert any("threads 500" in r and "slow" in r for r in said)


@pytest.mark.parametrize("error, out", [
    (torch.OutOfMemoryError("x"), True), (MemoryError(), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("CUDA error: out of memory"), True), (RuntimeError("shape"), False),
    (ValueError("can't allocate memory"), False)])
def test_out_of_memory_in_all_its_forms(error, out):
    assert is_out_of_memory(error) == out


def test_a_checkpoint_for_which_memory_is_too_small_is_not_called_broken(monkeypatch, tmp_path):
    """The advice for a broken one is to remove it."""
    checkpoint.save(tmp_path / "step-00000001.pt", {"step": 1})

    def load(*args, **kw):
        raise torch.OutOfMemoryError("no more")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.load(tmp_path / "step-00000001.pt")
    monkeypatch.setattr(torch, "load", lambda *a, **kw: 1 / 0)
    with pytest.raises(UserError, match="remove it"):
        checkpoint.load(tmp_path / "step-00000001.pt")


@pytest.mark.parametrize("free, fraction, fits", [(2**30, 1.0, True), (2**20, 1.0, False),
                                                  (2**30, 0.001, False)])
def test_data_go_to_the_gpu_only_within_this_processs_share(monkeypatch, free, fraction, fits):
    cuda = SimpleNamespace(
        mem_get_info=lambda d: (free, 2**30),
        get_per_process_memory_fraction=lambda d: fraction)
    monkeypatch.setattr(loader.torch, "cuda", cuda)
    monkeypatch.setattr(loader.torch, "empty", lambda n, device, dtype: torch.zeros(n, dtype=dtype))
    found = loader._upload(np.arange(2**19, dtype=np.uint32), torch.device("cuda"))
    assert (found is not None) == fits and (not fits or found[-1] == 2**19 - 1)
