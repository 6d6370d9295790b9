"""New tokens of a prompt that goes on with a working set: what they attend to, and which rows they take."""

import torch

from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.ops.base import Behind, LayerBuffers, StepTables, flat_rows
from hetero_sglang.ops.reference.attention import prefill_attention


def append(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    """Attention of some of the new tokens q [n, Hq, D] over what their request's heads hold and causally over all of
    k [m, H, D] and v [m, H, Dv]: [n, Hq, Dv]. All heads are compressed."""
    group = q.shape[1] // k.shape[1]
    hot_k, hot_v = (store.view(-1, store.shape[-1]) for store in (layer.hot_k, layer.hot_v))
    count, first, *_ = behind.numbers.tolist()
    k, v = k[: first + count], v[: first + count]
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for which, head in enumerate(layer.heads.tolist()):
        rows = _rows(layer.first + which, step, behind, layer.hot_k.shape[1])
        keys, values = torch.cat((hot_k[rows], k[:, head])), torch.cat((hot_v[rows], v[:, head]))
        mine = slice(head * group, (head + 1) * group)
        out[:, mine] = prefill_attention(q[:, mine], keys[:, None], values[:, None], scale)
    return out


def _rows(number: int, step: StepTables, behind: Behind, page: int) -> torch.Tensor:
    """Flat hot rows that hold tokens of the prefix, each token once."""
    cap, (*_, prefix, reached) = int(step.cap[0, number]), behind.numbers.tolist()
    there = torch.ones(min(cap, prefix), dtype=torch.bool)
    if cap < reached:
        begin, end = max(0, reached - behind.ring), (reached - behind.window) // behind.run * behind.run
        stale = torch.tensor([*range(begin, end), *range(prefix, reached)], dtype=torch.int64)
        rows = ring_row(stale, cap, behind.sink, behind.ring)
        there[rows[rows < there.numel()]] = False
    row = there.nonzero()[:, 0].to(step.page_list.device)
    return flat_rows(step.page_list, int(step.page_start[0, number]), row, page)


def keep(k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind) -> None:
    """After `append`, for all at once: new tokens k [n, H, D], v [n, H, Dv] take the rows of those that leave their
    request's heads; of two that have the same row, the later."""
    *_, prefix, _ = behind.numbers.tolist()
    token = torch.arange(prefix, prefix + len(k), device=k.device)  # [n]
    cap = step.cap[0, layer.numbers, None].long()  # [C, 1]
    turning = (cap - behind.sink).clamp(1, behind.ring)
    stays = (token < cap - turning) | (token >= prefix + len(k) - turning)  # [C, n]
    row = ring_row(token, cap, behind.sink, behind.ring)
    head, new = stays.nonzero().unbind(1)
    start = step.page_start[0, layer.first + head].long()
    flat = flat_rows(step.page_list, start, row[head, new], layer.hot_k.shape[1])
    for store, values in ((layer.hot_k, k), (layer.hot_v, v)):
        store.view(-1, store.shape[-1])[flat] = values[new, layer.compressed[head]]
    layer.position.view(-1)[flat] = (new + prefix).int()
    layer.score.view(-1)[flat] = 0.0
