"""A decode step's new rows, from ring rows of the hot pool to the host store: all layers and requests in one launch.

`locate` runs between two steps, on their stream, while the step's tables are still there; `write_back` beside the
next step."""

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.base import HostPlaces, NewRows, StepTables
from hetero_sglang.ops.triton.store import ring_row

_PROGRAMS = 16  # enough for the link to the host; more would hold the next step's programs up
_ROWS = 16


@triton.jit(do_not_specialize=["heads", "sink", "ring"])
def _locate(
    length,
    cap,
    page_start,
    page_list,
    slots,
    starts,
    row,
    slot,
    heads,
    sink,
    ring,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    request = tl.program_id(0)
    head = tl.arange(0, BLOCK)
    here = head < heads
    last = tl.load(length + request) - 1
    rows = tl.load(cap + request * heads + head, mask=here, other=1)
    there = here & (rows > 0) & (last >= 0)
    where = tl.where(there, ring_row(last, rows, sink, ring), 0)
    page = tl.load(page_list + tl.load(page_start + request * heads + head, mask=here, other=0) + where // P,
                   mask=there, other=0)  # fmt: skip
    tl.store(row + request * heads + head, tl.where(there, page * P + where % P, -1), mask=here)
    mine = tl.load(slots + tl.load(starts + request) + tl.maximum(last, 0))
    tl.store(slot + request, mine)


def locate(step: StepTables, slots: torch.Tensor, starts: torch.Tensor, sink: int, ring: int, page: int) -> NewRows:
    """Rows and slots of the newest token of each of the step's requests, in tensors of their own.

    slots: the requests' token slots, request b's from starts[b] on."""
    batch, heads = step.cap.shape
    row = torch.empty_like(step.cap)
    slot = torch.empty(batch, dtype=torch.int32, device=row.device)
    _locate[(batch,)](
        step.length, step.cap, step.page_start, step.page_list, slots, starts, row, slot, heads, sink, ring,
        P=page, BLOCK=triton.next_power_of_2(heads), num_warps=4,
    )  # fmt: skip
    return NewRows(row, slot)


@triton.jit(do_not_specialize=["heads", "total"])
def _write_back(
    row, slot, hot_k, hot_v, host, host_at, host_stride, heads, total,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    for start in range(tl.program_id(0) * ROWS, total, tl.num_programs(0) * ROWS):
        number = start + tl.arange(0, ROWS)
        flat = tl.load(row + number, mask=number < total, other=-1).to(tl.int64)
        there = flat >= 0
        head = number % heads
        to = tl.load(slot + number // heads, mask=there, other=0).to(tl.int64)
        # Heads begin at multiples of their size: wide stores.
        place = tl.load(host_at + head, mask=there, other=0) + to % BLOCK * (D + DV)
        place += to // BLOCK * tl.load(host_stride + head, mask=there, other=0)
        place = tl.multiple_of(place, 16)
        here, here_v = there[:, None] & (at < D)[None, :], there[:, None] & (at_v < DV)[None, :]
        key = tl.load(hot_k + flat[:, None] * D + at[None, :], mask=here)
        tl.store(host + place[:, None] + at[None, :], key, mask=here)
        value = tl.load(hot_v + flat[:, None] * DV + at_v[None, :], mask=here_v)
        tl.store(host + place[:, None] + D + at_v[None, :], value, mask=here_v)


def write_back(rows: NewRows, hot: HotPool, host: HostPlaces) -> None:
    """Copy every row to its slot's place in the host store."""
    batch, heads = rows.row.shape
    dim, v_dim = hot.k.shape[-1], hot.v.shape[-1]
    programs = min(_PROGRAMS, triton.cdiv(batch * heads, _ROWS))
    _write_back[(programs,)](
        rows.row, rows.slot, hot.k, hot.v, host.base, host.at, host.stride, heads, batch * heads,
        D=dim, DV=v_dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        ROWS=_ROWS, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
