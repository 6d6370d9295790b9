"""What the policies' tests share: fresh inputs, and attention and choice spelled out one number at a time."""

from __future__ import annotations

import math
import random

import torch

from hetero_sglang.policy.base import Policy

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = ((1, 1), (3, 2), (2, 4))  # (KV heads, query heads of each)


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, others in every run; the seed is printed and so shown where a test fails."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed} for {shape} of {dtype}")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def attended(q: torch.Tensor, k: torch.Tensor, scale: float, head: int, member: int, query: int) -> list[float]:
    """Softmax weights of the prompt's tokens for one observed query; those after it get 0."""
    seen = k.shape[0] - (q.shape[0] - 1 - query)
    logits = [dot(q[query, head, member], k[token, head]) * scale for token in range(seen)]
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers] + [0.0] * (k.shape[0] - seen)


def neighbours(values: list[float], at: int, reach: int) -> list[float]:
    return values[max(0, at - reach) : at + reach + 1]


def best(values: list[float], count: int, low: int, high: int) -> list[int]:
    """The `count` greatest within [low, high), the earlier of equals; ascending."""
    return sorted(sorted(range(low, high), key=lambda token: (-values[token], token))[:count])


def picked_by(policy: Policy, scores: torch.Tensor, counts: list[int], low: int, high: int) -> list[torch.Tensor]:
    """What the policy picks, without the padding."""
    return [row[row < scores.shape[1]] for row in policy.pick(scores, counts, low, high)]


def check_choice(picked: list[torch.Tensor], counts: list[int], low: int, high: int) -> None:
    """As many as wanted or as there are, ascending, no token twice, none outside."""
    assert len(picked) == len(counts)
    for positions, count in zip(picked, counts, strict=True):
        assert positions.dtype == torch.int64
        chosen = positions.tolist()
        assert len(chosen) == min(count, high - low)
        assert chosen == sorted(set(chosen))
        assert all(low <= token < high for token in chosen)


def through_pool(k_rows: torch.Tensor, v_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows written to shuffled places of a pool full of NaN and read back, as the engine does."""
    places = torch.randperm(k_rows.shape[:-1].numel() + 7)[: k_rows.shape[:-1].numel()]
    back = []
    for rows in (k_rows, v_rows):
        pool = torch.full((places.numel() + 7, rows.shape[-1]), float("nan"), dtype=rows.dtype)
        pool[places] = rows.flatten(0, -2)
        moved = torch.empty_like(pool).copy_(pool)
        back.append(moved[places].view(rows.shape))
    return back[0], back[1]
