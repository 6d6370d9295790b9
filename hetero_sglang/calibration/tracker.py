"""Running statistics of one document: every head's prefill top-k against those of each decode step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.calibration.overlap import overlap, pairwise_overlap, top_mask
from hetero_sglang.profile.measurements import Measurements


@dataclass(frozen=True)
class DocumentStatistics:
    """Overlaps of one document, medians taken over its decode steps."""

    stability: np.ndarray  # [layers, heads]
    similarity: np.ndarray  # [layers, heads, heads]
    overlap: np.ndarray  # [layers, heads, steps]


class Tracker:
    """Keeps, per layer, one top-k mask and one running mean [heads, prompt], and a few numbers per step.

    A step's set is the top-k of its scores averaged with those before it, weights falling by 1 - 1/smoothing
    per step; smoothing 1 takes every step alone, as the paper does."""

    def __init__(self, num_layers: int, topk: int, smoothing: int = 1) -> None:
        self.topk = topk
        self.smoothing = smoothing
        self.running: list[torch.Tensor | None] = [None] * num_layers
        self.prefill: list[torch.Tensor | None] = [None] * num_layers
        self.overlaps: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.pairs: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, scores: torch.Tensor) -> None:
        """Pooled scores [heads, prompt]: a layer's first call is the prefill, later ones decode steps."""
        first = self.prefill[layer]
        if first is None:
            self.prefill[layer] = top_mask(scores, self.topk)
            return
        running = self.running[layer]
        if running is None:
            self.running[layer] = running = scores.clone()
        else:
            running.lerp_(scores, 1.0 / self.smoothing)
        chosen = top_mask(running, self.topk)
        self.overlaps[layer].append(overlap(first, chosen))
        self.pairs[layer].append(pairwise_overlap(chosen))

    def finish(self) -> DocumentStatistics:
        """Medians over the steps seen (at least one)."""
        steps = torch.stack([torch.stack(layer) for layer in self.overlaps]).double().cpu().numpy()
        pairs = np.stack([np.median(torch.stack(layer).double().cpu().numpy(), axis=0) for layer in self.pairs])
        return DocumentStatistics(np.median(steps, axis=1), pairs, steps.transpose(0, 2, 1))


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
