"""Rows on their way from the host store to the device: of runs that come, and of a whole prefix."""

import torch

from hetero_sglang.cache.host_store import take_rows
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import LayerBuffers, StepTables
from hetero_sglang.ops.reference.workspace import Arrived, Workspace


def swap_in(
    layer: LayerBuffers | LayerIndex, host: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables,
    hot: HotPool, sink: int, work: Workspace, programs: int = 0, merged: bool = False, passing: bool = False,
) -> None:  # fmt: skip
    """After `choose`, or `lack` if `passing`: bring the rows of every run that comes; host [blocks, C, BLOCK, D + Dv],
    the layer's.

    To their places; beside them until `seat`, where heads attend meanwhile; or beside alone, if `passing`."""
    if passing:
        work.arrived.clear()  # another layer's
    for coming in work.coming:
        run = layer.run
        came = step.came[int(step.request[coming.request]), 0]  # [Hc]
        came.index_add_(0, layer.first + coming.head.long(), torch.full_like(coming.head, run, dtype=torch.int32))
        token = (coming.run[:, None] * run + torch.arange(run, device=coming.run.device)).flatten()
        slot = slots[int(starts[coming.request]) + token].long().to(host.device)
        head, rows = coming.head.repeat_interleave(run).to(host.device), None
        if coming.rows is not None:
            rows = coming.rows.flatten()
        values = take_rows(host, slot, head).to(hot.k.device)  # [m, D + Dv]
        k, v = values.split((hot.k.shape[-1], hot.v.shape[-1]), -1)
        if work.aside:
            work.arrived.append(Arrived(coming.request, head, rows, k, v))
        elif rows is not None:
            hot.write(rows, k, v)
        if rows is None:
            continue
        hot.position.view(-1)[rows] = token.int()
        if coming.worth is not None:
            hot.score.view(-1)[rows] = coming.worth
        else:
            hot.used.view(-1)[rows] = step.length[coming.request]
    work.coming.clear()
    work.found.clear()


def seat(layer: LayerIndex, step: StepTables, hot: HotPool, work: Workspace) -> None:
    """After heads have attended: the rows that came meanwhile are put in their places."""
    for each in work.arrived:
        assert each.rows is not None
        hot.write(each.rows, each.k, each.v)
    work.arrived.clear()


def bring(host: torch.Tensor, slots: torch.Tensor, out: torch.Tensor, programs: int = 0) -> None:
    """Rows of token slots [n] to `out` [n, C, D + Dv]; host [blocks, C, BLOCK, D + Dv], a layer's."""
    out.copy_(take_rows(host, slots.long().to(host.device)))
