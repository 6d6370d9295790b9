"""Scores and selection against naive oracles, on fresh random inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.ops.reference.choose import merge, score_bin
from hetero_sglang.selection import top
from hetero_sglang.selection.scores import attention_scores


def naive_scores(q: torch.Tensor, k: torch.Tensor, scale: float, over: str) -> torch.Tensor:
    width, heads, group, _ = q.shape
    length = k.shape[0]
    out = torch.empty(heads, length)
    for head in range(heads):
        per_group = []
        for g in range(group):
            rows = []
            for w in range(width):
                seen = length - (width - 1 - w)
                weight = torch.zeros(length, dtype=torch.float64)
                logits = torch.stack([q[w, head, g].double() @ k[t, head].double() for t in range(seen)]) * scale
                weight[:seen] = logits.softmax(0)
                rows.append(weight)
            stacked = torch.stack(rows)
            one = stacked.amax(0) if over == "max" else stacked.mean(0)
            per_group.append(torch.stack([one[max(0, t - 2) : t + 3].mean() for t in range(length)]))
        out[head] = torch.stack(per_group).amax(0)
    return out


@pytest.mark.parametrize(("width", "length"), [(1, 1), (1, 40), (7, 7), (12, 30), (20, 21)])
def test_scores_equal_the_naive_definition(width: int, length: int) -> None:
    q, k = torch.randn(width, 3, 2, 8), torch.randn(length, 3, 8)
    got = attention_scores(q, k, 0.35)
    torch.testing.assert_close(got, naive_scores(q, k, 0.35, "max").float(), atol=1e-6, rtol=1e-5)


def kept_by(
    scores: torch.Tensor, held: torch.Tensor, kept: torch.Tensor, low: int, high: int, most: int
) -> torch.Tensor:
    """What a head holds after `merge`, as it says which go and which come."""
    swaps = merge(scores[None], held[None].int(), kept[None], low, high, most)
    after = held.clone()
    after[swaps.place] = swaps.run
    return after


@given(st.integers(1, 30), st.integers(35, 80), st.randoms(use_true_random=False))
def test_merging_keeps_the_best_of_held_and_seen(count: int, length: int, rng) -> None:
    """But for those that share the last one's bin; what is held stays where it can."""
    low, high = 3, length - 4
    held = torch.tensor(rng.sample(range(low, high), min(count, high - low)))
    kept, scores = torch.rand(held.numel()) + 0.01, torch.rand(length) + 0.01
    kept = torch.maximum(kept, scores[held])
    after = kept_by(scores, held, kept, low, high, 1 << 30)
    worth = {int(t): float(scores[t]) for t in range(low, high)} | dict(zip(held.tolist(), kept.tolist(), strict=True))
    assert after.unique().numel() == after.numel() and int(after.min()) >= low and int(after.max()) < high
    bins = {token: int(score_bin(torch.tensor([value]))) for token, value in worth.items()}
    edge = sorted(bins.values(), reverse=True)[held.numel() - 1]
    assert {token for token, bin in bins.items() if bin > edge} <= set(after.tolist())
    assert all(bins[token] >= edge for token in after.tolist())
    stays = sum(bins[token] == edge for token in held.tolist())
    room = held.numel() - sum(bin > edge for bin in bins.values())
    assert sum(bins[token] == edge and token in held.tolist() for token in after.tolist()) == min(stays, room)


@given(st.integers(1, 20), st.integers(0, 6), st.randoms(use_true_random=False))
def test_no_more_come_than_may(count: int, most: int, rng) -> None:
    held = torch.tensor(rng.sample(range(2, 50), count))
    scores = torch.rand(60)
    after, every = (kept_by(scores, held, scores[held], 2, 50, bound) for bound in (most, 1 << 30))
    assert int((after != held).sum()) == min(most, int((every != held).sum()))
    assert set(after.tolist()) - set(held.tolist()) <= set(every.tolist())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 12), st.integers(0, 40))
def test_the_best_are_taken_from_the_left(levels: list[int], count: int, low: int) -> None:
    scores = torch.tensor([levels]).float()
    inside = torch.arange(len(levels))[None] >= low
    found = top.listed(top.best(scores, torch.tensor([count]), inside), count)[0]
    order = sorted(range(min(low, len(levels)), len(levels)), key=lambda t: (-levels[t], t))[:count]
    assert found[: len(order)].tolist() == sorted(order) and (found[len(order) :] == len(levels)).all()


@given(
    st.lists(st.sampled_from([0.0, 1.0, math.inf, -math.inf, math.nan]), min_size=1, max_size=20), st.integers(1, 20)
)
def test_scores_that_are_no_numbers_choose_tokens_that_exist(scores: list[float], count: int) -> None:
    inside = torch.ones(1, len(scores), dtype=torch.bool)
    chosen = top.best(torch.tensor([scores]), torch.tensor([count]), inside)
    assert int(chosen.sum()) == min(count, len(scores))


@given(st.integers(5, 40), st.integers(0, 2**20))
def test_an_exchange_leaves_what_was_chosen(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, length + 1, (3,), generator=generator)
    most = int(sizes.max())
    held, chosen = torch.zeros(3, most, dtype=torch.int64), torch.zeros(3, length, dtype=torch.bool)
    for row, size in enumerate(sizes.tolist()):
        held[row, :size] = torch.randperm(length, generator=generator)[:size]
        chosen[row, torch.randperm(length, generator=generator)[:size]] = True
    swaps = top.exchange(chosen, held, torch.arange(most) < sizes[:, None])
    for row, size in enumerate(sizes.tolist()):
        after, count = held[row].clone(), int(swaps.count[row])
        after[swaps.places[row, :count]] = swaps.tokens[row, :count]
        assert set(after[:size].tolist()) == set(chosen[row].nonzero()[:, 0].tolist())
