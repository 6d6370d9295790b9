from __future__ import annotations

import inspect
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cpu import paged
from hetero_sglang.cpu.platform import ENGINE_VARIABLE
from hetero_sglang.sglang.version import release

pytestmark = pytest.mark.skipif(release() != "0.5.17", reason="later versions of SGLang do it themselves")


def never(*args: object, **kwargs: object) -> None:
    pytest.fail("SGLang's own function was called")


def oracle(
    prefix: list[int], seq: list[int], last: list[int], free: list[int], page: int
) -> tuple[list[int], int] | None:
    """Token by token: the next slot of the page, or slot 0 of the next free page."""
    slots, used = [], 0
    for start, end, slot in zip(prefix, seq, last, strict=True):
        for position in range(start, end):
            if position % page:
                slot += 1
            elif used == len(free):
                return None
            else:
                slot = free[used] * page
                used += 1
            slots.append(slot)
    return slots, used


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Prefix and total lengths, last slots, free pages and the page size; the pages may be too few."""
    page = draw(st.sampled_from([1, 2, 3, 16, 64]))
    rows = draw(st.lists(st.tuples(st.integers(0, 5 * page), st.integers(1, 5 * page)), min_size=1, max_size=6))
    prefix, seq = [start for start, _ in rows], [start + more for start, more in rows]
    pages = list(range(1, 60))
    draw(st.randoms(use_true_random=False)).shuffle(pages)
    begun, free = pages[: len(rows)], pages[len(rows) :][: draw(st.integers(0, 50))]
    # a prefix on a page boundary has nothing to continue: poison its last slot
    last = [at * page + (start - 1) % page if start % page else -7 for at, start in zip(begun, prefix, strict=True)]
    return prefix, seq, last, free, page


def tensors(*lists: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=torch.int64) for values in lists]


@given(batches())
def test_slots_are_those_of_the_token_by_token_oracle(batch: tuple[Any, ...]) -> None:
    *lists, page = batch
    got = paged.extend_slots(*tensors(*lists), page)
    want = oracle(*lists, page)
    assert (got and (got[0].tolist(), got[1])) == want
    assert got is None or got[0].dtype == torch.int64


@given(batches())
def test_slots_are_those_of_sglangs_own_slow_version(batch: tuple[Any, ...]) -> None:
    from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

    *lists, page = batch
    prefix, seq, last, free = tensors(*lists)
    got = paged.extend_slots(prefix, seq, last, free, page)
    if got is None:
        return
    want = torch.full((int((seq - prefix).sum()),), -1, dtype=torch.int64)
    alloc_extend_naive(prefix, seq, last, free, want, page, "cpu")
    assert torch.equal(got[0], want)


class Requests:
    """Requests that grow, step and leave on one allocator, as a scheduler makes them."""

    def __init__(self, page: int, pages: int, need_sort: bool) -> None:
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

        self.page = page
        self.pool = PagedTokenToKVPoolAllocator(page * pages, page, torch.bfloat16, "cpu", None, need_sort)
        self.slots: dict[int, list[int]] = {}

    def last(self, names: list[int]) -> torch.Tensor:
        return torch.tensor([self.slots[name][-1] if self.slots[name] else -1 for name in names])

    def extend(self, wanted: dict[int, int]) -> None:
        names = list(wanted)
        for name in names:
            self.slots.setdefault(name, [])
        prefix = torch.tensor([len(self.slots[name]) for name in names])
        seq = prefix + torch.tensor([wanted[name] for name in names])
        total = sum(wanted.values())
        out = paged.alloc_extend(never, self.pool, prefix, prefix, seq, seq, self.last(names), total)
        self.store(names, [wanted[name] for name in names], out)

    def decode(self) -> None:
        names = [name for name, slots in self.slots.items() if slots]
        if names:
            seq = torch.tensor([len(self.slots[name]) + 1 for name in names])
            self.store(names, [1] * len(names), paged.alloc_decode(never, self.pool, seq, seq, self.last(names)))

    def store(self, names: list[int], counts: list[int], out: torch.Tensor | None) -> None:
        needed = sum(
            -(-(len(self.slots[name]) + count) // self.page) - -(-len(self.slots[name]) // self.page)
            for name, count in zip(names, counts, strict=True)
        )
        free = self.pool.size // self.page - sum(-(-len(slots) // self.page) for slots in self.slots.values())
        assert (out is None) == (needed > free)  # refused exactly when the pages do not suffice
        if out is not None:
            for name, part in zip(names, out.split(counts), strict=True):
                self.slots[name] += part.tolist()

    def leave(self, name: int) -> None:
        slots = self.slots.pop(name)
        if slots:
            self.pool.free_segment(torch.tensor(slots), start_pos=0)

    def check(self) -> None:
        pages = []
        for slots in self.slots.values():
            assert all(slot % self.page == at % self.page for at, slot in enumerate(slots))
            for begin in range(0, len(slots), self.page):
                own = {slot // self.page for slot in slots[begin : begin + self.page]}
                assert len(own) == 1  # the tokens of a page's span lie in one page
                pages += own
        assert len(set(pages)) == len(pages) and 0 not in pages  # no page shared, the dummy page never given
        free = torch.cat((self.pool.free_pages, self.pool.release_pages)).tolist()
        assert sorted(free + pages) == list(range(1, self.pool.num_pages + 1))  # none lost


@pytest.mark.parametrize("need_sort", [False, True])
@pytest.mark.parametrize("page", [2, 16])
def test_random_requests_never_share_lose_or_scatter_a_page(page: int, need_sort: bool) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    world = Requests(page, pages=40, need_sort=need_sort)
    for step in range(400):
        if rng.random() < 0.3:
            old = [name for name in world.slots if rng.random() < 0.2]
            world.extend({name: rng.randint(1, 4 * page) for name in [*old, step]})
        elif rng.random() < 0.3 and world.slots:
            world.leave(rng.choice(list(world.slots)))
        else:
            world.decode()
        world.check()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("meta")])
def test_an_allocator_of_another_device_goes_to_sglangs_own_function(device: object) -> None:
    pool, calls = SimpleNamespace(device=device), []
    paged.alloc_extend(lambda *args: calls.append(args), pool, 1, 2, 3, 4, 5, 6, num_new_pages=7)
    paged.alloc_decode(lambda *args: calls.append(args), pool, 1, 2, last_loc=3)
    assert calls == [(pool, 1, 2, 3, 4, 5, 6, 7), (pool, 1, 2, 3)]


def test_the_seams_exist_in_sglang_with_these_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

    monkeypatch.setenv(ENGINE_VARIABLE, "1")
    for target, hook, _ in paged.seams():
        owner, name = target.rsplit(".", 1)
        assert owner.endswith(PagedTokenToKVPoolAllocator.__qualname__)
        theirs = list(inspect.signature(getattr(PagedTokenToKVPoolAllocator, name)).parameters)
        assert list(inspect.signature(hook).parameters) == ["orig", *theirs]


def test_a_gpu_server_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert paged.seams() == []
