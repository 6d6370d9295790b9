"""What pivots look at, and how much of that their satellites hold (HeteroCache, paper section on drift)."""

import torch

from hetero_sglang.ops.base import PARTS, SHARES, Counted, LayerBuffers, LayerPivots, StepTables, Watch, flat_rows
from hetero_sglang.ops.reference.attention import pool_average
from hetero_sglang.ops.reference.workspace import Found, Workspace


def look(
    q: torch.Tensor, layer: LayerBuffers, pivots: LayerPivots, slots: torch.Tensor, starts: torch.Tensor,
    step: StepTables, scale: float, watch: Watch, sink: int, window: int, work: Workspace,
) -> None:  # fmt: skip
    """A step's queries q [B, Hq, D]: satellites that hold too little of what their pivots look at are to be refilled.

    Leaves the pivots' scores for these in `work`. Only requests whose turn it is, and heads with as many rows to choose
    as they always hold."""
    grouped = q.unflatten(1, (-1, work.group))  # [B, H, G, D]
    for b, (length, start) in enumerate(zip(step.length.tolist(), starts.tolist(), strict=False)):
        request = int(watch.request[b])
        if length == 0 or (length - int(watch.prompt[b])) % watch.interval:
            continue
        caps, leaders = step.cap[b, layer.numbers], watch.leader[request, layer.numbers]  # [C]
        open_ = (caps < length) & (caps >= watch.least)
        listed = slots[start : start + length].long()
        for number, (place, head) in enumerate(zip(pivots.place.tolist(), pivots.head.tolist(), strict=True)):
            members = ((leaders == number) & open_).nonzero()[:, 0].tolist()
            if not members:
                continue
            keys = layer.resident_k[listed, place].float()  # [L, D]
            weights = (grouped[b, head].float() @ keys.T * scale).softmax(-1)  # [G, L]
            seen, scores = weights.amax(0), pool_average(weights[None])[0].amax(0)  # [L]
            for satellite in members:
                held = _held(layer, step, b, satellite, int(caps[satellite]))
                share = float(seen[held].sum() / seen.sum())
                count_look(work.counted, share, watch.group)
                if drifted(share, request, layer.first + satellite, length, watch):
                    _refill(layer, satellite, request, length, b, scores, watch, work)


def count_look(counted: torch.Tensor, share: float, group: int) -> None:
    """A satellite holds this share of its pivot's attention."""
    counted[Counted.LOOKS + group] += 1
    counted[Counted.HELD + min(int(share * SHARES), SHARES - 1)] += 1
    counted[Counted.SUM] += int(share * PARTS)


def drifted(share: float, request: int, number: int, length: int, watch: Watch) -> bool:
    """Whether a satellite that holds this share of its pivot's attention is to be refilled; or by chance."""
    rate = float(watch.rate)
    if rate < 0:
        return share < watch.threshold
    return chance(request, number, length) < rate


def chance(request: int, number: int, length: int) -> float:
    """A number in [0, 1) that looks random."""
    mixed = (request * 7919 + number * 104729 + length * 1299709) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1103515245 + 12345) & 0x7FFFFFFF
    return ((mixed >> 8) & 0xFFFF) / 65536


def _held(layer: LayerBuffers, step: StepTables, b: int, satellite: int, cap: int) -> torch.Tensor:
    """Positions [cap] that a full satellite holds."""
    page, row = layer.hot_k.shape[1], torch.arange(cap, device=layer.hot_k.device)
    start = int(step.page_start[b, layer.first + satellite])
    return layer.position.view(-1)[flat_rows(step.page_list, start, row, page)].long()


def _refill(
    layer: LayerBuffers, satellite: int, request: int, length: int, b: int, scores: torch.Tensor, watch: Watch,
    work: Workspace,
) -> None:  # fmt: skip
    number = layer.first + satellite
    looks = (length - int(watch.filled[request, number])) / watch.interval
    fading = 0.0 if watch.decay == 0 else watch.decay**looks
    watch.filled[request, number] = length
    work.counted[Counted.DRIFTS + watch.group] += 1
    head = torch.tensor([satellite], device=scores.device)
    work.found.append(Found(b, head, scores[None], torch.tensor([fading], device=scores.device)))
