"""Filling a layer's working sets: sinks, selected tokens and the ring, in one launch."""

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.narrow import largest
from hetero_sglang.ops.base import LayerBuffers
from hetero_sglang.ops.triton.narrow import narrowed


@triton.jit(do_not_specialize=["length", "sink", "ring", "widest", "k_stride", "v_stride", "stored"])
def _fill(
    keys, values, heads, slots, selected, scores, cap, page_start, page_list, hot_k, hot_v, position, score,
    length, sink, ring, widest, k_stride, v_stride, stored,
    D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, HOST: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """K and V lie in `keys` and `values`, or all heads' in the host store, which is `keys`, at `slots`."""
    compressed = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(tl.load(cap + compressed), length)
    here = row < rows
    full = rows < length
    turning = tl.maximum(tl.minimum(rows - sink, ring), 1)
    begin = rows - turning
    chosen = here & full & (row >= sink) & (row < begin)
    picked = tl.load(selected + compressed.to(tl.int64) * widest + row - sink, mask=chosen, other=0)
    oldest = length - turning
    recent = oldest + (row - begin - (oldest - rows) % turning + turning) % turning
    token = tl.where(chosen, picked, tl.where(full & (row >= begin), recent, row)).to(tl.int64)
    weight = tl.load(scores + compressed.to(tl.int64) * length + token, mask=here & full, other=0.0)
    page = tl.load(page_list + tl.load(page_start + compressed) + row // P, mask=here, other=0).to(tl.int64)
    flat = page * P + row % P
    tl.store(position + flat, token.to(tl.int32), mask=here)
    tl.store(score + flat, weight, mask=here)
    head = tl.load(heads + compressed).to(tl.int64)
    if HOST:
        slot = tl.load(slots + token, mask=here, other=0).to(tl.int64)
        their_k = ((slot // BLOCK * stored + compressed) * BLOCK + slot % BLOCK) * (D + DV)
        their_v = their_k + D
    else:
        their_k, their_v = token * k_stride + head * D, token * v_stride + head * DV
    at = tl.arange(0, BLOCK_D)
    both = here[:, None] & (at < D)[None, :]
    key = narrowed(tl.load(keys + their_k[:, None] + at[None, :], mask=both), MOST)
    tl.store(hot_k + flat[:, None] * D + at[None, :], key, mask=both)
    at = tl.arange(0, BLOCK_DV)
    both = here[:, None] & (at < DV)[None, :]
    value = narrowed(tl.load(values + their_v[:, None] + at[None, :], mask=both), MOST)
    tl.store(hot_v + flat[:, None] * DV + at[None, :], value, mask=both)


def fill(
    layer: LayerBuffers,
    heads: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    selected: torch.Tensor,
    scores: torch.Tensor,
    cap: torch.Tensor,
    page_start: torch.Tensor,
    page_list: torch.Tensor,
    most: int,
    sink: int,
    ring: int,
) -> None:
    """Place the rows of one request's compressed heads `heads` [C] int32 of this layer.

    keys [L, H, D], values [L, H, Dv] of all its tokens; selected [C, n] int32: each head's chosen positions,
    ascending, as many as its cap leaves (the rest is not read); scores [C, L] float32, kept with every row of a full
    head; cap, page_start [C] int32; `most`: the largest cap. A head whose cap reaches L gets every token."""
    length, _, dim = keys.shape
    strides = keys.stride(0), values.stride(0), 0
    tables = cap, page_start, page_list
    _launch(layer, heads, keys, values, heads, selected, scores, *tables, length, most, sink, ring, strides, dim, False)


def restore(
    layer: LayerBuffers, slots: torch.Tensor, length: int, selected: torch.Tensor, scores: torch.Tensor,
    cap: torch.Tensor, page_start: torch.Tensor, page_list: torch.Tensor, most: int, sink: int, ring: int,
) -> None:  # fmt: skip
    """As `fill`, for all of the layer's compressed heads, from the host store: `slots` [>= L] of a request's tokens, of
    which `length` are there."""
    host, dim = layer.host, layer.hot_k.shape[2]
    strides, tables = (0, 0, host.shape[1]), (cap, page_start, page_list)
    _launch(
        layer, layer.heads, host, host, slots, selected, scores, *tables, length, most, sink, ring, strides, dim, True
    )


def _launch(
    layer: LayerBuffers, heads: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor,
    selected: torch.Tensor, scores: torch.Tensor, cap: torch.Tensor, page_start: torch.Tensor, page_list: torch.Tensor,
    length: int, most: int, sink: int, ring: int, strides: tuple[int, int, int], dim: int, from_host: bool,
) -> None:  # fmt: skip
    rows, v_dim = 32, layer.hot_v.shape[2]
    if length == 0:
        return
    _fill[(heads.numel(), triton.cdiv(min(most, length), rows))](
        keys, values, heads, slots, selected, scores, cap, page_start, page_list, layer.hot_k, layer.hot_v,
        layer.position, layer.score, length, sink, ring, selected.shape[1], *strides,
        D=dim, DV=v_dim, P=layer.hot_k.shape[1], ROWS=rows, HOST=from_host, BLOCK=BLOCK,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        MOST=0.0 if from_host else largest(layer.hot_k.dtype),
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "first", "requests_stride", "k_stride", "v_stride"])
def _hold(
    k, v, heads, request, token, page_start, page_list, hot_k, hot_v, position, score, n, first, requests_stride,
    k_stride, v_stride,
    D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    compressed, new = tl.program_id(1), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = tl.load(request + new, mask=new < n, other=-1)
    here, row = mine >= 0, tl.load(token + new, mask=new < n, other=0)
    start = tl.load(page_start + mine.to(tl.int64) * requests_stride + first + compressed, mask=here, other=0)
    flat = tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64) * P + row % P
    tl.store(position + flat, row, mask=here)
    tl.store(score + flat, tl.zeros([ROWS], tl.float32), mask=here)
    head, new = tl.load(heads + compressed), new.to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    both = here[:, None] & (at < D)[None, :]
    key = narrowed(tl.load(k + new[:, None] * k_stride + head * D + at[None, :], mask=both), MOST)
    tl.store(hot_k + flat[:, None] * D + at[None, :], key, mask=both)
    at = tl.arange(0, BLOCK_DV)
    both = here[:, None] & (at < DV)[None, :]
    value = narrowed(tl.load(v + new[:, None] * v_stride + head * DV + at[None, :], mask=both), MOST)
    tl.store(hot_v + flat[:, None] * DV + at[None, :], value, mask=both)


def hold(
    layer: LayerBuffers, k: torch.Tensor, v: torch.Tensor, request: torch.Tensor, token: torch.Tensor,
    page_start: torch.Tensor, page_list: torch.Tensor,
) -> None:  # fmt: skip
    """Place new tokens k [n, H, D], v [n, H, Dv] of requests whose heads hold every token of theirs.

    `request` [n] int32: their slots, -1 of those that are left out; `token` [n] int32: which of the request's each is;
    page_start [requests, Hc] int32."""
    n, _, dim = k.shape
    v_dim, rows = v.shape[2], 32
    if n == 0:
        return
    _hold[(triton.cdiv(n, rows), layer.heads.numel())](
        k, v, layer.heads, request, token, page_start, page_list, layer.hot_k, layer.hot_v, layer.position, layer.score,
        n, layer.first, page_start.stride(0), k.stride(0), v.stride(0), D=dim, DV=v_dim, P=layer.hot_k.shape[1],
        ROWS=rows, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        MOST=largest(layer.hot_k.dtype),
    )  # fmt: skip
