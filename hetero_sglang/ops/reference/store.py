"""Where new tokens go: resident store, host store and ring rows of the hot pool."""

import torch

from hetero_sglang.cache.host_store import put_rows, take_rows
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.narrow import narrowed
from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.ops.base import HostPlaces, LayerBuffers, NewRows, StepTables, flat_rows


def store(
    layer: LayerBuffers, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, resident: bool = True,
    host: bool = True, step: StepTables | None = None, sink: int = 0, ring: int = 1,
) -> None:  # fmt: skip
    """Store k [n, H, D], v [n, H, Dv] of tokens at `slots` [n].

    `step`: the tokens are one per request of a decode step and also go to their ring rows."""
    if resident and layer.resident.numel():
        index = slots.long()
        for store, values in ((layer.resident_k, k), (layer.resident_v, v)):
            store[index] = narrowed(values[:, layer.resident], store.dtype)
    if not layer.compressed.numel():
        return
    keys, values = (narrowed(each[:, layer.compressed], layer.host.dtype) for each in (k, v))
    if host:
        put_rows(layer.host, slots.cpu().long(), torch.cat((keys, values), -1).cpu())
    if step is not None:
        rows = newest_rows(step, layer.numbers, sink, ring, layer.hot_k.shape[1])  # [n, C]
        there = rows >= 0
        rows = rows[there]
        layer.hot_k.view(-1, k.shape[-1])[rows], layer.hot_v.view(-1, v.shape[-1])[rows] = keys[there], values[there]
        layer.position.view(-1)[rows] = (step.length[:, None] - 1).expand_as(there)[there]
        layer.score.view(-1)[rows] = 0.0


