"""New tokens of a prompt that goes on with a working set: what they attend to, and which rows they take."""

import torch

from hetero_sglang.cache.narrow import narrowed
from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.ops.base import Arrivals, Behind, LayerBuffers, StepTables, flat_rows
from hetero_sglang.ops.reference.attend import by_head
from hetero_sglang.ops.reference.attention import prefill_attention


def append(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind,
    scale: float, out: torch.Tensor, arrivals: Arrivals | None = None,
) -> None:  # fmt: skip
    """Attention of some of the new tokens q [n, Hq, D] over what their request's heads hold, what came for their block,
    and causally over k [n, H, D] and v [n, H, Dv], to `out` [n, Hq, Dv]. All heads are compressed.

    Block b of those that attend is the step's b-th request: there are no more of them."""
    group = q.shape[1] // k.shape[1]
    hot_k, hot_v = (store.view(-1, store.shape[-1]) for store in (layer.hot_k, layer.hot_v))
    count, first, *_ = behind.numbers.tolist()
    more = by_head(arrivals)
    for which, head in enumerate(layer.heads.tolist()):
        rows = _rows(layer.first + which, step, behind, layer.hot_k.shape[1])
        mine = slice(head * group, (head + 1) * group)
        for block, begin in enumerate(range(first, first + count, behind.block)):
            end = min(begin + behind.block, first + count)
            keys, values = [hot_k[rows].to(k.dtype)], [hot_v[rows].to(v.dtype)]
            if (block, which) in more:
                for held, came in zip((keys, values), more[block, which], strict=True):
                    held.append(came.to(k.dtype))
            keys, values = torch.cat([*keys, k[:end, head]]), torch.cat([*values, v[:end, head]])
            out[begin:end, mine] = prefill_attention(q[begin:end, mine], keys[:, None], values[:, None], scale)


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
        store.view(-1, store.shape[-1])[flat] = narrowed(values[new, layer.compressed[head]], store.dtype)
    layer.position.view(-1)[flat] = (new + prefix).int()
    layer.score.view(-1)[flat] = 0.0
