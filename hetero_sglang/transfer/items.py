"""What the scheduler asks of the retrieval worker, and what comes back."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from hetero_sglang.transfer import protocol


@dataclass(frozen=True)
class FetchItem:
    """Rows of one head. `head` counts the layer's compressed heads; slots [n] int64, on the CPU."""

    layer: int
    head: int
    slots: np.ndarray | torch.Tensor


@dataclass(frozen=True)
class ScoreItem:
    """The best rows of one head, for queries [G, D] float32 already times the softmax scale.

    `pool` is the (odd) width of the average over neighbouring slots; min(topk, L) rows come back.
    """

    layer: int
    head: int
    query: np.ndarray | torch.Tensor
    topk: int
    pool: int


@dataclass(frozen=True)
class Fetched:
    """K [N, D] and V [N, Dv] of all items, one after the other: views of staging, good until `release`.

    `start`: the first of their staging rows.
    """

    ticket: int
    k: torch.Tensor
    v: torch.Tensor
    start: int = 0


@dataclass(frozen=True)
class Scored:
    """Per item: positions [k] int32 into the slots, ascending, and their scores [k] float32."""

    ticket: int
    positions: list[torch.Tensor]
    scores: list[torch.Tensor]


@dataclass(frozen=True)
class Failed:
    """Nothing came of the request; `reason` is one sentence."""

    ticket: int
    reason: str


Completion: TypeAlias = Fetched | Scored | Failed


@dataclass
class ClientStats:
    """Counted since the client was made; `rows` and `bytes` are those that arrived."""

    fetches: int = 0
    scores: int = 0
    rows: int = 0
    bytes: int = 0
    failed: int = 0
    refused: int = 0
    restarts: int = 0
    worker_up: bool = False
    last_error: str = ""


def slots_of(items: Sequence[FetchItem]) -> np.ndarray:
    """[N] int32 of all items."""
    return np.concatenate([np.empty(0, np.int32), *(np.asarray(item.slots, np.int32) for item in items)])


def queries_of(items: Sequence[ScoreItem]) -> np.ndarray:
    """Flat float32 of all items."""
    return np.concatenate([np.empty(0, np.float32), *(np.asarray(item.query, np.float32).ravel() for item in items)])


def pack_fetch(ticket: int, start: int, items: Sequence[FetchItem]) -> bytes:
    """A fetch to staging row `start`."""
    headers = [protocol.Gather(item.layer, item.head, len(item.slots)) for item in items]
    return protocol.pack(protocol.Fetch(ticket, start, headers))


def pack_score(ticket: int, start: int, length: int, items: Sequence[ScoreItem]) -> bytes:
    """A score request over `length` slots, which lie at byte `start` of the score memory."""
    headers = [protocol.Query(item.layer, item.head, len(item.query), item.topk, item.pool) for item in items]
    return protocol.pack(protocol.Score(ticket, start, length, headers))


def read_scores(
    reply: protocol.Scored, memory: mmap.mmap, start: int, asked: Sequence[tuple[int, int]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Positions and scores per item, `asked` (L, topk) of each. ProtocolError when they cannot be true."""
    if reply.counts != [min(pair) for pair in asked]:
        raise protocol.ProtocolError(f"it scored {reply.counts} rows, not {[min(pair) for pair in asked]}")
    total = sum(reply.counts)
    positions, scores = protocol.get(memory, start, (np.int32, total), (np.float32, total))
    if not np.isfinite(scores).all():
        raise protocol.ProtocolError("its scores are not finite")
    ends = np.cumsum(reply.counts, dtype=np.int64)
    own = np.split(positions, ends)[:-1]  # what follows the last end is empty
    for part, (length, _) in zip(own, asked, strict=True):
        if part.size and (part[0] < 0 or part[-1] >= length or (part[1:] <= part[:-1]).any()):
            raise protocol.ProtocolError("its positions are out of range or not ascending")
    return _tensors(own), _tensors(np.split(scores, ends)[:-1])


def _tensors(parts: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(part) for part in parts]
