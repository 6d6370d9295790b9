"""One request's working set: which hot rows hold which tokens, for every compressed head.

    row    0 ......... sink ................ cap - ring .......... cap
           | sink tokens |  selected tokens  |  ring of recent ones |

Token t lives at row t while it fits, afterwards at ring row cap - ring + (t - cap) mod ring. A head whose
cap is never reached is therefore exact, and a full head keeps its length for the request's life."""

import numpy as np
import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.page_table import PageTable
from hetero_sglang.cache.tally import Tally
from hetero_sglang.config.caps import ROOMY, CapRule, Grant, Rows


def ring_row(token: torch.Tensor | int, cap: torch.Tensor | int, sink: int, ring: int) -> torch.Tensor:
    """Row of token t in a head of `cap` rows, of which those behind the sinks turn over, `ring` at most (int64)."""
    token, cap = torch.as_tensor(token), torch.as_tensor(cap)
    turning = (cap - sink).clamp(1, ring)
    return torch.where(token < cap, token, cap - turning + (token - cap) % turning)


class WorkingSet:
    """Pages and caps of one request; owns its pages until `release`, but for those that it shares."""

    def __init__(
        self, pool: HotPool, rule: CapRule, grant: Grant, rows: Rows | None = None, shared: PageTable | None = None
    ) -> None:  # fmt: skip
        """`rows`: others than the rule's; `shared`: the first pages, another set's. RuntimeError when the pool has
        fewer pages: too much was promised."""
        self.pool = pool
        self.rule = rule
        self.grant = grant
        self.outgrown = False  # it wanted to grow and could not: full heads have begun to turn over
        self.alive = True
        self.sparse = True  # new tokens behind a cached prefix may read a part of it
        self.base: int | None = None  # key of the parked set whose pages it shares
        self.moved = 0  # how often its rows have gone to other pages
        self.slot = -1  # request slot, once it has one
        self.tally = Tally()  # of its request
        self.busy: set[int] = set()  # heads that the worker ranks tokens for
        self.length = 0  # tokens that its rows stand for, once it has any
        self.units = 0  # of the policy's index, beyond those that the request's length gives
        self.tail: dict[int, torch.Tensor] = {}  # per layer, the last queries of an unfinished prompt
        self.rows = rows or rule.rows(grant)
        self.heads = len(self.rows.caps)
        table = shared or PageTable.empty(2 * self.heads)
        self.shared = table.counts  # [2 * heads], how many of the first pages are another set's
        self._take(table)

    @property
    def prompt(self) -> int:
        """Tokens to prefill."""
        return self.grant.prompt

    @property
    def final(self) -> int:
        """Tokens the caps are made for."""
        return self.grant.final

    def _take(self, table: PageTable) -> None:
        """Pages that `rows` need beyond these."""
        extra = self.rule.pages(self.rows).ravel() - table.counts
        if extra.any():
            table = table.followed_by(PageTable(self._alloc(int(extra.sum())), extra))
        self.table = table  # of each head's rows, then of each head's index
        self.caps: list[int] = self.rows.caps.tolist()
        self.cap = torch.from_numpy(self.rows.caps)  # [heads] int64

    def _alloc(self, count: int) -> torch.Tensor:
        """Pages [count] of the pool. RuntimeError when it has fewer."""
        taken = self.pool.alloc(count)
        if taken is None:
            raise RuntimeError(
                f"hot pool: {count} pages wanted, {self.pool.available} free: admission let through too much"
            )
        return taken

    @property
    def pages(self) -> torch.Tensor:
        """Every page of this request."""
        return self.table.pages

    @property
    def count(self) -> int:
        """How many those are."""
        return len(self.table.pages)

    @property
    def owned(self) -> torch.Tensor:
        """Those that it shares with nobody, or that others share with it."""
        return self.table.split(self.shared)[1].pages if self.shared.any() else self.table.pages

    @property
    def index_rows(self) -> int:
        """Rows of each head's index; heads that have one are alike."""
        return int(self.rows.index.max(initial=0))

    @property
    def indexed(self) -> bool:
        """Whether room for an index is reserved."""
        return bool(self.table.counts[self.heads :].any())

    def exact(self, length: int) -> bool:
        """Whether every head still holds every one of `length` tokens."""
        return length <= min(self.caps, default=length)

    def refillable(self, length: int) -> np.ndarray:
        """Bool [heads]: full at `length`, with as many rows to choose as there are sinks and ring.

        What is seen while decoding would push what the prompt found out of fewer (docs/quality.md)."""
        return ((self.cap < length) & (self.cap >= ROOMY * (self.rule.sink + self.rule.window))).numpy()

    def grow(self) -> None:
        """Become what the rule makes of twice the length. RuntimeError when the pool has not so many pages."""
        self.grant, self.rows = self.rule.grown(self.grant, self.rows)
        self._take(self.table)

    def resume(self, grant: Grant) -> None:
        """Go on for another request. RuntimeError as for one that begins."""
        self.rows = self.rule.resumed(self.rows, grant, self.length)
        self.grant, self.outgrown = grant, False
        self._take(self.table)

    def share(self) -> "WorkingSet":
        """Another that has the same rows: in the same pages, which are pinned, where neither writes, else in copies.
        RuntimeError as for one that begins."""
        first, after = self._sharable()
        twin = WorkingSet(self.pool, self.rule, self.grant, self.rows, first)
        twin.length = self.length
        self.pool.copy(after.pages, twin.owned)
        return twin

    def pin(self, stay: bool) -> None:
        """Rows of pages that others may share stay, or may go again."""
        self.pool.pin(self._sharable()[0].pages, stay)

    def _sharable(self) -> tuple[PageTable, PageTable]:
        """What others may share, and the rest."""
        counts = self.rule.shared_pages(self.rows, self.length)
        return self.table.split(np.concatenate((counts, np.zeros_like(counts))))

    def part(self) -> None:
        """Copy what is shared. RuntimeError as for one that begins."""
        theirs, own = self.table.split(self.shared)
        mine = PageTable(self._alloc(theirs.pages.numel()), theirs.counts)
        self.pool.copy(theirs.pages, mine.pages)
        self.pool.pin(mine.pages, False)
        self.table = mine.followed_by(own)
        self.base, self.shared, self.moved = None, np.zeros_like(self.shared), self.moved + 1

    def absorb(self, base: "WorkingSet") -> None:
        """What is shared with `base` is this one's, and the rest of that is free."""
        self.pool.free(base.table.split(self.shared)[1].pages)
        self.base, self.shared, base.alive = None, np.zeros_like(self.shared), False

    def release(self) -> None:
        """Give every page back; what the worker still ranks for this request is dropped when it arrives."""
        self.alive = False
        self.pool.free(self.owned)


def run_start(ids: torch.Tensor) -> int:
    """The first of `ids` [n] where they are consecutive, else -1."""
    if not ids.numel() or int(ids[-1]) != int(ids[0]) + ids.numel() - 1:
        return -1
    return int(ids[0]) if bool((ids[1:] - ids[:-1] == 1).all()) else -1
