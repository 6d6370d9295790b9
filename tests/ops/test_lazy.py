"""Probe, choice and swap of a decode step against the reference, with poison wherever nothing may be read."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import random_index

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import PINNED, HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops import reference, triton
from hetero_sglang.ops.base import Counted, StepTables
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first
from hetero_sglang.ops.reference.index import ask as reference_ask
from hetero_sglang.ops.reference.index import attention_guess, run_scores, unpack
from hetero_sglang.ops.reference.index import probe as reference_probe
from hetero_sglang.ops.reference.lack import best
from hetero_sglang.ops.reference.swap_in import swap_in as bring_swaps
from hetero_sglang.ops.reference.workspace import Coming
from hetero_sglang.ops.reference.workspace import Workspace as Handed
from hetero_sglang.ops.triton.ask import ask
from hetero_sglang.ops.triton.choose import choose
from hetero_sglang.ops.triton.probe import probe
from hetero_sglang.ops.triton.swap_in import seat, swap_in
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.profile.index_plan import EVERY, Fields, words

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIELDS = ((8, 4), (24, 2))
DIM, GROUP, TOTAL, WINDOW, PAGE, CONTEXT, SLOTS = 32, 3, 4, 6, 16, 1600, 4000
FIRST, STORED = 2, 3  # compressed heads in earlier layers, and of this one
WHICH = [0, 2]  # of these have an index
HEADS = len(WHICH)
SINK = 8
MORE = 37  # rows that a head may keep beyond the one before it
SHORT = 2**-7  # what a number in bfloat16 may lack


@dataclass
class World:
    """A layer's step: `held[b][c]` runs, and everything the operations read."""

    layer: LayerIndex
    step: StepTables
    hot: HotPool
    host: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    q: torch.Tensor
    tokens: list[torch.Tensor]

    @property
    def run(self) -> int:
        return self.layer.run

    def rows(self, b: int, c: int, places: torch.Tensor) -> torch.Tensor:
        """Flat hot rows [n, run] of places [n]."""
        row = SINK + places[:, None] * self.run + torch.arange(self.run)
        start = int(self.step.page_start[b, FIRST + WHICH[c]])
        return self.step.page_list.cpu()[start + row // PAGE].long() * PAGE + row % PAGE

    def places(self, b: int, c: int) -> int:
        """0 of a head that keeps all tokens."""
        cap = int(self.step.cap[b, FIRST + WHICH[c]])
        return (cap - SINK - WINDOW - self.run + 1) // self.run if int(self.step.length[b]) > cap else 0


def nothing_came(requests: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Request slots [B], and what counts for them: on the device and in host memory."""
    came = torch.zeros(requests.numel(), 2, FIRST + STORED, dtype=torch.int32, device=requests.device)
    return requests, came, torch.zeros_like(came, device="cpu").pin_memory() if came.is_cuda else came


def rounded(weight: torch.Tensor, fields: Fields) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., R] in 8 bits with a scale per field; and by how much a logit may be off for it, [...].

    Each weight by half a step, times how far codes are apart: what all tokens share does not count.
    """
    made, off = [], torch.zeros(weight.shape[:-1])
    for part, (count, bits) in zip(weight.split([count for count, _ in fields], -1), fields, strict=True):
        step = part.abs().amax(-1, keepdim=True) / 127
        made.append((part / step).round() * step)
        off += step[..., 0] / 2 * count * (2**bits - 1)
    return torch.cat(made, -1), off


def check_scores(world: World, b: int, given: torch.Tensor, fields: Fields, scale: float) -> None:
    """Of run scores [C, U]: exact but for 8-bit weights and shares in bfloat16, and no further from the reference than
    those may bring."""
    kept = world.layer.rows.index_select(1, world.tokens[b][:-1])
    q, decode = world.q[b].view(TOTAL, -1, DIM)[world.layer.heads.long()], world.layer.decode
    weight, off = rounded(torch.bmm(q, decode) * scale, fields)
    logits = torch.bmm(weight, unpack(kept, fields).transpose(1, 2))
    torch.testing.assert_close(given, run_scores(logits.softmax(-1).mean(1), world.run), rtol=SHORT + 2e-4, atol=1e-9)
    wanted = run_scores(attention_guess(q, unpack(kept, fields), decode, scale), world.run)
    assert ((given / wanted).log().abs() <= off.amax(1)[:, None] + SHORT + 1e-4).all()


def make(
    seed: int, run: int, lengths: list[int], caps: list[int], ties: bool = False, fields: Fields = FIELDS,
    group: int = GROUP, turns: tuple[int, int] = (1, 1),
) -> World:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    batch, pages = len(lengths), sum(-(-(cap + MORE * c) // PAGE) for cap in caps for c in range(HEADS)) + 5
    hot = HotPool(pages, PAGE, DIM, DIM, torch.float32, "cpu")
    for tensor in (hot.k, hot.v, hot.score):
        tensor.fill_(float("nan"))
    order = torch.randperm(pages, generator=g).int()
    cap = torch.full((batch, FIRST + STORED), 10_000_000, dtype=torch.int32)
    start = torch.full_like(cap, 10_000_000)
    slots = torch.full((batch * CONTEXT,), 10_000_000, dtype=torch.int32)
    starts = torch.arange(batch, dtype=torch.int32) * CONTEXT
    every = torch.randperm(SLOTS, generator=g).int()
    tokens, given, at = [], 0, 0
    host = torch.full((SLOTS // BLOCK, STORED, BLOCK, 2 * DIM), float("nan"))
    encode, offset = random_index(fields, HEADS, DIM, g)
    decode = torch.randn(HEADS, DIM, sum(count for count, _ in fields), generator=g) / 12
    rows = torch.randint(-(2**15), 2**15, (HEADS, SLOTS, words(fields)), generator=g).to(torch.int16)
    layer = LayerIndex(
        torch.tensor([1, 3], dtype=torch.int32),
        torch.tensor(WHICH, dtype=torch.int32),
        torch.tensor(turns, dtype=torch.int32),
        rows,
        encode,
        decode,
        offset,
        fields,
        FIRST,
        turn=seed % 4,
        run=run,
    )
    world = World(layer, None, hot, host, slots, starts, torch.empty(0), tokens)
    for b, (length, head_cap) in enumerate(zip(lengths, caps, strict=True)):
        mine = every[at : at + length]
        at += length
        slots[b * CONTEXT : b * CONTEXT + length] = mine
        tokens.append(mine.long())
        host[mine.long() // BLOCK, :, mine.long() % BLOCK] = torch.randn(length, STORED, 2 * DIM, generator=g)
        for c in range(HEADS):
            cap[b, FIRST + WHICH[c]], start[b, FIRST + WHICH[c]] = head_cap + MORE * c, given
            given += -(-(head_cap + MORE * c) // PAGE)
    world.step = StepTables(
        torch.tensor(lengths, dtype=torch.int32), cap, start, order, torch.tensor([lengths[0]]).int(),
        *nothing_came(torch.randperm(batch, generator=g).int()),
    )  # fmt: skip
    for b, length in enumerate(lengths):
        for c in range(HEADS):
            if not (places := world.places(b, c)):
                continue
            low, high = SINK // run, (length - WINDOW) // run
            held = torch.randperm(high - low, generator=g)[:places] + low
            flat = world.rows(b, c, torch.arange(places))
            hot.position.view(-1)[flat] = (held[:, None] * run + torch.arange(run)).int()
            old = torch.randint(max(1, length - 40), length, (places,), generator=g).int()
            never = used_at_first(torch.rand(places, generator=g))
            use = torch.where(torch.rand(places, generator=g) < 0.5, never, old)
            if b % 2:  # all were wanted a step ago, as this step's are now
                use = torch.full_like(use, length - 1)
            hot.used.view(-1)[flat] = torch.zeros_like(use)[:, None] if ties else use[:, None]
    wide = torch.randn(batch, 2 * TOTAL * group, DIM, generator=g)
    world.q = wide[:, : TOTAL * group]
    return world


def on_device(world: World) -> World:
    def move(value: object) -> object:
        return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

    hot = HotPool(world.hot.pages, PAGE, DIM, DIM, torch.float32, DEVICE)
    for name in ("k", "v", "position", "used", "score"):
        getattr(hot, name).copy_(getattr(world.hot, name))
    layer = LayerIndex(**{k: move(v) for k, v in vars(world.layer).items()})
    step = StepTables(**{k: move(v) for k, v in vars(world.step).items()})
    _, came, told = nothing_came(step.request)
    step = replace(step, came=came, told=told)
    host = world.host.pin_memory() if DEVICE.type == "cuda" else world.host
    return World(layer, step, hot, host, world.slots.to(DEVICE), world.starts.to(DEVICE),
                 world.q.to(DEVICE), world.tokens)  # fmt: skip


CASES = [
    (1, [700, 30, 0, 900, 220], [200, 64, 64, 430, 200], 300),  # of the last one's heads the second keeps all
    (4, [1500, 257], [158, 126], 300),
    (8, [641, 1300], [94, 334], 3),  # more is wanted than may come
    (1, [1300], [78], 300),
]


@pytest.mark.parametrize(
    ("run", "lengths", "caps", "most", "ties", "pinned"),
    [*((*case, ties, False) for case in CASES for ties in (False, True)), (4, [613], [126], 300, False, True)],
)
def test_a_step_is_the_reference_s(
    run: int, lengths: list[int], caps: list[int], most: int, ties: bool, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pinned`: all but few of the places may not be given away."""
    if ties:  # of many more splits
        for function in (choose, Workspace):
            monkeypatch.setattr(sys.modules[function.__module__], "TILE", 64)
        for function in (probe, Workspace):
            monkeypatch.setattr(sys.modules[function.__module__], "READ", 256)
    world = make(run + len(lengths), run, lengths, caps, ties)
    stays = {}
    for b in range(len(lengths) if pinned else 0):
        for c in range(HEADS):
            rows = world.rows(b, c, torch.arange(max(0, world.places(b, c) - 3))).flatten()
            world.hot.used.view(-1)[rows] += PINNED
            stays[rows] = world.hot.position.view(-1)[rows].clone()
    device = on_device(world)
    work = Workspace(len(lengths), HEADS, GROUP, CONTEXT, sum(lengths), run, most, DEVICE, 0, device.hot)
    assert not ties or work.splits(len(lengths) * HEADS) > 8
    for name in ("factors", "top", "total", "scores"):
        getattr(work, name).fill_(float("nan"))
    scale = DIM**-0.5
    args = (device.slots, device.starts, device.step)
    work.plan(device.step)
    probe(device.q, device.layer, *args, scale, SINK, WINDOW, work)
    flat_scores, begins = work.scores.cpu().clone(), work.place.tolist()
    choose(device.layer, device.step, device.hot, SINK, WINDOW, work)
    swap_in(device.layer, device.host, *args, device.hot, SINK, work, programs=6)
    assert device.hot.k.isnan().all() and device.hot.v.isnan().all(), "heads may still attend to what is there"
    seat(device.layer, device.step, device.hot, work)
    came = late = 0
    hot = world.hot
    for b, length in enumerate(lengths):
        runs = (length - 1) // run
        at = [begins[b] * HEADS + c * length for c in range(HEADS)]
        given = torch.stack([flat_scores[begin : begin + max(0, runs)] for begin in at])
        if all(world.places(b, c) for c in range(HEADS)):
            check_scores(world, b, given, FIELDS, scale)
        for c in range(HEADS):
            if not (places := world.places(b, c)):
                continue
            rows = world.rows(b, c, torch.arange(places))[None]  # [1, n, run]
            held = hot.position.view(-1)[rows[..., 0]] // run
            used = hot.used.view(-1)[rows[..., 0]].contiguous()
            low, high = SINK // run, (length - WINDOW) // run
            swaps = lazy(given[c : c + 1], held, used, length, low, high, max(1, places // PART), most)
            hot.used.view(-1)[rows] = used[..., None]
            came, late = came + swaps.run.numel(), late + int(swaps.late)
            world.step.came[int(world.step.request[b]), 1, FIRST + WHICH[c]] += int(swaps.late) * run
            handed = Handed(len(lengths), HEADS, GROUP, CONTEXT, sum(lengths), run, most, "cpu")
            heads = torch.full_like(swaps.head, WHICH[c])
            handed.coming.append(Coming(b, heads, swaps.run, rows[swaps.head, swaps.place]))
            bring_swaps(world.layer, world.host, world.slots, world.starts, world.step, hot, SINK, handed)
    assert came, "nothing came"
    assert work.counted.tolist() == [came * run, late * run] + [0] * (Counted.COUNT - 2)
    assert torch.equal(device.step.came.cpu(), world.step.came), "by request and head"
    assert torch.equal(device.step.told, world.step.came)
    got, taken = device.hot.position.cpu(), device.hot.used.cpu()
    for rows, positions in stays.items():
        assert torch.equal(got.view(-1)[rows], positions) and (taken.view(-1)[rows] > PINNED // 2).all()
    for b in range(len(lengths)):
        for c in range(HEADS):
            if not world.places(b, c):
                continue
            flat = world.rows(b, c, torch.arange(world.places(b, c)))
            # The same runs in the same places' set: which of them takes which place is nobody's business.
            mine, theirs = (p.view(-1)[flat].sort(0).values for p in (got, hot.position))
            assert torch.equal(mine, theirs)
            token = got.view(-1)[flat].long()
            assert torch.equal(token, token[:, :1] + torch.arange(run))
    assert torch.equal(taken.view(-1).sort().values, hot.used.view(-1).sort().values)
    fresh = device.hot.k.cpu().view(-1, DIM)
    for b in range(len(lengths)):
        for c in range(HEADS):
            flat = world.rows(b, c, torch.arange(world.places(b, c))).flatten()
            new = ~fresh[flat].isnan().any(1)
            slot = world.tokens[b][got.view(-1)[flat][new].long()]
            assert torch.equal(fresh[flat][new], world.host[slot // BLOCK, WHICH[c], slot % BLOCK, :DIM])
            assert torch.equal(
                device.hot.v.cpu().view(-1, DIM)[flat][new], world.host[slot // BLOCK, WHICH[c], slot % BLOCK, DIM:]
            )
    assert int((~fresh.isnan().any(1)).sum()) == came * run, "rows were written that nobody asked for"


PLANS = [
    (((8, 4), (24, 2)), 1, 1), (((8, 4), (16, 2), (16, 1)), 5, 4), (((16, 1),), 16, 8), (((16, 2), (16, 1)), 2, 1),
    (((4, 4), (48, 1)), 4, 1), (((40, 4), (32, 2)), 3, 8),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "group", "run"), PLANS)
def test_scores_by_indexes_of_any_fields(fields: Fields, group: int, run: int) -> None:
    world = make(group, run, [1301], [94], fields=fields, group=group)
    device = on_device(world)
    work = Workspace(1, HEADS, group, CONTEXT, 1301, run, 300, DEVICE, 0, device.hot)
    work.plan(device.step)
    args = (device.slots, device.starts, device.step)
    probe(device.q, device.layer, *args, DIM**-0.5, SINK, WINDOW, work)
    given = torch.stack([work.scores.cpu()[c * 1301 : c * 1301 + 1300 // run] for c in range(HEADS)])
    check_scores(world, 0, given, fields, DIM**-0.5)


def test_heads_whose_turn_it_is_not_keep_their_rows() -> None:
    lengths, turns = [700, 903], (2, 4)
    world = make(6, 1, lengths, [200, 300], turns=turns)
    device = on_device(world)
    work = Workspace(2, HEADS, GROUP, CONTEXT, 1700, 1, 300, DEVICE, 0, device.hot)
    work.comes.fill_(7)
    args = (device.slots, device.starts, device.step)
    work.plan(device.step)
    probe(device.q, device.layer, *args, DIM**-0.5, SINK, WINDOW, work)
    used = device.hot.used.clone()
    choose(device.layer, device.step, device.hot, SINK, WINDOW, work)
    due = [(int(world.step.clock) + world.layer.turn) % n == 0 for n in turns]  # of every request
    assert (work.comes.view(2, HEADS) > 0).tolist() == [due] * 2 and any(due) and not all(due)
    for b in (0, 1):
        for c in range(HEADS):
            rows = world.rows(b, c, torch.arange(world.places(b, c))).to(DEVICE)
            assert due[c] or torch.equal(used.view(-1)[rows], device.hot.used.view(-1)[rows])


def test_requests_beyond_the_workspace_take_turns() -> None:
    """One keeps the rows that it has, once all layers had a turn the other."""
    world = make(5, 1, [700, 900], [200, 300])
    device = on_device(world)
    work = Workspace(2, HEADS, GROUP, CONTEXT, 1000, 1, 300, DEVICE, 0, device.hot)
    args, before, chosen = (device.slots, device.starts, device.step), device.hot.position.cpu().clone(), []
    for _ in range(2):
        device.step.clock.add_(EVERY[-1])
        work.plan(device.step)
        probe(device.q, device.layer, *args, DIM**-0.5, SINK, WINDOW, work)
        choose(device.layer, device.step, device.hot, SINK, WINDOW, work)
        swap_in(device.layer, device.host, *args, device.hot, SINK, work)
        now = device.hot.position.cpu().clone()
        rows = [torch.cat([world.rows(b, c, torch.arange(world.places(b, c))) for c in range(HEADS)]) for b in (0, 1)]
        chosen.append([not torch.equal(before.view(-1)[each], now.view(-1)[each]) for each in rows])
        before = now
    assert sorted(chosen) == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("run", "lengths", "caps", "most"),
    [(1, [700, 90, 903], [200, 300, 260], 300), (4, [1203], [180], 300), (8, [1203], [250], 2)],
)
def test_drafts_want_what_a_step_would_and_change_nothing(
    run: int, lengths: list[int], caps: list[int], most: int
) -> None:
    world = make(11 + run, run, lengths, caps)
    device = on_device(world)
    work = Workspace(len(lengths), HEADS, GROUP, CONTEXT, sum(lengths), run, most, DEVICE, 0, device.hot)
    args = (device.slots, device.starts, device.step)
    work.plan(device.step)
    probe(device.q, device.layer, *args, DIM**-0.5, SINK, WINDOW, work)
    given, begins = work.scores.cpu().clone(), work.place.tolist()
    before = [store.cpu().clone() for store in (device.hot.k, device.hot.v, device.hot.used, device.hot.position)]
    choose(device.layer, device.step, device.hot, SINK, WINDOW, work, passing=True)
    swap_in(device.layer, device.host, *args, device.hot, SINK, work, passing=True)
    stores = (device.hot.k, device.hot.v, device.hot.used, device.hot.position)
    for store, was in zip(stores, before, strict=True):
        assert torch.equal(store.cpu().nan_to_num(-7), was.nan_to_num(-7))
    comes, total, late = work.comes.cpu().view(-1, HEADS), 0, 0
    each = work.limit(len(lengths) * HEADS, run) * run
    arrived = work.arrived_k.cpu()
    for b, length in enumerate(lengths):
        for c in range(HEADS):
            places = world.places(b, c)
            if not places:
                assert not int(comes[b, c])
                continue
            rows = world.rows(b, c, torch.arange(places))
            held, used = (x.view(-1)[rows[:, 0]][None] for x in (world.hot.position, world.hot.used.clone()))
            at = begins[b] * HEADS + c * length
            scores = given[at : at + (length - 1) // run][None]
            low, high = SINK // run, (length - WINDOW) // run
            limit = min(most, work.limit(len(lengths) * HEADS, run))
            wanted = lazy(scores, held // run, used, length, low, high, max(1, places // PART), limit, passing=True)
            token = (wanted.run[:, None] * run + torch.arange(run)).flatten()
            slot = world.tokens[b][token]
            theirs = world.host[slot // BLOCK, WHICH[c], slot % BLOCK, :DIM]
            mine = arrived[(b * HEADS + c) * each :][: int(comes[b, c]) * run]
            assert torch.equal(mine.sort(0).values, theirs.sort(0).values)
            total, late = total + len(token), late + int(wanted.late.sum()) * run
    assert [total, late] == work.counted[[Counted.ROWS, Counted.LATE]].tolist() and total > 0


@given(
    batch=st.integers(1, 40), heads=st.integers(1, 9), run=st.sampled_from([1, 4, 8]), most=st.integers(1, 3000),
    width=st.data(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_whatever_comes_has_room(batch: int, heads: int, run: int, most: int, width: st.DataObject) -> None:
    """In steps of fewer requests and in layers of shorter runs too, each head's rows lie apart from the next one's."""
    hot = HotPool(1, 1, 1, 1, torch.float32, "cpu")
    work = Workspace(batch, heads, 1, 16, 16, run, most, "cpu", 0, hot)
    units = width.draw(st.integers(1, batch)) * heads
    for one in (1, 4, 8)[: (1, 4, 8).index(run) + 1]:
        assert 1 <= work.limit(units, one) <= most and units * work.limit(units, one) * one <= len(work.arrived)


@pytest.mark.parametrize(
    ("run", "length", "cap", "count", "group", "fields"),
    [(1, 700, 200, 5, GROUP, FIELDS), (4, 613, 126, 33, GROUP, ((8, 4), (24, 2))), (8, 900, 200, 2, 1, ((16, 1),)),
     (2, 300, 90, 17, 8, ((16, 2), (16, 1)))],
)  # fmt: skip
def test_what_many_queries_of_a_prompt_ask_for_comes_as_in_a_step(
    run: int, length: int, cap: int, count: int, group: int, fields: Fields
) -> None:
    """The best score that any of them gives counts. Every head looks, whoever's turn it is, and one that keeps all
    tokens does not."""
    world = make(7 * run, run, [length], [cap], fields=fields, group=group, turns=(2, 4))
    if run == 4:  # the second keeps all
        world.step.cap[0, FIRST + WHICH[1]] = length
    q = torch.randn(count, TOTAL * group, DIM, generator=torch.Generator().manual_seed(run))
    device, scale = on_device(world), DIM**-0.5
    work = Workspace(2, HEADS, group, CONTEXT, 2 * length, run, 300, DEVICE, 0, device.hot)
    for name in ("factors", "top", "total", "scores"):
        getattr(work, name).fill_(float("nan"))
    for name in ("wanted", "idle", "hits"):
        getattr(work, name).fill_(12345)
    step = replace(device.step, clock=torch.full_like(device.step.clock, -device.layer.turn % 4))
    ask(q[None].to(DEVICE), device.layer, device.slots, device.starts, step, length, scale, SINK, WINDOW, work)
    scores = work.scores[: HEADS * length].view(HEADS, length)[:, : (length - 1) // run].cpu().clone()
    heads = [c for c in range(HEADS) if world.places(0, c)]
    each = []
    for one in q:
        alone = replace(world, q=one[None], step=replace(world.step, clock=step.clock.cpu()))
        plain = Handed(1, HEADS, group, CONTEXT, length, run, 300, "cpu")
        reference_probe(alone.q, alone.layer, alone.slots, alone.starts, alone.step, scale, SINK, WINDOW, plain)
        each.append(plain.found[0].scores)
    highest = torch.stack(each).amax(0)
    plain = Handed(1, HEADS, group, CONTEXT, length, run, 300, "cpu")
    reference_ask(q[None], world.layer, world.slots, world.starts, world.step, length, scale, SINK, WINDOW, plain)
    torch.testing.assert_close(plain.found[0].scores, highest)
    assert plain.found[0].heads.tolist() == [WHICH[c] for c in heads]
    close = 1e-3 if DEVICE.type == "cpu" else 0.05  # tensor cores round weights
    assert ((scores[heads] / highest).log().abs() < close).all()
    choose(device.layer, step, device.hot, SINK, WINDOW, work)
    swap_in(device.layer, device.host, device.slots, device.starts, step, device.hot, SINK, work, programs=6)
    seat(device.layer, step, device.hot, work)
    came = 0
    for c in heads:
        rows = world.rows(0, c, torch.arange(world.places(0, c)))
        held, used = (t.view(-1)[rows[:, 0]][None].clone() for t in (world.hot.position // run, world.hot.used))
        low, high = SINK // run, (length - WINDOW) // run
        swaps = lazy(scores[c : c + 1], held, used, length, low, high, max(1, rows.shape[0] // PART), 300)
        held[0, swaps.place] = swaps.run.int()
        came += swaps.run.numel()
        now = device.hot.position.view(-1).cpu()[rows[:, 0]] // run
        assert sorted(now.tolist()) == sorted(held[0].tolist())
        moved = rows[swaps.place].flatten()
        token = device.hot.position.view(-1).cpu()[moved].long()
        slot = world.tokens[0][token]
        wanted = world.host[slot // BLOCK, WHICH[c], slot % BLOCK]
        got = [store.view(-1, DIM).cpu()[moved] for store in (device.hot.k, device.hot.v)]
        assert torch.equal(torch.cat(got, 1), wanted)
    assert came and work.counted[Counted.ROWS] == came * run == device.step.came.sum()


@pytest.mark.parametrize("ops", [reference, triton], ids=["reference", "triton"])
@pytest.mark.parametrize(
    ("run", "length", "cap", "most", "group", "fields"),
    [(1, 700, 200, 300, GROUP, FIELDS), (4, 613, 126, 300, GROUP, FIELDS), (8, 900, 200, 2, 1, ((16, 1),))],
)
def test_what_tokens_want_passes_by(
    ops: ModuleType, run: int, length: int, cap: int, most: int, group: int, fields: Fields
) -> None:
    """Of a prompt's blocks each has what it wants and lacks beside, as far as there is room; nothing else changes."""
    world = make(3 * run, run, [length], [cap], fields=fields, group=group, turns=(2, 4))
    if run == 4:  # the second keeps all
        world.step.cap[0, FIRST + WHICH[1]] = length
    place, blocks, there = on_device(world) if ops is triton else world, 4, 3
    q = torch.randn(blocks, 5, TOTAL * group, DIM, generator=torch.Generator().manual_seed(run)).to(place.q.device)
    lengths = torch.tensor([length] * there + [0], dtype=torch.int32, device=place.q.device)
    cap, start = (table.expand(blocks, -1) for table in (place.step.cap, place.step.page_start))
    clock = torch.full_like(place.step.clock, -place.layer.turn % 4)
    step = replace(
        place.step, length=lengths, cap=cap, page_start=start, clock=clock, request=torch.zeros_like(lengths)
    )
    starts = torch.zeros_like(lengths)
    work = ops.Workspace(blocks, HEADS, group, CONTEXT, blocks * length, run, most, place.q.device, 0, place.hot)
    if ops is triton:
        work.scores.fill_(float("nan"))
        for name in ("wanted", "idle", "hits", "comes"):
            getattr(work, name).fill_(12345)
    before = {name: getattr(place.hot, name).clone() for name in ("k", "v", "position", "used", "score")}
    ops.ask(q, place.layer, place.slots, starts, step, length, DIM**-0.5, SINK, WINDOW, work, place.hot)
    scores, close = [], 1e-3 if DEVICE.type == "cpu" else 0.05  # tensor cores round weights
    for b in range(there):
        plain = Handed(1, HEADS, group, CONTEXT, length, run, most, "cpu")
        args = (world.layer, world.slots, world.starts, world.step, length, DIM**-0.5, SINK, WINDOW, plain, world.hot)
        scores.append(reference_ask(q[b : b + 1].cpu(), *args))
        if ops is triton:
            together = work.scores.view(blocks, -1)[b].view(HEADS, length)[:, : (length - 1) // run].cpu()
            for c in [c for c in range(HEADS) if world.places(0, c)]:
                some = scores[b][c] >= 0
                assert torch.equal(together[c] >= 0, some) and not some.all()
                assert ((together[c] / scores[b][c])[some].log().abs() < close).all()
                scores[b][c] = together[c]  # bins are told apart by them
    ops.lack(place.layer, step, SINK, WINDOW, work)
    ops.swap_in(place.layer, place.host, place.slots, starts, step, place.hot, SINK, work, passing=True)
    for name, was in before.items():
        assert torch.equal(was.nan_to_num(7), getattr(place.hot, name).nan_to_num(7)), name
    limit, came = work.limit(blocks * HEADS, run), 0
    for b in range(blocks):
        for c in range(HEADS):
            got = _beside(work, b, c, limit, run)
            if b == there or not (places := world.places(0, c)):
                assert not len(got)
                continue
            held = world.hot.position.view(-1)[world.rows(0, c, torch.arange(places))[:, 0]].long() // run
            assert (scores[b][c, held] == -1).all() and (scores[b][c] >= 0).sum() == scores[b].shape[1] - places
            _, runs = best(scores[b][c : c + 1], SINK // run, (length - WINDOW) // run, min(most, limit))
            token = (runs[:, None] * run + torch.arange(run)).flatten()
            slot = world.tokens[0][token]
            wanted = world.host[slot // BLOCK, WHICH[c], slot % BLOCK]
            assert torch.equal(*(rows[rows[:, 0].argsort()] for rows in (got, wanted)))
            came += len(token)
    assert came > 0 and work.counted[Counted.ROWS] == came == place.step.came[0, 0].sum()


def _beside(work: Workspace | Handed, b: int, c: int, limit: int, run: int) -> torch.Tensor:
    """Rows [n, D + Dv] that came for block `b` and head `c`."""
    if isinstance(work, Handed):
        found = [torch.cat((x.k, x.v), 1)[x.head == WHICH[c]] for x in work.arrived if x.request == b]
        return torch.cat(found) if found else torch.empty(0, 2 * DIM)
    unit = b * HEADS + c
    mine = slice(unit * limit * run, unit * limit * run + int(work.comes[unit]) * run)
    return torch.cat((work.arrived_k[mine], work.arrived_v[mine]), 1).cpu()
