"""Which rows come to a head and which go, by two rules.

Lazily: what a head wants most and lacks comes in, what it has not wanted for longest goes. Or merged: of the rows that
it holds and the tokens that it does not, those worth most are kept. Scores are told apart by their bins alone."""

import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import Counted, LayerBuffers, StepTables, flat_rows
from hetero_sglang.ops.reference.workspace import Coming, Found, Swaps, Workspace

PART = 3  # a third of a head's places is what a step can want, unless it says otherwise
BINS = 128  # of scores, and of times since a run was wanted
FINE = 21  # low bits of a float32 that a score's bin leaves out: four bins to an octave
LEAST = 384  # bins of float32 below the scores that are told apart, 2 ** -31 and above
NEVER = 4096  # a run not wanted since its prompt ended has `used` = its score's bin - NEVER


def score_bin(scores: torch.Tensor) -> torch.Tensor:
    """Of scores float32 in [0, 1]: int32 in [0, BINS)."""
    return ((scores.view(torch.int32) >> FINE) - LEAST).clamp(0, BINS - 1)


def used_at_first(scores: torch.Tensor) -> torch.Tensor:
    """`used` int32 of runs that a prompt's end chose by these scores >= 0: before any step, the best latest."""
    return score_bin(scores.float()) - NEVER