def newest_rows(step: StepTables, numbers: slice, sink: int, ring: int, page: int) -> torch.Tensor:
    """Flat hot rows [B, C] of each request's newest token, -1 where there is none."""
    last, cap = step.length.long()[:, None] - 1, step.cap[:, numbers].long()  # [B, 1], [B, C]
    there = (cap > 0) & (last >= 0)
    row = torch.where(there, ring_row(last, cap, sink, ring), 0)
    listed = torch.where(there, step.page_start[:, numbers] + row // page, 0)
    return torch.where(there, step.page_list[listed].long() * page + row % page, -1)


def locate(step: StepTables, slots: torch.Tensor, starts: torch.Tensor, sink: int, ring: int, page: int) -> NewRows:
    """Rows and slots of the newest token of each of the step's requests, in tensors of their own.

    slots: the requests' token slots, request b's from starts[b] on."""
    newest = starts[: step.length.numel()].long() + (step.length - 1).clamp(min=0)
    return NewRows(newest_rows(step, slice(None), sink, ring, page).int(), slots[newest])


def write_back(rows: NewRows, hot: HotPool, host: HostPlaces) -> None:
    """Copy every row to its slot's place in the host store."""
    there, first = rows.row[:, 0] >= 0, 0  # a request has all of its heads' rows or none
    slots, row = rows.slot[there].cpu().long(), rows.row[there].long()
    for blocks in host.blocks:
        mine = row[:, first : first + blocks.shape[1]]  # [n, C]
        first += blocks.shape[1]
        values = (store.view(-1, store.shape[-1])[mine] for store in (hot.k, hot.v))
        put_rows(blocks, slots, torch.cat(tuple(values), -1).cpu())


def copy_slots(
    req_to_token: torch.Tensor, requests: torch.Tensor, length: torch.Tensor, starts: torch.Tensor, longest: int,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """out[starts[b] + t] = req_to_token[requests[b], t] for t < length[b] <= longest; int32 but for `requests`."""
    for request, count, start in zip(requests.tolist(), length.tolist(), starts.tolist(), strict=False):
        out[start : start + count] = req_to_token[request, :count]


def fill(
    layer: LayerBuffers, heads: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, selected: torch.Tensor,
    scores: torch.Tensor, cap: torch.Tensor, page_start: torch.Tensor, page_list: torch.Tensor, most: int, sink: int,
    ring: int,
) -> None:  # fmt: skip
    """Place the rows of one request's compressed heads `heads` [C] int32 of this layer.

    keys [L, H, D], values [L, H, Dv] of all its tokens; selected [C, n] int32: each head's chosen positions,
    ascending, as many as its cap leaves (the rest is not read); scores [C, L] float32, kept with every row of a full
    head; cap, page_start [C] int32; `most`: the largest cap. A head whose cap reaches L gets every token."""
    length = keys.shape[0]
    for c, (head, rows, start) in enumerate(zip(heads.tolist(), cap.tolist(), page_start.tolist(), strict=True)):
        token = _tokens(rows, length, selected[c], sink, ring)
        _place(layer, token, rows < length, scores[c], start, page_list, keys[token, head], values[token, head])


def hold(
    layer: LayerBuffers, k: torch.Tensor, v: torch.Tensor, request: torch.Tensor, token: torch.Tensor,
    page_start: torch.Tensor, page_list: torch.Tensor,
) -> None:  # fmt: skip
    """Place new tokens k [n, H, D], v [n, H, Dv] of requests whose heads hold every token of theirs.

    `request` [n] int32: their slots, -1 of those that are left out; `token` [n] int32: which of the request's each is;
    page_start [requests, Hc] int32."""
    mine = (request >= 0).nonzero()[:, 0]
    start = page_start[request[mine].long(), layer.numbers]  # [m, C]
    rows = flat_rows(page_list, start, token[mine, None], layer.hot_k.shape[1])
    for store, values in ((layer.hot_k, k), (layer.hot_v, v)):
        store.view(-1, store.shape[-1])[rows] = narrowed(values[mine][:, layer.compressed], store.dtype)
    layer.position.view(-1)[rows] = token[mine, None].expand_as(rows)
    layer.score.view(-1)[rows] = 0.0


def restore(
    layer: LayerBuffers, slots: torch.Tensor, length: int, selected: torch.Tensor, scores: torch.Tensor,
    cap: torch.Tensor, page_start: torch.Tensor, page_list: torch.Tensor, most: int, sink: int, ring: int,
) -> None:  # fmt: skip
    """As `fill`, for all of the layer's compressed heads, from the host store: `slots` [>= L] of a request's tokens, of
    which `length` are there."""
    for c, (rows, start) in enumerate(zip(cap.tolist(), page_start.tolist(), strict=True)):
        token = _tokens(rows, length, selected[c], sink, ring)
        slot = slots[token].long().to(layer.host.device)
        values = take_rows(layer.host, slot, torch.full_like(slot, c)).to(layer.hot_k.device)
        k, v = values.split((layer.hot_k.shape[-1], layer.hot_v.shape[-1]), -1)
        _place(layer, token, rows < length, scores[c], start, page_list, k, v)


def _tokens(rows: int, length: int, selected: torch.Tensor, sink: int, ring: int) -> torch.Tensor:
    """Of a head, the token in each row."""
    token = torch.arange(min(rows, length), device=selected.device)
    if rows < length:
        turning = max(1, min(rows - sink, ring))
        recent = torch.arange(length - turning, length, device=selected.device)
        token[sink : rows - turning] = selected[: rows - turning - sink]
        token[ring_row(recent, rows, sink, ring)] = recent
    return token


def _place(
    layer: LayerBuffers, token: torch.Tensor, full: bool, scores: torch.Tensor, start: int, page_list: torch.Tensor,
    k: torch.Tensor, v: torch.Tensor,
) -> None:  # fmt: skip
    """A head's first rows are these tokens'."""
    flat = flat_rows(page_list, start, torch.arange(token.numel(), device=token.device), layer.hot_k.shape[1])
    for store, values in ((layer.hot_k, k), (layer.hot_v, v)):
        store.view(-1, store.shape[-1])[flat] = narrowed(values, store.dtype)
    layer.position.view(-1)[flat] = token.int()
    layer.score.view(-1)[flat] = scores[token] if full else 0.0
