"""Running statistics of one document: every head's prefill top-k against those of each decode step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.profile.measurements import Measurements


@dataclass(frozen=True)
class DocumentStatistics:
    """Overlaps of one document; stability and similarity stand for all of its decode steps."""

    stability: np.ndarray  # [layers, heads]
    similarity: np.ndarray  # [layers, heads, heads]
    overlap: np.ndarray  # [layers, heads, steps]


class Steps:
    """What every decode step shares with the prefill [heads], and its heads with each other [heads, heads]."""

    def __init__(self, num_layers: int) -> None:
        self.own: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.pairs: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, own: torch.Tensor, pairs: torch.Tensor) -> None:
        """One step of a layer."""
        self.own[layer].append(own)
        self.pairs[layer].append(pairs)

    def statistics(self, reduce: Callable[[np.ndarray], np.ndarray]) -> DocumentStatistics:
        """`reduce` takes steps, the first axis, together."""
        own = [_stack(layer) for layer in self.own]  # of each layer [steps, heads]
        stability = np.stack([reduce(layer) for layer in own])
        similarity = np.stack([reduce(_stack(layer)) for layer in self.pairs])
        return DocumentStatistics(stability, similarity, np.stack([layer.T for layer in own]))


def _stack(steps: list[torch.Tensor]) -> np.ndarray:
    return torch.stack(steps).double().cpu().numpy()


class Tracker:
    """Keeps, per layer, one top-k mask and one running mean [heads, prompt], and a few numbers per step.

    A step's set is the top-k of its scores averaged with those before it, weights falling by 1 - 1/smoothing
    per step; smoothing 1 takes every step alone, as the paper does."""

    def __init__(self, num_layers: int, topk: int, smoothing: int = 1) -> None:
        self.topk = topk
        self.smoothing = smoothing
        self.prefill: dict[int, torch.Tensor] = {}
        self.running: dict[int, torch.Tensor] = {}
        self.steps = Steps(num_layers)

    def add(self, layer: int, scores: torch.Tensor) -> None:
        """Pooled scores [heads, prompt]: a layer's first call is the prefill, later ones decode steps."""
        if layer not in self.prefill:
            self.prefill[layer] = top_mask(scores, self.topk)
            return
        if layer not in self.running:
            self.running[layer] = scores.clone()
        running = self.running[layer].lerp_(scores, 1.0 / self.smoothing)
        chosen = top_mask(running, self.topk)
        self.steps.add(layer, overlap(self.prefill[layer], chosen), pairwise_overlap(chosen))

    def finish(self) -> DocumentStatistics:
        """Medians over the steps seen (at least one)."""
        return self.steps.statistics(lambda values: np.median(values, axis=0))


def combine(documents: list[DocumentStatistics]) -> Measurements:
    """Mean and standard deviation over documents."""
    stability = np.stack([d.stability for d in documents])
    similarity = np.stack([d.similarity for d in documents])
    steps = np.stack([d.overlap for d in documents])
    return Measurements(
        stability=stability.mean(0),
        stability_spread=stability.std(0),
        similarity=similarity.mean(0),
        similarity_spread=similarity.std(0),
        overlap=steps.mean(0),
    )


def top_mask(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of [..., L] as a boolean mask [..., L] with exactly k set."""
    chosen = scores.topk(k, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


def overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """|A and B| / min(|A|, |B|) of boolean masks [..., L], in [0, 1]; 0 where a set is empty."""
    smaller = torch.minimum(one.sum(-1), other.sum(-1))
    return (one & other).sum(-1) / smaller.clamp(min=1)


def pairwise_overlap(masks: torch.Tensor) -> torch.Tensor:
    """[H, L] boolean -> [H, H] overlap of every pair of heads."""
    shared = masks.float() @ masks.float().T
    size = masks.sum(-1)
    return shared / torch.minimum(size[:, None], size[None, :]).clamp(min=1)