def used_bin(used: torch.Tensor, length: int | torch.Tensor) -> torch.Tensor:
    """Bin of `used` int32 for a request of `length` tokens, in [0, BINS): the lower, the longer unwanted.

    Half octaves of the prompt's score below, quarter octaves of the steps since then above."""
    half = BINS // 2
    never = ((used + NEVER) // 2).clamp(0, half - 1)
    age = ((length - used).clamp(min=1).float().view(torch.int32) >> FINE) - 508  # four times its logarithm
    return torch.where(used < 0, never, BINS - 1 - age.clamp(max=half - 1))


def lazy(
    scores: torch.Tensor, held: torch.Tensor, used: torch.Tensor, length: int, low: int, high: int, want: int,
    most: int, passing: bool = False,
) -> Swaps:  # fmt: skip
    """One step of the rule for C heads; `used` is brought up to date, moving the rows is the caller's.

    scores [C, U] float32 of the request's runs; held [C, n] int32: each selected run; used [C, n] int32: the request's
    length when it was last wanted, else `used_at_first`. Runs in [low, high) may come in, no others are held. Wanted
    are the `want` best, as their scores' bins tell them apart, and none of the lowest bin: of those that share the last
    one's bin what is held counts first. Of the wanted that are not held `most` come, the best bins first, each in the
    place of the unwanted run with the lowest `used_bin`; of equals the first. What was wanted at this length before
    stays, and so does what is PINNED. `passing`: no place is given away, nor `used` brought up to date."""
    heads, places = held.shape
    inside = scores[:, low:high]  # [C, n']
    count = min(want, inside.shape[1])
    if not count or not places:
        nothing = torch.empty(0, dtype=torch.int64)
        return Swaps(nothing, nothing, nothing, torch.zeros(heads, dtype=torch.int64))
    bins = score_bin(inside)  # [C, n']
    edge = score_bin(inside.topk(count).values[:, -1:]).clamp(min=1)  # [C, 1]
    at = held.long() - low
    hit, stays = (bins >= edge).gather(1, at), used >= length  # [C, n]
    if not passing:
        used[hit & ~stays] = length
    outside = bins.scatter(1, at, -1)
    sure, level = outside > edge, outside == edge
    # Places in order of use; wanted ones last, which are not given away.
    order = torch.where(hit | stays, BINS, used_bin(used, length)).sort(dim=1, stable=True).indices  # [C, n]
    hits, first = hit.sum(1), sure.sum(1)  # [C]
    lacking = first + torch.minimum((count - hits - first).clamp(min=0), level.sum(1))
    free = lacking if passing else places - (hit | stays).sum(1)
    comes = torch.minimum(lacking, free).clamp(max=most)
    rank = torch.where(sure, sure.cumsum(1), first[:, None] + level.cumsum(1)) - 1
    head, run = ((sure | level) & (rank < comes[:, None])).nonzero().unbind(1)
    if passing:
        return Swaps(head, torch.full_like(head, -1), run + low, lacking - comes)
    place = order[head, rank[head, run]]
    used[head, place] = length
    return Swaps(head, place, run + low, lacking - comes)


def merge(scores: torch.Tensor, held: torch.Tensor, kept: torch.Tensor, low: int, high: int, most: int) -> Swaps:
    """The better of what C heads hold and of what they could: as many as they hold.

    scores [C, U] float32 of the request's runs; held [C, n] int32: each selected run, worth kept [C, n] float32. Runs
    in [low, high) may come in, `most` of them, the best bins first; within a bin what is held stays, and the first go
    and come first."""
    found = [_merged(*each, low, high, most) for each in zip(scores, held.long(), kept, strict=True)]
    head = torch.cat([torch.full_like(run, c) for c, (run, _, _) in enumerate(found)])
    run, place = (torch.cat([each[which] for each in found]) for which in (0, 1))
    return Swaps(head, place, run, torch.tensor([late for *_, late in found]))


def _merged(
    scores: torch.Tensor, held: torch.Tensor, kept: torch.Tensor, low: int, high: int, most: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of one head: runs that come and places that they take, [m] both, and how many were too many."""
    outside = score_bin(scores)
    outside[held] = -1
    outside[:low] = outside[high:] = -1
    worth = score_bin(kept)
    others = torch.bincount(outside[outside >= 0], minlength=BINS)
    ours = torch.bincount(worth, minlength=BINS)
    above = (others + ours).flip(0).cumsum(0).flip(0)  # [BINS] of this bin and higher
    edge = int((above >= held.numel()).nonzero()[-1])
    room = held.numel() - int(above[edge + 1 :][:1].sum())  # for the edge's own
    wanted = int(others[edge + 1 :].sum()) + max(0, room - int(ours[edge]))
    come = min(wanted, most)
    runs = torch.cat([mask.nonzero()[:, 0] for mask in (outside > edge, outside == edge)])[:come]
    places = torch.cat([mask.nonzero()[:, 0] for mask in (worth < edge, worth == edge)])[:come]
    return runs, places, wanted - come


def choose(
    layer: LayerBuffers | LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace,
    merged: bool = False, passing: bool = False,
) -> None:  # fmt: skip
    """After `probe` or `look`: which runs come to which places, for every head that was found to want any: as many as
    a PART of its places, or the better of all.

    `hot.used`, or `hot.score` where rows are `merged`, is brought up to date. `passing`, not of merged rows: what comes
    is to be read once, and has no places."""
    for found in work.found:
        caps = step.cap[found.request, layer.first + found.heads].tolist()
        for cap in sorted(set(caps)):  # mostly one
            alike = torch.tensor([i for i, each in enumerate(caps) if each == cap])
            _choose(found, alike, cap, layer, step, hot, sink, window, work, merged, passing)


def _choose(
    found: Found, alike: torch.Tensor, cap: int, layer: LayerBuffers | LayerIndex, step: StepTables, hot: HotPool,
    sink: int, window: int, work: Workspace, merged: bool, passing: bool,
) -> None:  # fmt: skip
    """For heads of one size."""
    run, heads, length = layer.run, found.heads[alike.to(found.heads.device)], int(step.length[found.request])
    places = (cap - sink - window - run + 1) // run
    if places <= 0:
        return
    row = sink + torch.arange(places * run, device=hot.k.device)
    start = step.page_start[found.request, layer.first + heads].long()[:, None]
    rows = flat_rows(step.page_list, start, row, hot.page_size).unflatten(1, (places, run))  # [C, places, run]
    held = hot.position.view(-1)[rows[..., 0]] // run
    low, high = sink // run, (length - window) // run
    most = min(int(work.most) // run, work.limit(step.length.numel() * layer.heads.numel(), run))
    scores = found.scores[alike.to(found.scores.device)]
    if merged:
        assert found.fading is not None and run == 1
        kept = torch.maximum(
            hot.score.view(-1)[rows[..., 0]] * found.fading[alike, None], scores.gather(1, held.long())
        )
        hot.score.view(-1)[rows[..., 0]] = kept
        swaps = merge(scores, held, kept, low, high, most)
        worth = scores[swaps.head, swaps.run]
    else:
        used = hot.used.view(-1)[rows[..., 0]]
        swaps, worth = lazy(scores, held, used, length, low, high, max(1, places // PART), most, passing), None
        hot.used.view(-1)[rows] = used[..., None]
    late = swaps.late.to(hot.k.device) * run
    work.counted[Counted.ROWS] += swaps.run.numel() * run
    work.counted[Counted.LATE] += late.sum()
    if passing:
        work.coming.append(Coming(found.request, heads[swaps.head], swaps.run, None))
        return
    step.came[int(step.request[found.request]), 1, layer.first + heads.long()] += late.int()
    if swaps.run.numel():
        flat = rows[swaps.head, swaps.place]  # [m, run]
        work.coming.append(Coming(found.request, heads[swaps.head], swaps.run, flat, worth))
