"""Which requests may hold hot pages: decided from what all ranks hold, so that every rank decides alike.

Tensor-parallel ranks own different heads, so the same request takes other numbers of pages on each, and SGLang
makes every rank choose its batches by itself (managers/scheduler.py). Each rank therefore keeps the books of all of
them, and what the poorest rank cannot hold none admits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hetero_sglang.config.caps import CapRule, Grant, Rows
from hetero_sglang.errors import HeteroError


@dataclass(frozen=True)
class Account:
    """A live request: what it was granted, the rows of all ranks' heads, and the pages [ranks] they take."""

    grant: Grant
    rows: Rows
    pages: np.ndarray


class Admission:
    """The ledger of every rank's hot pages. Pure arithmetic over lengths: the same calls give the same answers."""

    def __init__(self, rule: CapRule, ranks: Sequence[Sequence[float]], pages: Sequence[int]) -> None:
        """`ranks`: the fractions of each rank's compressed heads; `pages` [ranks]: the hot pages each has."""
        self.rule = replace(rule, fractions=tuple(f for fractions in ranks for f in fractions))
        self.pages = np.array(pages, dtype=np.int64)
        self.free = self.pages.copy()  # [ranks]
        self.accounts: dict[int, Account] = {}  # by request slot
        counts = [len(fractions) for fractions in ranks]
        self._owner = np.repeat(np.arange(len(counts)), counts)  # [heads of all ranks]
        self._begin = lru_cache(maxsize=4096)(self._account)  # a queue is asked about at every step

    def grant(self, prompt: int, max_new: int, done: int = 0) -> Grant:
        """What a request of `prompt` tokens gets, of which `done` were generated before a retraction.

        Short requests are kept whole where their whole rows fit an empty pool on every rank, and are compressed else.
        """
        grant = self.rule.grant(prompt, max_new, done)
        if grant.whole and bool((self.demand(grant) > self.pages).any()):
            return replace(grant, whole=False)
        return grant

    def demand(self, grant: Grant) -> np.ndarray:
        """Hot pages [ranks] of a request that begins."""
        return self._begin(grant).pages

    def fits(self, grant: Grant, promised: np.ndarray | int = 0, freed: np.ndarray | int = 0) -> bool:
        """Whether every rank has the pages, beside `promised` [ranks] and with `freed` [ranks] given back."""
        return bool((self.demand(grant) + promised <= self.free + freed).all())

    def exact(self, grant: Grant, length: int) -> bool:
        """Whether every head of every rank would keep all of `length` tokens."""
        return length <= int(self._begin(grant).rows.caps.min(initial=length))

    def concurrent(self, length: int) -> int:
        """How many unshared requests that end at `length` tokens the hot pools hold at once."""
        demand = self.demand(self.grant(length - 1, 1))
        return int((self.pages[demand > 0] // demand[demand > 0]).min(initial=np.iinfo(np.int64).max))

    def open(self, slot: int, grant: Grant) -> None:
        """A request with this request slot begins. RuntimeError when it does not fit: it was not asked first."""
        if slot in self.accounts:
            raise RuntimeError(f"request slot {slot} already holds hot pages")
        if not self.fits(grant):
            raise RuntimeError(f"{self.demand(grant).tolist()} hot pages were promised, {self.free.tolist()} are free")
        self.accounts[slot] = self._begin(grant)
        self.free -= self.demand(grant)

    def grow(self, slot: int) -> bool:
        """A live request outgrows its rows: whether every rank has pages for twice its length, then its own."""
        account = self.accounts[slot]
        grown = self._account(*self.rule.grown(account.grant, account.rows))
        if bool((grown.pages - account.pages > self.free).any()):
            return False
        self.free -= grown.pages - account.pages
        self.accounts[slot] = grown
        return True

    def close(self, slot: int) -> None:
        """The request of this slot ended, was aborted or retracted."""
        self.free += self.accounts.pop(slot).pages

    def _account(self, grant: Grant, rows: Rows | None = None, rule: CapRule | None = None) -> Account:
        rule = rule or self.rule
        rows = rows or rule.rows(grant)
        return Account(grant, rows, np.bincount(self._owner, rule.pages(rows).sum(0), len(self.pages)).astype(np.int64))

    def check_longest(self, longest: int) -> None:
        """Raises HeteroError unless a request that reaches `longest` tokens fits an empty pool on every rank."""
        wanted = self._longest(longest, self.rule)
        if not bool((wanted > self.pages).any()):
            return
        rank = int((wanted - self.pages).argmax())
        smaller = (1 << bits for bits in range(self.rule.window.bit_length() - 1, 0, -1))
        legal = [window for window in smaller if window < self.rule.window and self._holds(longest, window)]
        recipe = f"--hetero-window to {legal[0]} or below" if legal else "--hetero-window and --hetero-sink"
        raise HeteroError(
            f"A request of {longest} tokens needs {wanted[rank]} hot pages on rank {rank}, where --hetero-keep-ratio "
            f"leaves {self.pages[rank]}, because every head keeps {self.rule.sink} + {self.rule.ring_rows} tokens at "
            f"least; lower {recipe}, or raise --hetero-keep-ratio."
        )

    def _longest(self, longest: int, rule: CapRule) -> np.ndarray:
        """The most pages [ranks] a compressed request that reaches `longest` takes, wherever its prompt ends."""
        prompts = {max(1, longest - 1), *(1 << bits for bits in range(longest.bit_length() - 1))}
        grants = (Grant(prompt, longest, longest, whole=False) for prompt in prompts)
        return np.max([self._account(grant, rule=rule).pages for grant in grants], axis=0)

    def _holds(self, longest: int, window: int) -> bool:
        return bool((self._longest(longest, replace(self.rule, window=window)) <= self.pages).all())

    def check_integrity(self, rank: int, available: int) -> None:
        """The books are balanced and `rank`'s pool has as many free pages as they say. RuntimeError else."""
        held = sum((account.pages for account in self.accounts.values()), np.zeros_like(self.pages))
        if bool((self.free + held != self.pages).any()) or int(self.free[rank]) != available:
            raise RuntimeError(
                f"hot pages of all ranks: {self.free.tolist()} free + {held.tolist()} held of {self.pages.tolist()}, "
                f"while rank {rank} has {available} free"
            )
