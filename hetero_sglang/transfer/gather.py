"""Worker side: rows of the host store, copied by several threads into staging."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetero_sglang.transfer.protocol import Gather, ProtocolError, Query
from hetero_sglang.transfer.spec import HostLayout

_LEAST_ROWS = 1024  # fewer are copied sooner than a second thread wakes up


@dataclass(frozen=True)
class Piece:
    """Rows [low, high) of a request's slots, all of one head."""

    layer: int
    head: int
    low: int
    high: int


class HostRows:
    """The host store as numpy sees it: rows of opaque words, so that any dtype does."""

    def __init__(self, buffer: mmap.mmap, layout: HostLayout) -> None:
        self.layout = layout
        k_bytes, v_bytes = layout.head_dim * layout.itemsize, layout.v_head_dim * layout.itemsize
        self.word = np.dtype(f"u{math.gcd(k_bytes, v_bytes, 8)}")  # the widest that fits both
        self.k_words = k_bytes // self.word.itemsize  # of a row, V's follow
        slots = -(-layout.rows // layout.block) * layout.block
        self.rows = [
            self._view(buffer, at, slots * heads) for at, heads in zip(layout.offsets, layout.heads, strict=True)
        ]  # per layer [blocks * C * block, words]

    def index(self, layer: int, head: int, slots: np.ndarray) -> np.ndarray:
        """Row numbers in `rows[layer]` [n] int64."""
        block = self.layout.block
        return (slots // block * self.layout.heads[layer] + head) * block + slots % block

    def check(self, items: Sequence[Gather | Query], slots: np.ndarray) -> None:
        """ProtocolError unless every item names a compressed head and every slot a row."""
        for item in items:
            if item.layer >= len(self.layout.heads) or item.head >= self.layout.heads[item.layer]:
                raise ProtocolError(f"layer {item.layer} has no compressed head {item.head}")
        if slots.size and (slots.min() < 0 or slots.max() >= self.layout.rows):
            raise ProtocolError(f"slots must lie in [0, {self.layout.rows})")

    def staging(self, buffer: mmap.mmap, start: int, rows: int) -> np.ndarray:
        """Words [n, words] of the staging segment at row `start`."""
        return self._view(buffer, start * self.layout.row_bytes, rows)

    def copy(self, piece: Piece, slots: np.ndarray, out: np.ndarray) -> None:
        """Fill rows [low, high) of `out` [N, words]; runs without Python's lock."""
        index = self.index(piece.layer, piece.head, slots[piece.low : piece.high])
        # "clip" writes straight to `out`; "raise" would buffer. The slots were checked.
        np.take(self.rows[piece.layer], index, axis=0, out=out[piece.low : piece.high], mode="clip")

    def _view(self, buffer: mmap.mmap, offset: int, rows: int) -> np.ndarray:
        words = self.layout.row_bytes // self.word.itemsize
        flat = np.frombuffer(buffer, self.word, rows * words, offset) if rows else np.empty(0, self.word)
        return flat.reshape(rows, words)


def cut(items: Sequence[Gather], threads: int) -> list[list[Piece]]:
    """Shares of about equal rows, one per thread, each a list of pieces; every row is in one of them."""
    total = sum(item.rows for item in items)
    room = share = max(_LEAST_ROWS, -(-total // threads))
    shares: list[list[Piece]] = [[]]
    end = 0
    for item in items:
        low, end = end, end + item.rows
        while low < end:
            if room == 0:
                shares.append([])
                room = share
            high = min(end, low + room)
            shares[-1].append(Piece(item.layer, item.head, low, high))
            room -= high - low
            low = high
    return shares
