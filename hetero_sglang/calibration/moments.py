"""First and second moments of a model's queries and keys, RoPE applied, summed while documents run through it."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class HeadMoments:
    """One layer's KV heads, float64."""

    mean: np.ndarray  # [H, D] of keys
    covariance: np.ndarray  # [H, D, D] of keys
    queries: np.ndarray  # [H, D, D] second moment of the queries that read a head


class _Layer:
    """Sums of one layer in float64 on the model's device: 2 H D (D + 1) numbers."""

    def __init__(self, key: torch.Tensor) -> None:
        heads, _, dim = key.shape
        zeros = {"dtype": torch.float64, "device": key.device}
        # Keys are summed as distances from here: a mean far from zero would drown the spread in float32 products.
        self.origin = key.mean(1, keepdim=True)  # [H, 1, D] float32
        self.keys, self.queries = 0, 0
        self.first = torch.zeros(heads, dim, **zeros)
        self.second = torch.zeros(heads, dim, dim, **zeros)
        self.query_second = torch.zeros(heads, dim, dim, **zeros)


class Moments:
    """Of every layer; a chunk of tokens at a time, none of them kept."""

    def __init__(self, num_layers: int) -> None:
        self._layers: list[_Layer | None] = [None] * num_layers

    @torch.no_grad()
    def add(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Queries [Hq, n, D] and the keys of the same tokens [H, n, D]."""
        key = key.float()
        sums = self._layers[layer]
        if sums is None:
            self._layers[layer] = sums = _Layer(key)
        heads, count, dim = key.shape
        key = key - sums.origin
        query = query.float().reshape(heads, -1, dim)  # [H, G n, D]
        sums.keys += count
        sums.queries += query.shape[1]
        sums.first += key.sum(1)
        sums.second += torch.bmm(key.transpose(1, 2), key)
        sums.query_second += torch.bmm(query.transpose(1, 2), query)

    def watch(self, layer: int, query: torch.Tensor, key: torch.Tensor, *rest: object) -> None:
        """As a watcher: queries [Hq, n, D], and keys [H, L, D] of which the last n are new."""
        self.add(layer, query, key[:, -query.shape[1] :])

    def of(self, layer: int) -> HeadMoments:
        """Of all that was added, at least one chunk."""
        sums = self._layers[layer]
        assert sums is not None
        first = (sums.first / sums.keys).cpu().numpy()  # [H, D]
        second = (sums.second / sums.keys).cpu().numpy()
        return HeadMoments(
            mean=first + sums.origin[:, 0].double().cpu().numpy(),
            covariance=second - first[:, :, None] * first[:, None],
            queries=(sums.query_second / sums.queries).cpu().numpy(),
        )

    def all(self) -> list[HeadMoments]:
        """Of every layer."""
        return [self.of(layer) for layer in range(len(self._layers))]
