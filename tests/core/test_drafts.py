"""Draft tokens: what they attend to, what those that stay leave, and that the others leave nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import (
    GROUP,
    Guess,
    Request,
    decode,
    dense,
    engine_of,
    held_positions,
    make_cache,
    make_settings,
    prefill,
    verify,
)
from test_lazy_heads import HEADS, LAYERS, SOME, Run, lazy_settings, slots_of

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config.settings import Settings
from hetero_sglang.engine.verify import Verification
from hetero_sglang.ops.reference.workspace import Workspace
from hetero_sglang.policy.snapkv import SnapKV
from hetero_sglang.policy.streamingllm import StreamingLLM
from hetero_sglang.profile.ablation import alike

BRANCHED = [-1, 0, 0, 1, 1, 3]  # two paths of two tokens, one of which goes on
PATHS = [[0], [0, 2], [0, 1, 3], [0, 1, 3, 5], [0, 1, 4]]


def begun(cache: TieredCache, prompts: list[int], more: int = 60) -> list[Request]:
    made, slots = [], slots_of(590, 3)
    for number, prompt in enumerate(prompts, start=1):
        mine, slots = slots[: prompt + more], slots[prompt + more :]
        made.append(Request(cache, number, prompt, prompt + more, mine, seed=number))
        made[-1].start()
    prefill(made, [(0, prompt) for prompt in prompts])
    return made


def settled(cache: TieredCache) -> dict[str, torch.Tensor]:
    """Every byte of the tiers that belongs to anybody, once all is written; nothing of padding's slot."""
    engine = engine_of(cache)
    engine.write_back.send()
    engine.write_back.latest.wait()
    cache.check_integrity()
    found = {f"host {n}": x.movedim(2, 1).flatten(0, 1)[1:] for n, x in enumerate(cache.host.blocks)}
    for name in ("k", "v"):
        for n, store in enumerate(getattr(cache.resident, name)):
            found[f"resident {name} {n}"] = store[1:]
    hot = cache.hot
    owned = torch.cat([ws.pages for ws in cache.requests.values()])
    for name in ("k", "v", "position", "used"):
        found[f"hot {name}"] = getattr(hot, name)[owned]
    for n, layer in enumerate(cache.index.layers if cache.index else ()):
        found[f"index {n}"] = layer.rows[:, 1:]
    found["written"] = cache.written[1:]
    assert not cache.written[0], "padding's slot"
    return {name: value.double().nan_to_num(-7.0) for name, value in found.items()}


def same(one: TieredCache, other: TieredCache, *but: str) -> None:
    wanted, got = settled(one), settled(other)
    for name, value in wanted.items():
        assert name in but or torch.equal(value, got[name]), name


