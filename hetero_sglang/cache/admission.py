"""Which requests may hold hot pages: decided from what all ranks hold, so that every rank decides alike.

Tensor-parallel ranks own different heads, so the same request takes other numbers of pages on each, and SGLang
makes every rank choose its batches by itself (managers/scheduler.py). Each rank therefore keeps the books of all of
them, and what the poorest rank cannot hold none admits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, product

import numpy as np

from hetero_sglang.config.caps import CapRule, Grant, Rows
from hetero_sglang.errors import HeteroError


@dataclass(frozen=True)
class Account:
    """A live request: what it was granted, the rows of all ranks' heads, and the pages [ranks] they take, beside those
    [ranks] that are a parked set's."""

    grant: Grant
    rows: Rows
    pages: np.ndarray
    shared: np.ndarray


class Admission:
    """The ledger of every rank's hot pages. Pure arithmetic over lengths: the same calls give the same answers."""

    def __init__(
        self, rule: CapRule, ranks: Sequence[Sequence[float]], pages: Sequence[int],
        adapters: Sequence[Sequence[Sequence[float]]] = (),
    ) -> None:  # fmt: skip
        """`ranks`: the fractions of each rank's compressed heads; `pages` [ranks]: the hot pages each has; `adapters`:
        as `ranks`, of each adapter with a profile of its own."""
        whole, *others = (tuple(chain.from_iterable(every)) for every in (ranks, *adapters))
        self.rule = replace(rule, fractions=whole, adapters=tuple(others))
        self.pages = np.array(pages, dtype=np.int64)
        self.free = self.pages.copy()  # [ranks]
        self.accounts: dict[int, Account] = {}  # by request slot
        self.parked: dict[int, Account] = {}  # of requests that have ended: whoever needs these pages gets them
        self.idle = np.zeros_like(self.pages)  # [ranks], theirs if nobody shares them, and of cached prefixes
        self.users: Counter[int] = Counter()  # by key of a parked set, live requests that share its pages
        counts = [len(fractions) for fractions in ranks]
        self.group = np.array(counts, dtype=np.int64)  # [ranks], pages of a group of a cached prefix
        self.groups = 0  # of these
        self._owner = np.repeat(np.arange(len(counts)), counts)  # [heads of all ranks]
        self._begin = lru_cache(maxsize=4096)(self._account)  # a queue is asked about at every step

    def grant(self, prompt: int, max_new: int, done: int = 0, shares: int = 0) -> Grant:
        """What a request of `prompt` tokens gets, of which `done` were generated before a retraction; `shares`: as of
        Grant.

        Short requests are kept whole where their whole rows fit an empty pool on every rank, and are compressed else.
        """
        grant = self.rule.grant(prompt, max_new, done, shares)
        if grant.whole and bool((self.demand(grant) > self.pages).any()):
            return replace(grant, whole=False)
        return grant

    def demand(self, grant: Grant) -> np.ndarray:
        """Hot pages [ranks] of a request that begins."""
        return self._begin(grant).pages

    def fits(self, pages: np.ndarray, promised: np.ndarray | int = 0, freed: np.ndarray | int = 0) -> bool:
        """Whether every rank has `pages` [ranks], beside `promised` [ranks] and with `freed` [ranks] given back."""
        return bool((pages + promised <= self.free + self.idle + freed).all())

    def resumed(self, key: int, grant: Grant, reached: int) -> Account | None:
        """What a request holds that goes on with the parked set of this key, which has rows of `reached` tokens; None
        where that would keep too little of it on any rank."""
        held = self.parked[key].rows
        if not self.rule.suits(held, grant, reached):
            return None
        return self._account(grant, self.rule.resumed(held, grant, reached))

    def sharing(self, key: int, whole: Account, reached: int) -> Account:
        """What `resumed` has said, if the parked set stays and others share its pages too."""
        shared = self._by_rank(self.rule.shared_pages(self.parked[key].rows, reached))
        return replace(whole, pages=whole.pages - shared, shared=shared)

    def lists(self, shared: np.ndarray) -> bool:
        """Whether there is room to list `shared` [ranks] pages again that are listed for another."""
        return bool((sum((x.shared for x in self.accounts.values()), shared) <= self.pages).all())

    def share(self, key: int) -> None:
        """A live request more shares the pages of a parked set: it stays."""
        if not self.users[key]:
            self.idle -= self.parked[key].pages
        self.users[key] += 1

    def leave(self, key: int) -> None:
        """One fewer does."""
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.idle += self.parked[key].pages

    def part(self, slot: int) -> None:
        """A live request that shares pages has its own. Whoever calls has seen that so many are free."""
        account = self.accounts[slot]
        self.free -= account.shared
        self.accounts[slot] = replace(account, pages=account.pages + account.shared, shared=np.zeros_like(self.pages))

    def absorb(self, slot: int, key: int) -> None:
        """A live request is alone with what it shares: the set is parked no longer."""
        self.free += self.parked.pop(key).pages
        del self.users[key]
        self.part(slot)

    def exact(self, grant: Grant, length: int) -> bool:
        """Whether every head of every rank would keep all of `length` tokens."""
        return length <= int(self._begin(grant).rows.caps.min(initial=length))

    def concurrent(self, length: int) -> int:
        """How many unshared requests that end at `length` tokens the hot pools hold at once."""
        demand = self.demand(self.grant(length - 1, 1))
        return int((self.pages[demand > 0] // demand[demand > 0]).min(initial=np.iinfo(np.int64).max))

    def open(self, slot: int, grant: Grant, resumed: Account | None = None) -> None:
        """A request with this request slot begins, or goes on as `resumed` once that set is no longer parked.

        RuntimeError when it does not fit: it was not asked first, or parked sets were not given up for it."""
        account = resumed or self._begin(grant)
        if slot in self.accounts:
            raise RuntimeError(f"request slot {slot} already holds hot pages")
        if bool((account.pages > self.free).any()):
            raise RuntimeError(f"{account.pages.tolist()} hot pages were promised, {self.free.tolist()} are free")
        self.accounts[slot] = account
        self.free -= account.pages

    def park(self, slot: int, key: int) -> None:
        """The request of this slot ended; its pages stay with its rows until they are needed."""
        self.parked[key] = self.accounts.pop(slot)
        self.idle += self.parked[key].pages

    @property
    def room(self) -> int:
        """Groups of a prefix for which every rank has free pages; none where no head is compressed."""
        some = self.group > 0
        return int((self.free[some] // self.group[some]).min()) if some.any() else 0

    def groups_short(self, pages: np.ndarray) -> int:
        """Groups of cached prefixes to give up so that every rank has `pages` [ranks], if there are so many."""
        some = self.group > 0
        return max(0, int((-(-(pages - self.free)[some] // self.group[some])).max(initial=0)))

    def keep(self, groups: int) -> None:
        """So many groups of a prefix more, or fewer, are cached."""
        self.groups += groups
        self.idle += groups * self.group
        self.free -= groups * self.group

    def unpark(self, key: int) -> None:
        """The pages of a parked set are free."""
        pages = self.parked.pop(key).pages
        self.idle -= pages
        self.free += pages

    def growth(self, slot: int) -> np.ndarray | None:
        """Pages [ranks] that a live request wants which outgrows its rows; None where they cannot be had."""
        wanted = self._grown(slot).pages - self.accounts[slot].pages
        return wanted if self.fits(wanted) else None

    def _grown(self, slot: int) -> Account:
        account = self.accounts[slot]
        grown = self._account(*self.rule.grown(account.grant, account.rows))
        return replace(grown, pages=grown.pages - account.shared, shared=account.shared)

    def grow(self, slot: int) -> bool:
        """A live request outgrows its rows: whether every rank has free pages for twice its length, then its own."""
        account, grown = self.accounts[slot], self._grown(slot)
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
        pages = self._by_rank(rule.pages(rows).sum(0))
        return Account(grant, rows, pages, np.zeros_like(pages))

    def _by_rank(self, pages: np.ndarray) -> np.ndarray:
        """Sums [ranks] of pages [heads of all ranks]."""
        return np.bincount(self._owner, pages, len(self.pages)).astype(np.int64)

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
        every = product(prompts, range(1 + len(rule.adapters)))
        grants = (Grant(prompt, longest, longest, whole=False, shares=shares) for prompt, shares in every)
        return np.max([self._account(grant, rule=rule).pages for grant in grants], axis=0)

    def _holds(self, longest: int, window: int) -> bool:
        return bool((self._longest(longest, replace(self.rule, window=window)) <= self.pages).all())

    def check_integrity(self, rank: int, available: int) -> None:
        """The books are balanced and `rank`'s pool has as many free pages as they say. RuntimeError else."""
        every = (*self.accounts.values(), *self.parked.values())
        held = sum((account.pages for account in every), self.groups * self.group)
        if bool((self.free + held != self.pages).any()) or int(self.free[rank]) != available:
            raise RuntimeError(
                f"hot pages of all ranks: {self.free.tolist()} free + {held.tolist()} held of {self.pages.tolist()}, "
                f"while rank {rank} has {available} free"
            )
        nobody = (account.pages for key, account in self.parked.items() if not self.users[key])
        if bool((sum(nobody, self.groups * self.group) != self.idle).any()):
            raise RuntimeError(f"hot pages of all ranks: {self.idle.tolist()} count as idle, which are others")
