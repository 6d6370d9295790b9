"""Where new tokens go: resident store, host store and ring rows of the hot pool, in one launch per layer."""

from dataclasses import fields

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.narrow import largest
from hetero_sglang.ops.base import LayerBuffers, StepTables
from hetero_sglang.ops.triton.early import overlaps
from hetero_sglang.ops.triton.narrow import narrowed


@triton.jit
def ring_row(token, rows, sink, ring):
    """Row of `token` in a head of `rows` rows: twin of cache/working_set.py's."""
    turning = tl.maximum(tl.minimum(rows - sink, ring), 1)
    return tl.where(token < rows, token, rows - turning + (token - rows) % turning)


@triton.jit(do_not_specialize=["resident_heads", "compressed_heads", "first", "caps_per_request", "sink", "ring"])
def _store(
    k, v, slots, role, resident_k, resident_v, host, hot_k, hot_v, position, score,
    length, cap, page_start, page_list, resident_heads, compressed_heads, first, caps_per_request, sink, ring,
    k_stride, v_stride,
    HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr,
    RESIDENT: tl.constexpr, HOST: tl.constexpr, HOT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PDL: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    here, here_v = at < D, at_v < DV
    key = narrowed(tl.load(k + token * k_stride + head * D + at, mask=here), MOST)
    value = narrowed(tl.load(v + token * v_stride + head * DV + at_v, mask=here_v), MOST)
    slot = tl.load(slots + token).to(tl.int64)
    place = tl.load(role + head)
    if place >= 0:
        if RESIDENT:
            row = slot * resident_heads + place
            tl.store(resident_k + row * D + at, key, mask=here)
            tl.store(resident_v + row * DV + at_v, value, mask=here_v)
    else:
        compressed = -1 - place
        if HOST and slot > 0:  # padding's way over the link is spared
            row = (slot // BLOCK * compressed_heads + compressed) * BLOCK + slot % BLOCK
            tl.store(host + row * (D + DV) + at, key, mask=here)
            tl.store(host + row * (D + DV) + D + at_v, value, mask=here_v)
        if HOT:
            number = token * caps_per_request + first + compressed
            rows = tl.load(cap + number)
            last = tl.load(length + token) - 1
            if (rows > 0) & (last >= 0):
                where = ring_row(last, rows, sink, ring)
                page = tl.load(page_list + tl.load(page_start + number) + where // P).to(tl.int64)
                row = page * P + where % P
                tl.store(hot_k + row * D + at, key, mask=here)
                tl.store(hot_v + row * DV + at_v, value, mask=here_v)
                tl.store(position + row, last)
                tl.store(score + row, 0.0)


def store(
    layer: LayerBuffers,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    resident: bool = True,
    host: bool = True,
    step: StepTables | None = None,
    sink: int = 0,
    ring: int = 1,
) -> None:
    """Store k [n, H, D], v [n, H, Dv] of tokens at `slots` [n]; rows may lie apart (engine.rows_apart).

    `step`: the tokens are one per request of a decode step and also go to their ring rows."""
    n, heads, dim = k.shape
    v_dim, page = v.shape[-1], layer.hot_k.shape[1]
    if n == 0:
        return
    tables = step or StepTables(*[slots] * len(fields(StepTables)))
    _store[(n, heads)](
        k, v, slots, layer.role, layer.resident_k, layer.resident_v, layer.host, layer.hot_k, layer.hot_v,
        layer.position, layer.score, tables.length, tables.cap, tables.page_start, tables.page_list,
        layer.resident_k.shape[1], layer.host.shape[1], layer.first, tables.cap.shape[-1], sink, ring, k.stride(0),
        v.stride(0), HEADS=heads, D=dim, DV=v_dim, P=page, RESIDENT=resident and layer.resident_k.shape[1] > 0,
        HOST=host and layer.host.shape[1] > 0, BLOCK=BLOCK, HOT=step is not None, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_DV=triton.next_power_of_2(v_dim), MOST=largest(layer.hot_k.dtype),
        PDL=step is not None and overlaps(k.device), num_warps=1,
    )  # fmt: skip
