"""Worker side: the best rows of a head for a query, read straight from the host store."""

import mmap
from collections.abc import Sequence
from functools import cache

import numpy as np

from hetero_sglang.cache.host_layout import BLOCK, HostLayout
from hetero_sglang.transfer.protocol import ProtocolError, Query

_EIGHT_BITS = {"float8_e4m3fn": (4, 3), "float8_e5m2": (5, 2)}  # bits of exponent and mantissa
_CHUNK = 8192  # rows decoded at a time, which bounds the memory a request takes


class HostKeys:
    """The keys in the host store as numpy sees them: rows of opaque words, so that any dtype does."""

    def __init__(self, buffer: mmap.mmap, layout: HostLayout) -> None:
        self._layout = layout
        slots, width = -(-layout.rows // BLOCK) * BLOCK, layout.head_dim + layout.v_head_dim
        word = np.dtype(f"u{layout.itemsize}")
        self._layers: list[np.ndarray] = []  # [blocks * C * block, D] each
        for at, heads in zip(layout.offsets, layout.heads, strict=True):
            count = slots * heads * width
            flat = np.frombuffer(buffer, word, count, at) if count else np.empty(0, word)
            self._layers.append(flat.reshape(-1, width)[:, : layout.head_dim])

    def check(self, items: Sequence[Query], slots: np.ndarray) -> None:
        """ProtocolError unless every item names a compressed head and every slot [L] a row."""
        heads, rows = self._layout.heads, self._layout.rows
        for item in items:
            if item.layer >= len(heads) or item.head >= heads[item.layer]:
                raise ProtocolError(f"layer {item.layer} has no compressed head {item.head}")
        if slots.size and (slots.min() < 0 or slots.max() >= rows):
            raise ProtocolError(f"slots must lie in [0, {rows})")

    def read(self, layer: int, head: int, slots: np.ndarray) -> np.ndarray:
        """[n, D] float32 of `slots` [n], all checked. ProtocolError for a dtype that cannot be scored."""
        rows = (slots // BLOCK * self._layout.heads[layer] + head) * BLOCK + slots % BLOCK
        return to_float32(self._layers[layer][rows], self._layout.dtype)


def score(
    keys: HostKeys, slots: np.ndarray, pool: int, item: Query, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions [k] int32 into `slots` [L] int64 of the best rows, ascending, and their scores [k] float32.

    query: [G, D] float32, already times the softmax scale. A row's score is max over G of avg_pool(softmax over L),
    SnapKV's rule; k = min(topk, L). ProtocolError when that is no number."""
    if pool % 2 == 0:
        raise ProtocolError(f"the pooling kernel must be odd, not {pool}")
    logits = np.empty((len(query), len(slots)), np.float32)  # [G, L]
    with np.errstate(all="ignore"):  # what is not finite is refused once, below
        for low in range(0, len(slots), _CHUNK):
            part = keys.read(item.layer, item.head, slots[low : low + _CHUNK])
            np.matmul(query, part.T, out=logits[:, low : low + _CHUNK])
        pooled = average(softmax(logits), pool).max(axis=0, initial=0.0)  # [L]
    if not np.isfinite(pooled).all():
        raise ProtocolError("the scores are not finite")
    positions = best(pooled, item.topk)
    return positions.astype(np.int32), pooled[positions].astype(np.float32)


def to_float32(words: np.ndarray, dtype: str) -> np.ndarray:
    """[n, D] float32 of [n, D] words. ProtocolError for a dtype that cannot be scored."""
    if dtype == "bfloat16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("float16", "float32"):
        return words.view(dtype).astype(np.float32, copy=False)
    if dtype in _EIGHT_BITS:
        return _numbers(*_EIGHT_BITS[dtype])[words]
    raise ProtocolError(f"{dtype} keys cannot be scored")


@cache
def _numbers(exponent: int, mantissa: int) -> np.ndarray:
    """What each of 256 bytes stands for: a sign, then so many bits of exponent and mantissa."""
    byte = np.arange(256)
    power, part = byte >> mantissa & (1 << exponent) - 1, byte & (1 << mantissa) - 1
    bias = (1 << exponent - 1) - 1
    value = np.where(
        power > 0, (1 + part / (1 << mantissa)) * 2.0 ** (power - bias), part / (1 << mantissa) * 2.0 ** (1 - bias)
    )
    last = (1 << exponent) - 1
    if exponent == 5:  # as in IEEE's formats; float8_e4m3fn has one NaN and no infinity
        value = np.where(power == last, np.where(part == 0, np.inf, np.nan), value)
    else:
        value = np.where(byte & 0x7F == 0x7F, np.nan, value)
    return np.where(byte < 128, value, -value).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, [G, L]."""
    if logits.shape[-1] == 0:
        return logits
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def average(weights: np.ndarray, pool: int) -> np.ndarray:
    """Mean over a centred window of `pool` neighbours on the last axis; at the ends over those there are."""
    if pool == 1:
        return weights
    length = weights.shape[-1]
    sums = np.zeros((*weights.shape[:-1], length + 1))  # [G, L + 1], float64: differences of sums stay exact
    np.cumsum(weights, axis=-1, out=sums[..., 1:])
    at = np.arange(length)
    low, high = np.maximum(at - pool // 2, 0), np.minimum(at + pool // 2 + 1, length)
    return (sums[..., high] - sums[..., low]) / (high - low)


def best(scores: np.ndarray, topk: int) -> np.ndarray:
    """Positions [min(topk, L)] of the highest scores, ascending; of equal ones the first."""
    count = min(topk, len(scores))
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    tied = np.flatnonzero(scores == least)[: count - len(above)]
    return np.sort(np.concatenate([above, tied]))