@pytest.mark.parametrize("run", [1, 4, (8, 1)])
@pytest.mark.parametrize("path", PATHS)
def test_rejected_tokens_leave_nothing_in_any_tier(path: list[int], run: Run) -> None:
    """To the byte what a pass leaves that had no other drafts, in tiers, working sets and indexes; time after time."""
    chain = list(range(-1, len(path) - 1))
    caches = [make_cache(lazy_settings(1, run)) for _ in range(2)]
    pairs = [begun(cache, [150, 30]) for cache in caches]
    lengths = [150, 30]
    for turn in range(6):
        for cache_of, (parents, kept) in zip(pairs, ((BRANCHED, path), (chain, list(range(len(path))))), strict=True):
            verify([Guess(r, n, parents, kept, seed=turn) for r, n in zip(cache_of, lengths, strict=True)])
        lengths = [n + len(path) for n in lengths]
        same(*caches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("path", PATHS)
def test_what_stays_is_written_as_steps_would_have(path: list[int], dtype: torch.dtype) -> None:
    """Of requests that are held whole: every byte, and every output of a token that stays."""
    stepped, verified = (make_cache(lazy_settings(1, 1), dtype=dtype) for _ in range(2))
    one, other = begun(stepped, [20, 9], 40), begun(verified, [20, 9], 40)
    lengths = [20, 9]
    for turn in range(4):
        got = verify([Guess(r, n, BRANCHED, path, seed=turn) for r, n in zip(other, lengths, strict=True)])
        for more, node in enumerate(path, start=1):
            wanted = decode(one, [n + more for n in lengths])
            for r in range(2):
                torch.testing.assert_close(got[r][:, node], wanted[:, r], atol=1e-6, rtol=1e-5)
        lengths = [n + len(path) for n in lengths]
        same(stepped, verified, "written")  # of steps, SGLang's batch says it


@pytest.mark.parametrize("run", [1, 4, (8, 1)])
@pytest.mark.parametrize("probed", [None, SOME])
def test_a_draft_attends_to_what_is_held_what_it_wants_and_those_above_it(
    probed: np.ndarray | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_attention(make_cache(lazy_settings(2, run, probed=probed)), 8, monkeypatch)


def came_to(arrivals: Any, layer: int, head: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """K and V of what has come to a head, by draft."""
    if arrivals is None:
        return {}
    work, which = arrivals.work, arrivals.layer.which.tolist()
    if isinstance(work, Workspace):
        found = {x.request: (x.k[x.head == head], x.v[x.head == head]) for x in work.arrived if (x.head == head).any()}
        return found
    units, run, found = (len(BRANCHED) - 1) * len(which), arrivals.layer.run, {}
    each, comes = work.limit(units, run) * run, work.comes.tolist()
    for draft in range(len(BRANCHED) - 1 if head in which else 0):
        unit = draft * len(which) + which.index(head)
        rows = slice(unit * each, unit * each + comes[unit] * run)
        if comes[unit]:
            found[draft] = work.arrived_k[rows].cpu().clone(), work.arrived_v[rows].cpu().clone()
    return found


def check_attention(cache: TieredCache, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token counts once; what a draft wants is of its request's tokens, and not held."""
    request, length, came = begun(cache, [150])[0], 150, 0
    for turn in range(turns):
        guess = Guess(request, length, BRANCHED, [0, 1, 3], seed=turn)
        made = engine_of(cache).eager_verify(1, length + 1, len(BRANCHED) - 1)
        kernel, held = made.step.kernel, {}

        def attend(
            layer: int, *given: Any, attend: Any = kernel.attend, held: dict[Any, Any] = held, at: int = length + 1
        ) -> torch.Tensor:  # fmt: skip
            for head in range(HEADS):
                found = held_positions(request, layer * HEADS + head, at)
                held[layer, head] = found, came_to(given[-2], layer, head)
            return attend(layer, *given)

        monkeypatch.setattr(kernel, "attend", attend)
        out = verify([guess])[0]
        monkeypatch.undo()
        for (layer, head), (tokens, arrived) in held.items():
            q, k, v = guess.rows(layer)
            keys, values = request.k[layer][:, head], request.v[layer][:, head]
            assert tokens.unique().numel() == tokens.numel() and int(tokens.max()) == length
            for node in range(1, len(BRANCHED)):
                own = guess.above(node)[1:]
                seen = [(keys[tokens], values[tokens]), (k[own, head], v[own, head])]
                if node - 1 in arrived:
                    seen.append(arrived[node - 1])
                    which = (arrived[node - 1][0][:, None] == keys[None, :length]).all(-1).nonzero()[:, 1]
                    assert which.numel() == len(arrived[node - 1][0]) == which.unique().numel()
                    assert not torch.isin(which, tokens).any()
                    came += which.numel()
                wanted = dense(q[node].view(HEADS, GROUP, -1)[head], *(torch.cat(x) for x in zip(*seen, strict=True)))
                got = out[layer, node].view(HEADS, GROUP, -1)[head]
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
        length += 3
    assert came > 0, "no draft wanted anything"
    cache.check_integrity()


@pytest.mark.parametrize("policy", [SnapKV(), StreamingLLM()])
def test_policies_that_choose_once_verify_too(policy: SnapKV | StreamingLLM) -> None:
    settings: Settings = make_settings(alike(2, 3, 3 * GROUP, 16), 0.5, policy=policy)
    caches = [make_cache(settings) for _ in range(2)]
    pairs, length = [begun(cache, [150]) for cache in caches], 150
    for turn in range(5):
        for (request,), (parents, path) in zip(pairs, ((BRANCHED, [0, 1, 3]), ([-1, 0, 1], [0, 1, 2])), strict=True):
            verify([Guess(request, length, parents, path, seed=turn)])
        length += 3
        same(*caches)


def test_what_comes_behind_a_request_s_end_overwrites_none_of_its_rows() -> None:
    """More may stay than it may have, and SGLang runs it once more: a next turn finds the set as it was."""
    cache = make_cache(lazy_settings(1, 1))
    request = Request(cache, 1, 20, 60, slots_of(60, 2), seed=4)
    cache.start(1, cache.admission.grant(20, 2))
    prefill([request], [(0, 20)])
    verify([Guess(request, 20, BRANCHED, [0, 1, 3, 5])])
    assert request.ws.length == 22 <= min(request.ws.caps)
    rows = [request.cache.hot.k[request.ws.pages].clone()]
    for number in range(LAYERS * HEADS):
        assert held_positions(request, number, 22).tolist() == list(range(22))
    verify([Guess(request, 24, BRANCHED, [0, 2], seed=1)])
    rows.append(request.cache.hot.k[request.ws.pages])
    assert torch.equal(*(each.nan_to_num(-7) for each in rows)) and request.ws.length == 22
    cache.check_integrity()


class Replays:
    """Stands in for a recorder: says of every graph that is replayed how many requests it is for, and lets it find
    nothing of use behind what these have in the buffers."""

    def __init__(self, made: Verification) -> None:
        self.made, self.widths = made, []

    def record(self, work: partial[None]) -> Callable[[], None]:
        (width,) = work.args
        for _ in range(3):
            work()  # before anybody is there: nothing may come of it

        def replay() -> None:
            self.widths.append(width)
            first = self.made.first
            tables = first.inputs, first.cap, first.page_start  # which rows on their way out are read by, too
            before = [table.clone() for table in tables]
            self.spoil(width)
            work()
            for table, values in zip(tables, before, strict=True):
                table.copy_(values)

        return replay

    def spoil(self, width: int) -> None:
        made = self.made
        for values in (made.k, made.v):  # [layers, batch * each, H, D]
            values[:, width * made.each :] = float("nan")
        live = made.slots[: made.each + 1].clone()  # of the first request
        for slots in (made.slots, *made.moved):
            rest = slots[width * len(live) :]
            rest.copy_(live.repeat(made.batch)[: len(rest)])
        made.first.inputs[:, width:] = made.first.inputs[:, :1] + 1
        for tables in (made.limit, made.first.cap, made.first.page_start):
            tables[width:] = 1 << 20


@pytest.mark.parametrize(
    ("batch", "counts", "widths"),
    [(20, (1, 2, 4, 5, 3, 1), [1, 4, 4, 16, 4, 1]), (5, (5, 4, 1), [5, 4, 1]), (3, (3, 1, 2), [3, 1, 3])],
)
def test_the_smallest_graph_of_what_follows_that_holds_a_batch_leaves_what_a_launched_pass_leaves(
    batch: int, counts: Sequence[int], widths: list[int]
) -> None:
    """Whatever requests a wider pass before has left in its buffers."""
    caches = [make_cache(lazy_settings(1, 4)) for _ in range(2)]
    lengths = [150, 30, 9, 60, 20][: max(counts)]
    made = engine_of(caches[1]).eager_verify(batch, 400, len(BRANCHED) - 1)
    recorder = Replays(made)
    made.record(recorder)
    pairs = [begun(cache, lengths, 36) for cache in caches]
    for turn, count in enumerate(counts):
        path = PATHS[turn % len(PATHS)]
        for requests, width in zip(pairs, (None, batch), strict=True):
            verify(
                [Guess(r, n, BRANCHED, path, seed=turn) for r, n in zip(requests[:count], lengths, strict=False)], width
            )
        assert engine_of(caches[1]).verification is made and not engine_of(caches[0]).verification.recorded
        lengths[:count] = [n + len(path) for n in lengths[:count]]
        same(*caches)
    assert recorder.widths == widths
    accepted = [cache.counters.accepted_tokens for cache in caches]
    assert accepted[0] == accepted[1] == sum(n * (len(PATHS[t % len(PATHS)]) - 1) for t, n in enumerate(counts))
