"""Fetched rows from staging to their places in the hot pool, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.hot_pool import HotPool

_ROWS = 16


@triton.jit(do_not_specialize=["total", "k_stride", "v_stride"])
def _publish(
    places, k, v, hot_k, hot_v, position, score, total, k_stride, v_stride,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    row = tl.load(places + number, mask=number < total, other=-1).to(tl.int64)
    there = row >= 0
    here, here_v = there[:, None] & (at < D)[None, :], there[:, None] & (at_v < DV)[None, :]
    token = tl.load(places + total + number, mask=there)
    bits = tl.load(places + 2 * total + number, mask=there)
    came = number.to(tl.int64)[:, None]
    key = tl.load(k + came * k_stride + at[None, :], mask=here)
    value = tl.load(v + came * v_stride + at_v[None, :], mask=here_v)
    tl.store(position + row, token, mask=there)
    tl.store(score + row, bits.to(tl.float32, bitcast=True), mask=there)
    tl.store(hot_k + row[:, None] * D + at[None, :], key, mask=here)
    tl.store(hot_v + row[:, None] * DV + at_v[None, :], value, mask=here_v)


def publish(places: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hot: HotPool) -> None:
    """Row i of k [n, D] and v [n, Dv] goes to the flat hot row places[0, i], or nowhere if that is -1.

    Rows may lie apart; places [3, n] int32: hot rows, positions, and the bits of float32 scores.
    """
    total, dim = k.shape
    v_dim = v.shape[1]
    _publish[(triton.cdiv(total, _ROWS),)](
        places, k, v, hot.k, hot.v, hot.position, hot.score, total, k.stride(0), v.stride(0),
        D=dim, DV=v_dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim), ROWS=_ROWS,
        num_warps=4,
    )  # fmt: skip
