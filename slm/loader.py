"""Token arrays to batches. Training batch i is a pure function of (seed, i): nothing to save,
exact to resume, the same whatever else draws random numbers and however many ranks share it."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slm.cost import CPU_EVAL
from slm.errors import ImpossiblePoint, UserError

RESIDENT_FRACTION = 0.25  # of the GPU memory there is for this process, for the token array
UPLOAD_TOKENS = 2**26
Batch = tuple[Tensor, Tensor]


class Loader:
    """Training batches of shuffled windows, without replacement within an epoch.

    An epoch cuts the tokens into windows of block_size inputs (and one target more), from an
    offset and in an order drawn from (seed, epoch): across epochs the same text meets other
    boundaries. A batch takes the next batch_size windows, on into the next epoch where one ends.

    Args:
        tokens: ids (n_tokens,), uint16 or uint32, perhaps memory-mapped
        batch_size: sequences of the global batch; rank r of `world` gets its r-th contiguous share
        device: where batches go; on CUDA the whole array goes there if it takes less than a
            quarter of the memory this process may have, else each batch is copied asynchronously
    Raises: ImpossiblePoint: fewer tokens than one block and its target; UserError: a batch that
        `world` ranks can't share.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int,
                 rank: int = 0, world: int = 1, device: str | torch.device = "cpu"):
        if len(tokens) <= block_size:
            raise ImpossiblePoint(f"model.block_size = {block_size}: longer than the training "
                                  f"data, which hold {len(tokens)} tokens")
        if batch_size % world:
            raise UserError(f"train.batch_tokens: a batch of {batch_size} sequences can't be "
                            f"shared by {world} processes")
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.batch_size, self.share = batch_size, batch_size // world
        self.rank, self.device = rank, torch.device(device)
        # One window less than fits leaves room for any offset within a block.
        self.windows = max(1, (len(tokens) - block_size) // block_size)
        self.slack = min(block_size, len(tokens) - self.windows * block_size)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}
        self._resident = _upload(tokens, self.device)
        self._arange = torch.arange(block_size + 1, device=self.device)

    @property
    def epoch_tokens(self) -> int:
        """Training tokens (targets) of one epoch."""
        return self.windows * self.block_size

    def batch(self, i: int) -> Batch:
        """Batch i of the run: inputs and targets, int64 (batch_size // world, block_size)."""
        starts = self.starts(i)                                           # (b,)
        if self._resident is not None:
            at = torch.from_numpy(starts).pin_memory().to(self.device, non_blocking=True)
            rows = self._resident[at[:, None] + self._arange]             # (b, t + 1)
            # uint16 has few kernels in torch, so its bits are stored as int16
            rows = rows.long() & 0xFFFF if rows.dtype == torch.int16 else rows.long()
        else:
            rows = gather(self.tokens, starts, self.block_size + 1)       # (b, t + 1)
            if self.device.type == "cuda":
                rows = rows.pin_memory().to(self.device, non_blocking=True)
            else:
                rows = rows.to(self.device)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def starts(self, i: int) -> np.ndarray:
        """Where this rank's windows of batch i begin: int64 (batch_size // world,)."""
        first = i * self.batch_size + self.rank * self.share
        sequence = np.arange(first, first + self.share)
        epoch, position = np.divmod(sequence, self.windows)
        starts = np.empty(self.share, dtype=np.int64)
        for e in np.unique(epoch).tolist():
            offset, order = self._epoch(e)
            here = epoch == e
            starts[here] = offset + order[position[here]].astype(np.int64) * self.block_size
        return starts

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """Offset and order of an epoch's windows; those of two epochs are kept."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            # Raw bits, which numpy promises never to change; Generator.permutation may.
            bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
            offset = int(bits.random_raw() % self.slack)
            order = np.argsort(bits.random_raw(self.windows), kind="stable")
            self._epochs[epoch] = offset, order.astype(np.int32)
        return self._epochs[epoch]


def gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    """tokens[start : start + length] for each start: int64 (len(starts), length)."""
    at = starts[:, None] + np.arange(length)                              # (b, length)
    return torch.from_numpy(np.asarray(tokens[at]).astype(np.int64))


def _upload(tokens: np.ndarray, device: torch.device) -> Tensor | None:
    """The whole array on a GPU where it fits easily, else None."""
    if device.type != "cuda":
        return None
    as_signed = {2: np.int16, 4: np.int32}[tokens.dtype.itemsize]  # ids stay below 2^31
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total   # device.memory_fraction
    if tokens.nbytes > RESIDENT_FRACTION * min(free, share):
        return None
    resident = torch.empty(len(tokens), device=device,
                           dtype={2: torch.int16, 4: torch.int32}[tokens.dtype.itemsize])
    for at in range(0, len(tokens), UPLOAD_TOKENS):
        piece = np.array(tokens[at:at + UPLOAD_TOKENS]).view(as_signed)
        resident[at:at + len(piece)].copy_(torch.from_numpy(piece))
    return resident


@dataclass(frozen=True)
class Validation:
    """Fixed validation batches and what they count.

    Attributes:
        batches: (x, y) int64 (b, t) on the CPU; y is -1 where nothing is counted
        tokens: counted targets
        bytes: UTF-8 bytes that the counted targets stand for (floored at 1)
        documents: documents that end among the counted targets
        surprisal_nats: exact -log p of these documents (mode 'stories', where it is known): the
            floor of the loss is surprisal_nats / tokens
    """

    batches: list[Batch]
    tokens: int
    bytes: int
    documents: int
    surprisal_nats: float | None = None


def validation(prepared, mode: Literal["stories", "windows"], block_size: int,
               max_tokens: int | None = None,
               batch_tokens: int = CPU_EVAL) -> Validation:
    """The first validation tokens, always the same ones, as batches.

    'windows': windows of block_size side by side from the start of the stream. 'stories': whole
    documents, each read from its beginning (eot first) and scored on its own tokens and the eot
    that closes it, so that the entropy of the corpus is a floor that can be reached.

    Args: prepared: slm.prepare.Prepared; max_tokens: at most so many targets (but at least one
        window or document), None for all; batch_tokens: size of a batch, padding included.
    Raises: ImpossiblePoint: fewer validation tokens than a window; ValueError: unknown mode.
    """
    tokens, eot = prepared.val, prepared.meta["eot"]
    if mode == "windows":
        batches = window_batches(tokens, block_size, max_tokens, batch_tokens)
    elif mode == "stories":
        ends = np.flatnonzero(tokens[:max_tokens] == eot) + 1
        if not len(ends):  # the first document is longer than max_tokens
            ends = np.flatnonzero(tokens == eot)[:1] + 1
        batches = story_batches(tokens, ends, eot, block_size, batch_tokens)
    else:
        raise ValueError(f"unknown evaluation mode {mode!r}")
    counted = np.concatenate([y[y >= 0].numpy() for _, y in batches])
    documents = int((counted == eot).sum())
    # A byte-level tokenizer's bytes are exact; others may be off by a little, the same for all.
    part = prepared.meta["val"]
    n_bytes = prepared.tokenizer.token_bytes()[counted].sum(dtype=np.int64)
    n_bytes = round(int(n_bytes) * part["bytes"] / max(1, part["token_bytes"]))
    nats = None
    if mode == "stories" and prepared.val_surprisal is not None:
        nats = float(prepared.val_surprisal[:documents].sum())
    return Validation(batches, len(counted), max(1, n_bytes), documents, nats)


def window_batches(tokens: np.ndarray, block_size: int, max_tokens: int | None,
                   batch_tokens: int) -> list[Batch]:
    """Batches of windows side by side; see validation."""
    n = (len(tokens) - 1) // block_size
    if n < 1:
        raise ImpossiblePoint(f"model.block_size = {block_size}: longer than the validation data, "
                              f"which hold {len(tokens)} tokens")
    n = max(1, min(n, (max_tokens or len(tokens)) // block_size))
    rows = gather(tokens, np.arange(n) * block_size, block_size + 1)      # (n, t + 1)
    b = max(1, batch_tokens // block_size)
    return [(r[:, :-1].contiguous(), r[:, 1:].contiguous()) for r in rows.split(b)]


def story_batches(tokens: np.ndarray, ends: np.ndarray, eot: int, block_size: int,
                  batch_tokens: int) -> list[Batch]:
    """Batches of whole documents; see validation.

    A document longer than a block is read in windows that overlap by half: each of its tokens is
    counted once, and after the first window with at least half a block of context.

    Args: ends: for each document the position after its eot, from the first document on.
    """
    rows: list[tuple[np.ndarray, int]] = []  # ids (n + 1,), and the first position that counts
    step = max(1, block_size // 2)
    begin = 0
    for end in ends.tolist():
        ids = np.concatenate([[eot], tokens[begin:end]]).astype(np.int64)
        n, done = len(ids) - 1, min(block_size, len(ids) - 1)
        rows.append((ids[:done + 1], 0))
        while done < n:
            new = min(done + step, n)
            rows.append((ids[new - block_size:new + 1], block_size - (new - done)))
            done = new
        begin = end
    rows.sort(key=lambda row: len(row[0]))  # stable: rows of like length waste little padding
    batches: list[Batch] = []
    while rows:
        width = len(rows[-1][0]) - 1        # the longest first: memory is tried at once
        b = max(1, batch_tokens // width)
        batches.append(padded(rows[-b:], width, eot))
        del rows[-b:]
    return batches


def padded(rows: list[tuple[np.ndarray, int]], width: int, eot: int) -> Batch:
    """Rows (ids (n + 1,), first position that counts) as one batch (b, width)."""
    x = torch.full((len(rows), width), eot, dtype=torch.int64)
    y = torch.full((len(rows), width), -1, dtype=torch.int64)
    for i, (ids, first) in enumerate(rows):
        x[i, :len(ids) - 1] = torch.from_numpy(ids[:-1])
        y[i, first:len(ids) - 1] = torch.from_numpy(ids[first + 1:])
    return x, y
