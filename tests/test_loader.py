"""Loader: a pure function of (seed, i); validation: each token once, with what it may see."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm.errors import ImpossiblePoint, UserError
from slm.loader import Loader, validation


def numbered(n: int, dtype=np.uint16) -> np.ndarray:
    """Tokens that are their own positions."""
    return np.arange(n).astype(dtype)


def epoch_of(loader: Loader, epoch: int) -> np.ndarray:
    """The windows of one epoch, for a batch size of one: (windows, t)."""
    n = loader.windows
    return torch.cat([loader.batch(i)[0] for i in range(epoch * n, epoch * n + n)]).numpy()


@pytest.mark.parametrize("n", [17, 31, 32, 33, 64, 1000, 1007])
def test_an_epoch_sees_each_window_once(n):
    block = 16
    loader = Loader(numbered(n), block, 1, seed=5)
    for epoch in range(4):
        rows = epoch_of(loader, epoch)
        starts = np.sort(rows[:, 0])
        assert (np.diff(starts) == block).all()  # no overlap, no gap, no repetition
        assert 0 <= starts[0] and starts[-1] + block < n
        assert starts[0] < block
        assert n - rows.size <= 2 * block  # hardly any token is left out
        assert loader.epoch_tokens == rows.size


def test_epochs_differ_in_offset_and_order():
    loader = Loader(numbered(4000), 16, 1, seed=0)
    firsts = [epoch_of(loader, e) for e in range(6)]
    assert len({int(rows.min()) for rows in firsts}) > 2
    assert len({tuple(np.argsort(rows[:, 0])[:5]) for rows in firsts}) == 6
    other = epoch_of(Loader(numbered(4000), 16, 1, seed=1), 0)
    assert not np.array_equal(other, firsts[0])


@pytest.mark.parametrize("dtype, n", [(np.uint16, 60_000), (np.uint32, 200_000)])
def test_targets_are_the_next_tokens(dtype, n):
    loader = Loader(numbered(n, dtype), 32, 8, seed=0)
    for i in (0, 3, 999, 10**6):
        x, y = loader.batch(i)
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (8, 32)
        assert x.is_contiguous() and y.is_contiguous()
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(32))


def test_batch_is_a_pure_function():
    """Whatever was asked before, and whatever else draws random numbers."""
    one = Loader(numbered(500), 8, 6, seed=1)
    straight = [one.batch(i) for i in range(60)]  # six epochs, batches across their borders
    two = Loader(numbered(500), 8, 6, seed=1)
    for i in (59, 0, 30, 3, 58, 29, 10):
        torch.manual_seed(i)
        np.random.seed(i)
        torch.rand(3)
        for a, b in zip(two.batch(i), straight[i]):
            assert torch.equal(a, b)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_same_batch(world):
    whole = Loader(numbered(500), 8, 8, seed=1)
    ranks = [Loader(numbered(500), 8, 8, 1, rank, world) for rank in range(world)]
    for i in range(25):
        for k in (0, 1):
            assert torch.equal(torch.cat([r.batch(i)[k] for r in ranks]), whole.batch(i)[k])


def test_batches_larger_than_an_epoch():
    loader = Loader(numbered(100), 8, 64, seed=0)
    x, _ = loader.batch(0)
    single = Loader(numbered(100), 8, 1, seed=0)
    assert torch.equal(x, torch.cat([single.batch(i)[0] for i in range(64)]))


def test_order_is_pinned():
    """A change here changes every run that is resumed after it."""
    loader = Loader(numbered(1000), 16, 4, seed=0)
    assert loader.starts(0).tolist() == [175, 47, 319, 207]
    assert loader.starts(100).tolist() == [556, 428, 652, 76]


def test_too_little_text_or_too_many_ranks():
    Loader(numbered(17), 16, 1, 0).batch(3)
    with pytest.raises(ImpossiblePoint, match="block_size = 16: longer than the training data"):
        Loader(numbered(16), 16, 1, 0)
    with pytest.raises(UserError, match="can't be shared by 3"):
        Loader(numbered(100), 16, 8, 0, world=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_gpu_gives_the_same_batches(dtype, monkeypatch):
    tokens = numbered(60_000, dtype)
    here = Loader(tokens, 32, 8, seed=0)
    resident = Loader(tokens, 32, 8, seed=0, device="cuda")
    monkeypatch.setattr("slm.loader.RESIDENT_FRACTION", 0.0)
    copied = Loader(tokens, 32, 8, seed=0, device="cuda")
    assert resident._resident is not None and copied._resident is None
    for i in (0, 1, 500):
        for a, b, c in zip(here.batch(i), resident.batch(i), copied.batch(i)):
            assert b.device.type == "cuda" and torch.equal(a, b.cpu()) and torch.equal(a, c.cpu())


# -- validation --------------------------------------------------------------------------------

EOT = 0


def prepared(lengths: list[int], surprisal: bool = True, exact: int = 1) -> SimpleNamespace:
    """Documents of given lengths whose tokens are 1, 2, 3, ... throughout; a token's bytes are
    its number modulo 5."""
    ids, at = [], 1
    for n in lengths:
        ids += [*range(at, at + n), EOT]
        at += n
    token_bytes = np.arange(at, dtype=np.int32) % 5
    total = int(token_bytes[ids].sum())
    meta = {"eot": EOT, "val": {"bytes": total * exact, "token_bytes": total}}
    return SimpleNamespace(
        val=np.array(ids, dtype=np.uint16), meta=meta,
        tokenizer=SimpleNamespace(token_bytes=lambda: token_bytes),
        val_surprisal=np.arange(1.0, len(lengths) + 1) if surprisal else None)


LENGTHS = [3, 1, 40, 8, 7, 9, 16, 15, 17, 100, 2, 8]


@pytest.mark.parametrize("block", [1, 2, 3, 8, 16, 64, 256])
@pytest.mark.parametrize("batch_tokens", [1, 64, 10_000])
def test_stories_count_each_token_once_after_its_own_past(block, batch_tokens):
    p = prepared(LENGTHS)
    v = validation(p, "stories", block, batch_tokens=batch_tokens)
    first = {int(t) for t in 1 + np.cumsum([0, *LENGTHS[:-1]])}  # each document's first token
    last = {int(t) for t in np.cumsum(LENGTHS)}
    targets, closed = [], []
    for x, y in v.batches:
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape and x.shape[1] <= block
        assert x.shape[0] == 1 or x.numel() <= batch_tokens
        for r, c in (y >= 0).nonzero().tolist():
            target, before = int(y[r, c]), int(x[r, c])
            begin = max([0, *(x[r, :c + 1] == EOT).nonzero().flatten().tolist()])
            assert begin == 0  # the row belongs to one document
            if target == EOT:
                assert before in last
                closed.append(before)
                continue
            targets.append(target)
            assert before == (EOT if target in first else target - 1)
            n_before = target - max(t for t in first if t <= target) + 1  # eot and own tokens
            assert c + 1 >= min(n_before, (block + 1) // 2)  # at least half a block of context
    assert sorted(targets) == list(range(1, sum(LENGTHS) + 1))
    assert sorted(closed) == sorted(last)
    assert (v.tokens, v.documents) == (len(p.val), len(LENGTHS))
    assert v.bytes == p.meta["val"]["bytes"]
    assert v.surprisal_nats == sum(range(1, len(LENGTHS) + 1))


def test_stories_up_to_a_number_of_tokens():
    p = prepared(LENGTHS)
    ends = np.cumsum([n + 1 for n in LENGTHS])
    for k, end in enumerate(ends, 1):
        for more in (0, 1):  # the next document has at least two tokens with its eot
            v = validation(p, "stories", 16, max_tokens=int(end) + more)
            assert (v.documents, v.tokens) == (k, end)
            assert v.surprisal_nats == k * (k + 1) / 2
    assert validation(p, "stories", 16, max_tokens=2).documents == 1  # at least one
    assert validation(prepared(LENGTHS, surprisal=False), "stories", 16).surprisal_nats is None


def test_padding_is_little_and_never_counted():
    rng = np.random.default_rng(0)
    p = prepared(rng.integers(5, 120, 300).tolist())
    v = validation(p, "stories", 128, batch_tokens=2048)
    assert sum(x.numel() for x, _ in v.batches) < 1.15 * v.tokens
    assert sum(int((y >= 0).sum()) for _, y in v.batches) == v.tokens


def test_windows_side_by_side():
    p = prepared([999], surprisal=True)
    v = validation(p, "windows", 16, batch_tokens=100)
    assert torch.equal(torch.cat([x.flatten() for x, _ in v.batches]), torch.arange(1, 993))
    assert all(torch.equal(y, x + 1) for x, y in v.batches)
    assert v.tokens == 992 and v.documents == 0 and v.surprisal_nats is None
    assert {x.shape[0] for x, _ in v.batches} == {6, 2}
    assert validation(p, "windows", 16, max_tokens=100).tokens == 96
    assert validation(p, "windows", 16, max_tokens=3).tokens == 16
    assert validation(prepared([3, 12, 5]), "windows", 8).documents == 2
    with pytest.raises(ImpossiblePoint, match="longer than the validation data"):
        validation(p, "windows", 1000)
    with pytest.raises(ValueError):
        validation(p, "story", 16)


def test_bytes_of_a_tokenizer_that_counts_otherwise():
    """Where the tokenizer's own count is off, the documents' true bytes are shared out."""
    v = validation(prepared(LENGTHS, exact=3), "stories", 16)
    assert v.bytes == prepared(LENGTHS, exact=3).meta["val"]["bytes"]
