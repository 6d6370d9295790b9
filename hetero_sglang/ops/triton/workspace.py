"""What a step's probes and choices write and read between their launches; one for all layers, at fixed addresses."""

from __future__ import annotations

from copy import copy

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.sizes import ARRIVALS
from hetero_sglang.ops.base import Counted, StepTables
from hetero_sglang.ops.reference.choose import BINS, score_bin
from hetero_sglang.ops.reference.workspace import limit
from hetero_sglang.ops.triton.index import MOST_FIELDS
from hetero_sglang.profile.index_plan import EVERY

WARPS = 4  # of a program: three of attention's have room beside one
TILE = 512  # places that a program looks at together; of runs twice as many
ALIGNED = 64  # a split's share of places is a multiple of
READ = 512  # tokens
MOST_PARTS = 128  # of a unit's tokens
MOST_SPLITS = 64  # of its runs, and of its places
MOST_DIRECTIONS = 512  # of an index
_READERS = 528  # programs that read tokens: each begins with its queries' weights
_LISTERS = 264  # programs that list runs and places: each begins with what all splits share


@triton.jit(do_not_specialize=["batch", "units", "tokens"])
def _plan(length, clock, place, flag, batch, units, tokens, BATCH: tl.constexpr, ROUND: tl.constexpr):
    """Another request is first once all layers had their turns: of many that share a prefix, none is left out for good,
    in no layer."""
    at = tl.arange(0, BATCH)
    request = (at + tl.load(clock) // ROUND) % batch
    size = tl.load(length + request, mask=at < batch, other=0)
    end = tl.cumsum(size, 0)
    tl.store(place + request, tl.where(end <= tokens, end - size, -1), mask=at < batch)
    for start in range(0, units, 256):
        unit = start + tl.arange(0, 256)
        tl.store(flag + unit, 0, mask=unit < units)


class Workspace:
    """For steps of up to `batch` requests of up to `context` tokens and of `tokens` in all, to each of whose heads
    `most` runs of up to `run` rows may come at once. What does not fit is left out: those requests keep their rows.

    A unit is a request's head. Its work is cut into as many equal pieces as its step has room for, whose sizes follow
    from lengths on the device. To be used by one stream: a layer's lists last until the next layer's `choose`."""

    def __init__(
        self, batch: int, heads: int, group: int, context: int, tokens: int, run: int, most: int,
        device: torch.device | str, pivots: int = 0, hot: HotPool | None = None,
    ) -> None:  # fmt: skip
        """`pivots`: of a layer, at most; `hot`: heads have an index, and rows come while they attend."""
        probed = hot is not None
        self.batch, self.heads, self.group, self.tokens, self.room = batch, heads, group, tokens, most
        units = batch * heads
        self.context = context

        def make(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.most = make(1)  # rows that may come to a head in a step, in `room` runs
        self.most.fill_(most * run)
        self.place = make(batch)  # where a request's tokens begin among all, -1: left out
        self.weights = make(units, group, MOST_DIRECTIONS, dtype=torch.int8)  # of queries; a unit's lie close
        self.fours = self.weights.view(torch.int32)
        self.factors = make(units, group, MOST_FIELDS, dtype=torch.float32)
        self.top = make(units, MOST_PARTS, group, dtype=torch.float32)
        self.total = make(units, MOST_PARTS, group, dtype=torch.float32)
        # of tokens, by query
        self.exponents = make(tokens * heads * probed * asked_in_all(group), dtype=torch.bfloat16)
        self.scores = make(tokens * heads, dtype=torch.float32)  # of runs; a unit's begin where its tokens do
        self.marks = make(heads * context * probed, dtype=torch.int8)  # of a lone request's runs that a head holds
        self.wanted = make(units, BINS)  # runs by the bin of their score
        self.idle = make(units, BINS)  # unwanted places by the bin of their last use
        self.hits = make(units, 2)  # wanted places, and those above the edge
        lists = max(units, _LISTERS)  # units times splits
        self.missing = make(lists, most)  # runs that are wanted and not held: bins above the edge
        self.lacking = make(lists)  # how many
        self.even = make(lists, most)  # and those of the edge's bin
        self.evens = make(lists)
        self.old = make(lists, most)  # places that are given away: bins below the edge
        self.olds = make(lists)
        self.level = make(lists, most)  # and of the edge's bin
        self.levels = make(lists)
        self.comes, self.lates = make(units), make(units)  # runs that come, and those that are too many
        self.counted = make(Counted.COUNT, dtype=torch.int64)
        self.flag = make(units)  # whether a head is to be refilled
        self.fading = make(units, dtype=torch.float32)  # what is left of the worth of its rows
        arrivals = max(min(ARRIVALS, units * most * run), units * run) if hot else 0
        self.arrived = make(arrivals, dtype=torch.int64)  # flat hot rows that they go to; a unit's follow each other
        if hot:
            self.arrived_k, self.arrived_v = (store.new_zeros(arrivals, store.shape[-1]) for store in (hot.k, hot.v))
        else:
            self.arrived_k = self.arrived_v = make(0)
        self.logits = make(tokens * pivots * (group + 1), dtype=torch.float32)  # of pivots
        self.tops = make(batch * pivots, MOST_PARTS, group, dtype=torch.float32)
        self.totals = make(batch * pivots, MOST_PARTS, group, dtype=torch.float32)
        self.sums = make(batch * pivots, MOST_PARTS, dtype=torch.float32)  # of what pivots see
        self.shares = make(units, MOST_SPLITS, dtype=torch.float32)  # of that, what satellites hold

    def sharing(self) -> Workspace:
        """The same buffers for steps that look for rows before those of this one or after them: layer by layer in turn,
        with plans of their own."""
        mine = copy(self)
        mine.most, mine.place, mine.flag = (each.clone() for each in (self.most, self.place, self.flag))
        return mine

    def plan(self, step: StepTables) -> None:
        """Once per step, recorded in the graph: where each request's tokens go."""
        batch = step.length.numel()
        _plan[(1,)](
            step.length, step.clock, self.place, self.flag, batch, batch * self.heads, self.tokens,
            BATCH=triton.next_power_of_2(batch), ROUND=EVERY[-1], num_warps=1 if batch <= 1024 else 8,
        )  # fmt: skip

    def offer(self, head: int, heads: int, scores: torch.Tensor, fading: float, sink: int, window: int) -> None:
        """Scores [L] of a lone request's tokens, found elsewhere for `head` of a layer's `heads`; for `choose`."""
        length = scores.numel()
        self.scores[head * length : (head + 1) * length] = scores
        inside = score_bin(scores[sink : length - window]).long()
        self.wanted[head], self.idle[head] = 0, 0
        self.wanted[head].scatter_add_(0, inside, torch.ones_like(inside, dtype=torch.int32))
        self.flag[head], self.fading[head] = 1, fading

    def give(
        self, tokens: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, count: torch.Tensor, heads: int
    ) -> None:
        """What comes was chosen elsewhere, for N requests' heads: the first count[n] of `tokens` [N, S] to `places`
        [N, S] among the selected rows; for `swap_in`. They are listed as one split's."""
        units, most = tokens.shape
        splits = self.splits(units)
        for lists, counts, values in ((self.missing, self.lacking, tokens), (self.old, self.olds, places)):
            lists.view(-1)[: units * splits * self.room].view(units, -1)[:, :most] = values
            each = counts[: units * splits].view(units, splits)
            each.zero_()
            each[:, 0] = count
        self.levels[: units * splits].zero_()
        self.evens[: units * splits].zero_()
        self.comes[:units] = count
        self.counted[Counted.ROWS] += count.sum()

    def parts(self, units: int) -> int:
        """Pieces of a unit's tokens in a step of so many units."""
        return _pieces(units, self.context, MOST_PARTS, READ, _READERS)

    def fitting(self, context: int) -> int:
        """Requests of so many tokens that there is room for at once; one at least."""
        return max(1, min(self.batch, self.tokens // context))

    @property
    def aside(self) -> bool:
        """Whether rows come while heads attend, and have their places afterwards."""
        return self.arrived.numel() > 0

    def limit(self, units: int, run: int) -> int:
        """Runs that come to a head in a step of so many units, at the utmost."""
        return limit(units, run, self.room) if self.aside else self.room

    def splits(self, units: int) -> int:
        """Pieces of its runs, and of its places."""
        return self.splits_of(units, self.context)

    @staticmethod
    def splits_of(units: int, context: int) -> int:
        """As `splits`, of a workspace for requests of up to `context` tokens; the fewer, the more units."""
        return _pieces(units, context, MOST_SPLITS, TILE, _LISTERS)

    @property
    def nbytes(self) -> int:
        return sum(
            t.numel() * t.element_size()
            for t in {t.data_ptr(): t for t in vars(self).values() if isinstance(t, torch.Tensor)}.values()
        )


def asked_in_all(group: int) -> int:
    """Queries that a unit's exponents have room for: asked together by fours, twos or one by one."""
    return group if group < 3 else -(-group // 4) * 4


def _pieces(units: int, context: int, most: int, tile: int, programs: int) -> int:
    return max(1, min(most, -(-context // tile), programs // max(1, units)))  # a piece is some tiles
