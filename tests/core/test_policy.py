"""Scores and selection against naive oracles, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.selection.accumulate import accumulate, replace
from hetero_sglang.selection.batched import refill
from hetero_sglang.selection.scores import attention_scores, overlap, top_positions


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


@given(st.sets(st.integers(0, 40)), st.integers(0, 2**20))
def test_overlap_is_the_share_of_attention_on_what_is_held(held: set[int], seed: int) -> None:
    weights = torch.rand(41, generator=torch.Generator().manual_seed(seed))
    value = overlap(weights, torch.tensor(sorted(held), dtype=torch.int64))
    assert abs(value - sum(float(weights[t]) for t in held) / float(weights.sum())) < 1e-5
    assert overlap(torch.zeros(41), torch.arange(3)) == 1.0


def test_one_peak_that_moves_is_drift_although_a_thousand_tokens_stay() -> None:
    weights = torch.full((2000,), 1e-5)
    weights[1500] = 0.9
    assert overlap(weights, torch.arange(1000)) < 0.1


def test_top_positions_stay_inside_their_range_best_first() -> None:
    scores = torch.rand(100)
    best = top_positions(scores, 10, 20, 60)
    assert best.tolist() == sorted(range(20, 60), key=lambda t: -scores[t])[:10]


@given(st.integers(1, 30), st.integers(35, 80), st.randoms(use_true_random=False))
def test_accumulating_keeps_the_best_of_held_and_seen(count: int, length: int, rng) -> None:
    low, high = 3, length - 4
    held = torch.tensor(rng.sample(range(low, high), min(count, high - low)))
    held_scores, scores = torch.rand(held.numel()) + 0.01, torch.rand(length) + 0.01
    got = accumulate(held, held_scores, scores, low, high, 0.9)
    importance = {int(t): float(max(s * 0.9, scores[t])) for t, s in zip(held, held_scores, strict=True)}
    for t in range(low, high):
        importance.setdefault(t, float(scores[t]))
    wanted = set(sorted(importance, key=lambda t: -importance[t])[: held.numel()])
    after = held.clone()
    after[got.victims] = got.positions
    assert set(after.tolist()) == wanted
    assert after.unique().numel() == after.numel()
    assert not torch.isin(got.positions, held).any(), "a token already held was fetched again"


@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_forgetting_the_scores_of_dropped_rows_changes_nothing(seed: int, rng) -> None:
    """The argument in docs/design.md: full-length accumulators choose the same rows as per-row ones."""
    generator = torch.Generator().manual_seed(seed * 1000 + rng.randrange(1000))
    length, count, low, high = 60, 12, 2, 56
    first = torch.rand(length, generator=generator)
    full = first.clone()
    held = top_positions(first, count, low, high)
    held_scores = first[held]
    for _ in range(8):
        scores = torch.rand(length, generator=generator) ** 4
        full = torch.maximum(full * 0.9, scores)
        got = accumulate(held, held_scores, scores, low, high, 0.9)
        held, held_scores = held.clone(), got.held_scores.clone()
        held[got.victims], held_scores[got.victims] = got.positions, got.scores
        assert set(held.tolist()) == set(top_positions(full, count, low, high).tolist())


@given(st.integers(1, 20), st.randoms(use_true_random=False))
def test_replacing_takes_the_newest_best(count: int, rng) -> None:
    held = torch.tensor(rng.sample(range(2, 50), count))
    scores = torch.rand(60)
    got = replace(held, scores, 2, 50)
    after = held.clone()
    after[got.victims] = got.positions
    assert set(after.tolist()) == set(top_positions(scores, count, 2, 50).tolist())


@given(st.integers(1, 12), st.integers(40, 80), st.integers(1, 40), st.sampled_from([0.0, 0.9]), st.integers(0, 2**20))
def test_many_heads_at_once_swap_what_each_would_alone(
    count: int, length: int, most: int, decay: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, heads = 3, 4
    scores = torch.rand(heads, length, generator=generator)
    high = torch.randint(low + count, length + 1, (heads,), generator=generator)
    held, before = torch.full((heads, count), -1), torch.rand(heads, count, generator=generator)
    sizes = [count, max(1, count - 3), 1, count]
    for row, size in enumerate(sizes):
        held[row, :size] = torch.randperm(int(high[row]) - low, generator=generator)[:size] + low
    got = refill(held, before * decay, scores, low, high, most)
    for row, size in enumerate(sizes):
        mine = held[row, :size]
        want = accumulate(mine, before[row, :size], scores[row], low, int(high[row]), decay, most)
        assert torch.equal(got.kept[row, :size], want.held_scores)
        comes = got.positions[row] >= 0
        assert set(got.positions[row, comes].tolist()) == set(want.positions.tolist())
        assert set(got.victims[row, comes].tolist()) == set(want.victims.tolist())
        assert torch.equal(got.scores[row, comes], scores[row, got.positions[row, comes]])
        assert comes.sum() <= most
