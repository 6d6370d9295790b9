"""The two-tier cache of one tensor-parallel rank: its stores, its requests, and the laws that tie them together."""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.cache.admission import Account, Admission
from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import IndexStore
from hetero_sglang.cache.lanes import Mark
from hetero_sglang.cache.parking import Parked, Parking
from hetero_sglang.cache.prefix_cache import NOWHERE, PrefixCache
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.tally import Tally
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.caps import Grant
from hetero_sglang.config.settings import Settings

_ON_THEIR_WAY = 64  # batches of freed slots that need not have arrived; older ones have


@dataclass(frozen=True)
class Tier:
    """Tokens that a tier holds, and could hold, the bytes that it has, and those of a token."""

    used: int
    total: int
    nbytes: int
    token_bytes: int


class TieredCache:
    """Owns every pool and working set. Used from the scheduler's thread alone."""

    def __init__(
        self,
        settings: Settings,
        resident: ResidentStore,
        host: HostStore,
        hot: HotPool,
        counters: Counters,
        pages: Sequence[int] | None = None,
    ) -> None:
        """`pages`: hot pages of every rank; None: all have as many as this one."""
        self.settings = settings
        self.resident = resident
        self.host = host
        self.hot = hot
        self.counters = counters
        self.index: IndexStore | None = None
        if settings.index is not None:
            self.index = IndexStore(host.rows, settings.layout, settings.index, hot.k.device)
        ranks = [layout.fractions for layout in settings.ranks]
        self.admission = Admission(settings.rule, ranks, pages or [hot.pages] * len(ranks), settings.adapters)
        self.requests: dict[int, WorkingSet] = {}  # by request slot
        self.parking = Parking(settings.rule.slack)
        self.prefixes = PrefixCache(hot, host.rows, settings.layout.num_compressed, self.admission.room)
        self._freed: deque[tuple[torch.Tensor, Mark]] = deque()  # token slots that `prefixes` has not forgotten yet
        # token slots [rows] that hold a token, in both tiers; where SGLang's slots are, so that nothing waits for them
        self.written = torch.zeros(host.rows, dtype=torch.bool, device=hot.k.device)

    def start(self, slot: int, grant: Grant) -> WorkingSet:
        """A request got request slot `slot`: it gets the working set it was granted."""
        self._clear(self.admission.demand(grant))
        self.admission.open(slot, grant)
        ws = self.requests[slot] = WorkingSet(self.hot, self.settings.rule, grant)
        ws.slot = slot
        self.counters.requests += 1
        ws.tally.number = self.counters.requests
        return ws

    def resumable(self, parked: Parked, grant: Grant, prefix: int, length: int) -> Account | None:
        """What a request of `length` tokens holds if it goes on with a parked set, of whose tokens it shares the first
        `prefix`; None where it had better not.

        Where every token is held, the rest is exact; else it may be as long as an append may be."""
        reached, key = parked.ws.length, parked.key
        if not 0 <= reached - prefix <= self.parking.slack or prefix < 1 or length < reached:
            return None
        account = self.admission.resumed(key, grant, reached)
        if account is None or not bool((self.admission.parked[key].rows.caps < reached).any()):
            return account if account and length <= int(account.rows.caps.min(initial=length)) else None
        return account if self.index is not None and length - prefix <= self.settings.append else None

    def claim(self, parked: Parked) -> None:
        """A request is about to go on with a parked set, which stays until it does; before any of a pass gets its
        pages."""
        self.admission.share(parked.key)
        self._pin(parked, self.admission.users[parked.key] > 1)

    def _pin(self, parked: Parked, stay: bool) -> None:
        if parked.pinned != stay:
            parked.ws.pin(stay)
            parked.pinned = stay

    def resume(self, slot: int, parked: Parked, account: Account, alone: bool = False) -> None:
        """A request got request slot `slot`, and goes on with a parked set that it has claimed. `alone`: it is parked
        no longer; else others may join until the request decodes."""
        ws, key = parked.ws, parked.key
        if alone:
            self._clear(account.pages - self.admission.parked[key].pages)
            self.parking.take(parked)
            self.admission.leave(key)
            self.admission.unpark(key)
        else:
            self._clear(account.pages)
            ws = ws.share()
            ws.base = key
            self.counters.shared_requests += self.admission.users[key] > 1
        self.admission.open(slot, account.grant, account)
        ws.resume(account.grant)
        self.requests[slot], ws.slot = ws, slot
        self.counters.requests += 1
        ws.tally = Tally(self.counters.requests, resumed=True)
        self.counters.resumed_requests += 1

    def park(self, slot: int, tokens: np.ndarray, salt: Hashable) -> None:
        """The request of this slot has ended with these tokens [n] in the radix tree: its working set waits for the
        next turn, if its pages are not needed before."""
        ws = self.requests[slot]
        if not self.own(ws):
            self.finish(slot)  # what it shares is still parked
            return
        del self.requests[slot]
        ws.slot = -1
        self.admission.park(slot, self.parking.add(ws, tokens, salt).key)

    def own(self, ws: WorkingSet) -> bool:
        """Whether a request may write to all of its pages: those that it shares become its own if nobody else does,
        else it gets others if there are any that nobody needs."""
        books, base = self.admission, ws.base
        if base is None:
            return True
        if books.users[base] == 1:
            parked = self.parking.sets[base]
            self._pin(parked, False)
            self.parking.take(parked)
            books.absorb(ws.slot, base)
            ws.absorb(parked.ws)
            return True
        shared = books.accounts[ws.slot].shared
        if not books.fits(shared):
            return False
        self._clear(shared)
        books.part(ws.slot)
        ws.part()
        books.leave(base)
        return True

    def find_prefix(self, slots: np.ndarray) -> np.ndarray:
        """Where rows of tokens at `slots` [n] are on the device: places [n] in `prefixes`. Waits for slots that are on
        their way."""
        self._forget(len(self._freed))
        return self.prefixes.find(slots)

    def _forget(self, count: int) -> None:
        """The first `count` batches of slots on their way: all ranks do it at the same point."""
        for _ in range(count):
            freed, arrived = self._freed.popleft()
            arrived.wait()
            self.admission.keep(-self.prefixes.forget(freed.numpy()))

    def restorable(self, ws: WorkingSet, slots: torch.Tensor, count: int) -> bool:
        """Whether a request whose prompt is `count` tokens behind a cached prefix at `slots` [n], on the device, makes
        its working set of the prefix's index: where that takes half of the rows that the device lacks of the whole, or
        less. Waits for the device where that is asked for."""
        if not self.settings.restores or not 0 < count <= self.settings.append or not slots.numel():
            return False
        caps = self.admission.accounts[ws.slot].rows.caps  # of all ranks, which decide alike
        lacking = int((self.find_prefix(slots.cpu().numpy()) == NOWHERE).sum())
        return 2 * int(caps.clip(max=slots.numel()).sum()) <= lacking * len(caps)

    def keep_prefix(self, slots: np.ndarray, needed: set[int]) -> np.ndarray:
        """Take in as many of `slots` [n], of which none is known, as free pages and groups that are not `needed` have
        room for: places [m]; the caller writes their rows."""
        wanted = -(-len(slots) // self.hot.page_size)
        self.admission.keep(-self.prefixes.give_up(wanted - self.admission.room, needed))
        places = self.prefixes.add(slots, min(wanted, self.admission.room))
        self.admission.keep(-(-len(places) // self.hot.page_size))
        return places

    def _clear(self, pages: np.ndarray) -> None:
        """Give up prefixes, then parked sets that nobody shares, the oldest first, until every rank has `pages` [ranks]
        or all are gone."""
        self.admission.keep(-self.prefixes.give_up(self.admission.groups_short(pages)))
        for parked in [each for each in self.parking.sets.values() if not self.admission.users[each.key]]:
            if not bool((pages > self.admission.free).any()):
                return
            self.parking.take(parked).release()
            self.admission.unpark(parked.key)

    def make_room(self, ws: WorkingSet, length: int) -> None:
        """Before a decode step: let a request that outgrows its reserve keep what its budget allows, and one that
        shares rows change them."""
        self.own(ws)
        if ws.outgrown or not ws.final < length <= ws.grant.limit:
            return
        if (growth := self.admission.growth(ws.slot)) is not None:
            self._clear(growth)
        if self.admission.grow(ws.slot):
            ws.grow()
        else:
            ws.outgrown = True
            self.counters.refused_growth += 1

    def compressed(self, ws: WorkingSet) -> None:
        """A prompt has ended longer than its working set: count what the request keeps on the device, and of what."""
        index = self.index.nbytes if self.index else 0
        resident = (self.resident.nbytes + index) // self.host.rows  # bytes of a token
        page = self.hot.nbytes // (self.hot.pages + 1)
        self.counters.compressed_requests += 1
        self.counters.kept_bytes += (ws.count - int(ws.shared.sum())) * page + ws.final * resident
        self.counters.dense_bytes += ws.final * (self.resident.nbytes // self.host.rows + self.host.bytes_per_row)

    def finish(self, slot: int) -> None:
        """The request of this slot ended, was aborted or retracted: its pages are free at once."""
        ws = self.requests.pop(slot)
        ws.release()
        self.admission.close(slot)
        if ws.base is not None:
            self.admission.leave(ws.base)

    def slots_taken(self, slots: torch.Tensor) -> None:
        """A step is about to write tokens at `slots` [n], on the device; nothing waits for it."""
        self.written.index_fill_(0, slots.long(), True)

    def release_slots(self, slots: torch.Tensor) -> None:
        """Token slots [n] were freed in SGLang's allocator: free in both tiers, rankings of them are void.

        Any integer type, on the device or the host; nothing waits for them."""
        slots = slots.long()
        freed = self.host.release(slots)
        if self.prefixes.groups:
            self._freed.append(freed)
            self._forget(len(self._freed) - _ON_THEIR_WAY)
        self.written.index_fill_(0, slots.to(self.written.device), False)

    def reset(self) -> None:
        """Cache flush: every request, page and row is forgotten."""
        for slot in list(self.requests):
            self.finish(slot)
        self._clear(self.admission.pages)
        self._freed.clear()
        self.release_slots(torch.arange(self.host.rows))

    def check_integrity(self, free_slots: torch.Tensor | None = None) -> None:
        """Conservation in every tier; `free_slots` [n] are the token slots free in SGLang's allocator.

        Waits for the device. Raises RuntimeError with the counts when a page or row is lost, owned twice, or kept for a
        free slot."""
        empty = torch.empty(0, dtype=torch.int64)
        parked = [each.ws for each in self.parking.sets.values()]
        owned = [empty, *(ws.owned for ws in (*self.requests.values(), *parked)), self.prefixes.owned]
        self.hot.check_integrity(torch.cat(owned))
        self.admission.check_integrity(self.settings.rank, self.hot.available)
        if free_slots is not None and bool(self.written[free_slots].any()):
            kept = int(self.written[free_slots].sum())
            raise RuntimeError(f"{kept} of {free_slots.numel()} free token slots still count as holding a token")

    def page_states(self) -> dict[str, int]:
        """Hot pages, each once: of live requests, free, parked, or of cached prefixes; told in microseconds."""
        books, rank = self.admission, self.settings.rank
        free, prefix = self.hot.available, int(books.groups * books.group[rank])
        idle = int(books.idle[rank])
        used = self.hot.pages - free - idle
        return {"used": used, "free": free, "parked": idle - prefix, "prefix": prefix}

    def tiers(self, slots: int, all_slots: int) -> dict[str, Tier]:
        """By name, where `slots` of `all_slots` token slots are taken; told in microseconds."""
        rows, heads = self.host.rows, self.settings.layout.num_compressed
        index, hot = self.index.nbytes if self.index else 0, self.hot
        fixed = {"resident": self.resident.nbytes, "index": index, "host": self.host.nbytes}
        found = {
            name: Tier(slots if nbytes else 0, all_slots if nbytes else 0, nbytes, nbytes // rows)
            for name, nbytes in fixed.items()
        }
        used, held = self.page_states()["used"], hot.page_size / max(1, heads)  # tokens in a page
        page = hot.nbytes // (hot.pages + 1)
        return {**found, "hot": Tier(int(used * held), int(hot.pages * held), hot.nbytes, int(page / held))}

    def levels(self) -> dict[str, int]:
        """What is in use, told in microseconds."""
        parked = int(self.admission.idle[self.settings.rank])  # whoever needs them gets them
        return {
            "live_requests": len(self.requests),
            "parked_requests": len(self.parking.sets),
            "hot_pages": self.hot.pages,
            "hot_pages_free": self.hot.available + parked,
            "hot_pages_cached": parked,
            "hot_pages_shared": sum(int(each.shared[self.settings.rank]) for each in self.admission.accounts.values()),
            "prefix_tokens_held": self.admission.groups * self.hot.page_size,
        }

    def stats(self) -> dict[str, float | int | str | bool]:
        """Counters, levels and sizes, for /hetero/stats and /server_info; waits for nothing."""
        return {
            **self.counters.as_dict(),
            **self.levels(),
            "resident_bytes": self.resident.nbytes,
            "hot_bytes": self.hot.nbytes,
            "index_bytes": self.index.nbytes if self.index else 0,
            "host_bytes": self.host.nbytes,
        }

    def close(self) -> None:
        """Unmap the host store."""
        self.host.close()
