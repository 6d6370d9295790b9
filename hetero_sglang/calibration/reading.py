"""A model reads a document once, its attention watched; what of it is measured is measured afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers.cache_utils import Cache

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.kv_buffer import HostLayer
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.observe import watched
from hetero_sglang.errors import HeteroError

PREFILL_CHUNK = 1024
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Attention:
    """What a layer attended with, RoPE applied: queries [Hq, n, D] of a text's last n tokens, keys [H, L, D] and
    values [H, L, Dv] of all its tokens; what logits are multiplied by; the output projection [hidden, Hq Dv]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    o_proj: torch.Tensor

    def upto(self, length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [Hq, count, D] of the last `count` of the text's first `length` tokens, and those tokens' keys."""
        stop = self.query.shape[1] - self.key.shape[1] + length
        return self.query[:, stop - count : stop], self.key[:, :length]


@dataclass(frozen=True)
class Reading:
    """A document and what every layer attended with; keys and values wait in host memory."""

    document: Document
    kept: list[Attention]

    @property
    def length(self) -> int:
        """Of the document, in tokens."""
        return len(self.document.tokens)

    def __iter__(self) -> Iterator[Attention]:
        """Layer after layer, on the model's device."""
        for each in self.kept:
            key, value = (tensor.to(each.query.device, non_blocking=True) for tensor in (each.key, each.value))
            yield Attention(each.query, key, value, each.scaling, each.o_proj.to(each.query.device))


@torch.inference_mode()
def read(
    checkpoint: Checkpoint,
    document: Document,
    tail: int,
    moments: Moments | None = None,
    advance: Advance = lambda tokens: None,
) -> Reading:
    """What the model's layers attended with, queries of the last `tail` tokens (at most all); what all tokens show is
    added to `moments`.

    `advance` is told of tokens read. Raises HeteroError where the text does not fit the device and where the model
    computes no numbers."""
    model, length = checkpoint.model, len(document.tokens)
    tail = min(tail, length)
    cache = Cache(layers=[HostLayer(length) for _ in range(model.config.num_hidden_layers)])
    tokens = torch.tensor([document.tokens], device=checkpoint.device)  # [1, L]
    kept: dict[int, Attention] = {}

    def watcher(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> None:
        if moments is not None:
            moments.watch(layer, query, key)
        if key.shape[1] == length:
            buffers = cache.layers[layer]
            kept[layer] = Attention(query[:, -tail:].clone(), buffers.keys[0], buffers.values[0], scaling, o_proj)

    try:
        with watched(model, watcher):
            for start, stop in pairwise(chunk_bounds(length, tail)):
                out = model(tokens[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
                advance(stop - start)
    except torch.OutOfMemoryError:
        raise HeteroError(f"{length} tokens do not fit on {checkpoint.device}; choose a smaller `--length`.") from None
    if not torch.isfinite(out.logits).all():
        raise HeteroError(f"the model computes no finite numbers on {document.source}; check its weights.")
    return Reading(document, [kept[layer] for layer in sorted(kept)])


def chunk_bounds(length: int, tail: int) -> list[int]:
    """Prefill chunk boundaries 0..length; the last chunk holds the whole tail."""
    bounds = list(range(0, length, PREFILL_CHUNK))
    while bounds[-1] > length - tail:
        bounds.pop()
    return [*bounds, length]
