"""Rows on their way from the host store to the device: of runs that come, and of a whole prefix."""

from __future__ import annotations

import torch

from hetero_sglang.cache.host_store import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.reference.choose import Swaps


def bring(host: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows [n, C, D + Dv] of token slots [n]; host [blocks, C, BLOCK, D + Dv], a layer's."""
    return host[slots // BLOCK, :, slots % BLOCK]


def swap_in(
    swaps: Swaps, host: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, hot: HotPool, length: int, run: int
) -> None:
    """Bring what a request's step has chosen: token slots [L] beside `host`, flat hot rows [C, places, run].

    The choice may lie on the device, or beside the host's rows.
    """
    token = (swaps.run[:, None] * run + torch.arange(run, device=swaps.run.device)).to(host.device)  # [m, run]
    slot, flat = slots[token], rows[swaps.head.to(rows.device), swaps.place.to(rows.device)]
    values = host[slot // BLOCK, swaps.head.to(host.device)[:, None], slot % BLOCK].to(hot.k.device)  # [m, run, D + Dv]
    hot.write(flat, *values.split((hot.k.shape[-1], hot.v.shape[-1]), -1))
    hot.position.view(-1)[flat] = token.to(hot.position.device, torch.int32)
    hot.used.view(-1)[flat] = length
