"""One request's working set: which hot rows hold which tokens, for every compressed head.

    row    0 ......... sink ................ cap - ring .......... cap
           | sink tokens |  selected tokens  |  ring of recent ones |

Token t lives at row t while it fits, afterwards at ring row cap - ring + (t - cap) mod ring. A head whose
cap is never reached is therefore exact, and a full head keeps its length for the request's life."""

import numpy as np
import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.config.caps import ROOMY, CapRule, Grant, Rows


def ring_row(token: torch.Tensor | int, cap: torch.Tensor | int, sink: int, ring: int) -> torch.Tensor:
    """Row of token t in a head of `cap` rows, of which those behind the sinks turn over, `ring` at most (int64)."""
    token, cap = torch.as_tensor(token), torch.as_tensor(cap)
    turning = (cap - sink).clamp(1, ring)
    return torch.where(token < cap, token, cap - turning + (token - cap) % turning)


class WorkingSet:
    """Pages and caps of one request; owns its pages until `release`."""

    def __init__(self, pool: HotPool, rule: CapRule, grant: Grant, rows: Rows | None = None) -> None:
        """`rows`: others than the rule's. RuntimeError when the pool has fewer pages: too much was promised."""
        self.pool = pool
        self.rule = rule
        self.grant = grant
        self.outgrown = False  # it wanted to grow and could not: full heads have begun to turn over
        self.alive = True
        self.slot = -1  # request slot, once it has one
        self.busy: set[int] = set()  # heads that the worker ranks tokens for
        self.length = 0  # tokens that its rows stand for, once it has any
        self.units = 0  # of the policy's index, beyond those that the request's length gives
        self.tail: dict[int, torch.Tensor] = {}  # per layer, the last queries of an unfinished prompt
        self.rows = rows or rule.rows(grant)
        nothing = torch.empty(0, dtype=torch.int64)
        self._take([nothing] * len(self.rows.caps), [nothing] * len(self.rows.caps))

    @property
    def prompt(self) -> int:
        """Tokens to prefill."""
        return self.grant.prompt

    @property
    def final(self) -> int:
        """Tokens the caps are made for."""
        return self.grant.final

    def _take(self, tables: list[torch.Tensor], index: list[torch.Tensor]) -> None:
        """Pages that `rows` need beyond these, head by head."""
        held = [*tables, *index]
        wanted = self.rule.pages(self.rows).ravel().tolist()
        extra = [count - pages.numel() for count, pages in zip(wanted, held, strict=True)]
        taken = self.pool.alloc(sum(extra))
        if taken is None:
            raise RuntimeError(
                f"hot pool: {sum(extra)} pages wanted, {self.pool.available} free: admission let through too much"
            )
        parts = [torch.cat(pair) for pair in zip(held, taken.split(extra), strict=True)]
        self.tables = parts[: len(tables)]  # per head [pages of the head]
        self.index = parts[len(tables) :]  # per head [pages of its index]
        self.caps: list[int] = self.rows.caps.tolist()
        self.cap = torch.tensor(self.caps, dtype=torch.int64)  # [heads]

    @property
    def pages(self) -> torch.Tensor:
        """Every page of this request."""
        return torch.cat([*self.tables, *self.index]) if self.tables else torch.empty(0, dtype=torch.int64)

    @property
    def index_rows(self) -> int:
        """Rows of each head's index; heads that have one are alike."""
        return int(self.rows.index.max(initial=0))

    @property
    def indexed(self) -> bool:
        """Whether room for an index is reserved."""
        return any(pages.numel() for pages in self.index)

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
        self._take(self.tables, self.index)

    def resume(self, grant: Grant) -> None:
        """Go on for another request. RuntimeError as for one that begins."""
        self.rows = self.rule.resumed(self.rows, grant, self.length)
        self.grant, self.outgrown = grant, False
        self._take(self.tables, self.index)

    def copy(self) -> "WorkingSet":
        """Another that holds the same rows. RuntimeError as for one that begins."""
        twin = WorkingSet(self.pool, self.rule, self.grant, self.rows)
        twin.length, twin.units = self.length, self.units
        self.pool.copy(self.pages, twin.pages)
        return twin

    def release(self) -> None:
        """Give every page back; what the worker still ranks for this request is dropped when it arrives."""
        self.alive = False
        self.pool.free(self.pages)


def run_start(ids: torch.Tensor) -> int:
    """The first of `ids` [n] where they are consecutive, else -1."""
    if not ids.numel() or int(ids[-1]) != int(ids[0]) + ids.numel() - 1:
        return -1
    return int(ids[0]) if bool((ids[1:] - ids[:-1] == 1).all()) else -1
