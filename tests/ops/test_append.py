"""New tokens over a working set: both kinds of operations against float64 attention over what a head holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.lanes import Mark
from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.ops import reference, triton
from hetero_sglang.ops.base import Arrivals, Behind, LayerBuffers, StepTables, flat_rows
from hetero_sglang.ops.reference.workspace import Arrived

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Rows = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by head, K and V
SINK, RING, FIRST, PAGES, GARBAGE = 4, 12, 2, 300, 12345


class Sets:
    """A layer's heads, of which head c has `caps[c]` rows of a request of `reached` tokens; the rest is poisoned."""

    def __init__(self, seed: int, caps: list[int], reached: int, prefix: int, begins: int, page: int, dim: int,
                 v_dim: int, group: int, new: int) -> None:  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.g, self.caps, self.heads = g, caps, len(caps)
        numbers = torch.tensor([new, 0, prefix, reached], dtype=torch.int32, device=DEVICE)
        self.behind = Behind(numbers, new, reached - begins, 1, SINK, RING)
        self.k, self.v = (torch.randn(reached, self.heads, d, generator=g) for d in (dim, v_dim))
        self.new_q, self.new_k, self.new_v = (
            torch.randn(new, 2 * heads, d, generator=g)[:, heads:]  # slices of wider rows
            for heads, d in ((self.heads * group, dim), (self.heads, dim), (self.heads, v_dim))
        )
        order, pages = torch.randperm(PAGES * 16 // page, generator=g).int(), PAGES * 16 // page
        hot_k, hot_v = torch.full((pages, page, dim), float("nan")), torch.full((pages, page, v_dim), float("nan"))
        position = torch.full((pages, page), GARBAGE, dtype=torch.int32)
        cap, start = (torch.full((1, FIRST + self.heads), GARBAGE, dtype=torch.int32) for _ in range(2))
        at = 3
        self.held: list[torch.Tensor] = []  # of each head, tokens before the new ones
        for c, rows in enumerate(caps):
            cap[0, FIRST + c], start[0, FIRST + c] = rows, at
            token, row = self._tokens(rows, reached, begins)
            flat = flat_rows(order, at, row, page)
            hot_k.view(-1, dim)[flat], hot_v.view(-1, v_dim)[flat] = self.k[token, c], self.v[token, c]
            position.view(-1)[flat] = token.int()
            self.held.append(
                token[(token < prefix) & ((rows >= reached) | (row < rows - turning(rows)) | (token >= begins))]
            )
            at += -(-rows // page)
        role = torch.tensor([-1 - c for c in range(self.heads)], dtype=torch.int32)
        nothing = torch.empty(0, 0, dim)
        self.layer = LayerBuffers(
            *(each.to(DEVICE) for each in (role, nothing, nothing, torch.empty(0, self.heads, 0, 0), hot_k, hot_v,
                                           position, torch.full((pages, page), float("nan")))), FIRST,
        )  # fmt: skip
        nothing = torch.zeros(1, dtype=torch.int32)
        self.step = StepTables(*(each.to(DEVICE) for each in (nothing, cap, start, order, *[nothing] * 4)))

    def _tokens(self, rows: int, reached: int, begins: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of a head, and their rows: chosen ones at random, the ring's newest; each row has one."""
        if rows >= reached:
            return torch.arange(reached), torch.arange(reached)
        recent = torch.arange(reached - turning(rows), reached)
        fixed = rows - turning(rows)
        chosen = SINK + torch.randperm(begins - SINK, generator=self.g)[: max(0, fixed - SINK)]
        token = torch.cat((torch.arange(min(SINK, fixed)), chosen, recent))
        return token, torch.cat((torch.arange(fixed), ring_row(recent, rows, SINK, RING)))

    def wanted(self, scale: float, came: dict[int, Rows] | None = None) -> torch.Tensor:
        """[n, Hq, Dv] in float64; `came`: beside, by token, K and V of heads."""
        count, heads, _ = self.new_q.shape
        group = heads // self.heads
        out = torch.empty(count, heads, self.v.shape[2], dtype=torch.float64)
        for token in range(count):
            for head in range(heads):
                c = head // group
                beside = (came or {}).get(token, {}).get(c, (self.k[:0, c], self.v[:0, c]))
                k = torch.cat((self.k[self.held[c], c], self.new_k[: token + 1, c], beside[0])).double()
                v = torch.cat((self.v[self.held[c], c], self.new_v[: token + 1, c], beside[1])).double()
                out[token, head] = (k @ self.new_q[token, head].double() * scale).softmax(0) @ v
        return out

    @property
    def args(self) -> list[torch.Tensor]:
        return [self.new_q.to(DEVICE), self.new_k.to(DEVICE), self.new_v.to(DEVICE)]


def attended(ops: ModuleType, sets: Sets, scale: float) -> torch.Tensor:
    """To what is held and new alone."""
    q, k, v = sets.args
    out = q.new_full((*q.shape[:2], v.shape[2]), float("nan"))
    ops.append(q, k, v, sets.layer, sets.step, sets.behind, scale, out)
    return out


def turning(rows: int) -> int:
    return max(1, min(rows - SINK, RING))


@pytest.mark.parametrize("ops", [reference, triton], ids=["reference", "triton"])
@pytest.mark.parametrize(
    ("page", "dim", "v_dim", "group", "new", "cut"),
    [
        (16, 32, 32, 4, 3, 0),
        (1, 16, 24, 3, 70, 2),
        (16, 80, 80, 1, 17, 5),
        (4, 16, 16, 8, 1, 1),
        (16, 16, 16, 2, 40, 0),
    ],
)
def test_new_tokens_attend_to_what_heads_hold_and_to_those_before_them(
    ops: ModuleType, page: int, dim: int, v_dim: int, group: int, new: int, cut: int
) -> None:
    """Full heads and whole ones, in parts of any size; what no row holds is poisoned."""
    reached = 900 if new == 40 else 90
    sets = Sets(new, [reached // 2, reached, reached + 40, reached - 1, 17], reached, reached - cut, reached - 9, page,
                dim, v_dim, group, new)  # fmt: skip
    out = attended(ops, sets, dim**-0.5)
    torch.testing.assert_close(out.cpu().double(), sets.wanted(dim**-0.5), atol=2e-5, rtol=1e-4)


@given(
    reached=st.integers(20, 60), cut=st.integers(0, 4), new=st.integers(1, 30), page=st.sampled_from([1, 16]),
    caps=st.lists(st.integers(17, 80), min_size=2, max_size=2), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25)
def test_new_tokens_take_the_rows_of_those_that_leave(
    reached: int, cut: int, new: int, page: int, caps: list[int], seed: int
) -> None:
    """Both kinds of operations leave the same rows, in which the newest tokens are, and touch no others."""
    caps = [
        max(cap, reached - cut + new) if cap >= reached else cap for cap in caps
    ]  # a whole head has room, or is full
    prefix = reached - cut
    first, second = (Sets(seed, caps, reached, prefix, max(SINK, reached - 9), page, 16, 8, 2, new) for _ in range(2))
    before = first.layer.position.clone()
    for ops, sets in ((reference, first), (triton, second)):
        ops.keep(*sets.args[1:], sets.layer, sets.step, sets.behind)
    for name in ("hot_k", "hot_v", "position"):
        assert torch.equal(getattr(first.layer, name).nan_to_num(7), getattr(second.layer, name).nan_to_num(7)), name
    assert torch.equal(first.layer.score.isnan(), second.layer.score.isnan())
    changed = (first.layer.position != before).sum()
    most = sum(min(new, turning(cap)) if cap < prefix + new else new for cap in caps)
    assert changed <= most
    for c, cap in enumerate(caps):
        start = int(first.step.page_start[0, FIRST + c])
        row = torch.arange(min(cap, prefix + new))
        flat = flat_rows(first.step.page_list.cpu(), start, row, page)
        held = first.layer.position.view(-1).cpu()[flat]
        newest = torch.arange(max(prefix, prefix + new - turning(cap)), prefix + new)
        assert torch.isin(newest, held).all()
        for token in newest.tolist():
            at = flat[held == token]
            assert torch.equal(first.layer.hot_k.view(-1, 16).cpu()[at], first.new_k[token - prefix, c][None])
            assert torch.equal(first.layer.hot_v.view(-1, 8).cpu()[at], first.new_v[token - prefix, c][None])
            assert float(first.layer.score.view(-1).cpu()[at]) == 0


@pytest.mark.parametrize("ops", [reference, triton], ids=["reference", "triton"])
@pytest.mark.parametrize(("run", "group"), [(1, 2), (4, 3), (1, 16)])
def test_some_of_the_new_tokens_attend_to_what_came_for_their_block_too(ops: ModuleType, run: int, group: int) -> None:
    """They see all that are before them, also where shapes have room for more, as in a graph."""
    new, block, blocks = 30, 4, 4
    sets = Sets(5, [50, 90, 130], 90, 90, 81, 16, 16, 16, group, new)
    for first, count in ((0, 16), (16, 14)):
        heads = torch.tensor([2, 0], dtype=torch.int32, device=DEVICE)
        index = LayerIndex(*[heads] * 7, (), FIRST, run=run)
        work = _arrived(ops, sets, index, blocks, count)
        wanted = sets.wanted(16**-0.5, {at: work.came[(at - first) // block] for at in range(first, first + count)})
        numbers = torch.tensor([count, first, 90, 90], dtype=torch.int32, device=DEVICE)
        lengths = torch.full((blocks,), 90, dtype=torch.int32, device=DEVICE)
        step, behind = replace(sets.step, length=lengths), replace(sets.behind, numbers=numbers, block=block)
        args = [torch.cat((x, torch.full_like(x[:5], float("nan")))) if ops is triton else x for x in sets.args]
        out = torch.full((len(args[0]), 3 * group, 16), float("nan"), device=DEVICE)
        ops.append(*args, sets.layer, step, behind, 16**-0.5, out, Arrivals(index, work.work, Mark(None)))
        got = out.cpu().double()
        torch.testing.assert_close(got[first : first + count], wanted[first : first + count], atol=2e-5, rtol=1e-4)
        assert got[:first].isnan().all() and got[first + count :].isnan().all(), "rows of others were written"


@dataclass
class Came:
    work: Any
    came: list[Rows]  # by block


def _arrived(ops: ModuleType, sets: Sets, index: LayerIndex, blocks: int, count: int) -> Came:
    """Rows beside, of each block as many as it likes, for heads that have an index; the rest is poisoned."""
    hot = HotPool(1, 1, 16, 16, torch.float32, DEVICE)
    work = ops.Workspace(blocks, 2, 1, 64, 64, index.run, 200, DEVICE, 0, hot)
    limit, came = work.limit(blocks * 2, index.run) * index.run, []
    if ops is triton:
        work.arrived_k.fill_(float("nan"))
        work.arrived_v.fill_(float("nan"))
    for b in range(blocks):
        mine = {}
        for unit, c in enumerate(index.which.tolist()):
            runs = [0, 3, 40, 7][(b + unit) % 4]
            k, v = (torch.randn(runs * index.run, 16, generator=sets.g) for _ in range(2))
            mine[c] = k, v
            if ops is reference and runs:
                head = torch.full((len(k),), c)
                work.arrived.append(Arrived(b, head, None, k.to(DEVICE), v.to(DEVICE)))
            elif ops is triton:
                number = b * 2 + unit
                work.comes[number] = runs
                work.arrived_k[number * limit : number * limit + len(k)] = k.to(DEVICE)
                work.arrived_v[number * limit : number * limit + len(v)] = v.to(DEVICE)
        came.append(mine)
    return Came(work, came)


def test_a_part_of_a_head_that_has_nothing_counts_nothing() -> None:
    """Splits of the longest head leave none for a short one."""
    sets = Sets(3, [1500, 17], 1600, 1600, 1591, 16, 16, 16, 2, 2)
    out, again = attended(triton, sets, 0.25), attended(triton, sets, 0.25)
    torch.testing.assert_close(out.cpu().double(), sets.wanted(0.25), atol=2e-5, rtol=1e-4)
    assert torch.equal(out, again)
