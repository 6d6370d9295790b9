"""Watching a Transformers model's attention without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.ops.reference.attention import pool_average

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REDUCTIONS = ("mean", "max")
_NAME = "hetero_observed_sdpa"
Watcher = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor], None]


@dataclass(frozen=True)
class Observation:
    """How attention becomes a score per key: which queries, pooling width, and reduction over query heads."""

    window: int = 16  # last prompt queries, for the prefill top-k; 1 = the last query only, as in the reference
    pooling: int = 5
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise HeteroError(f"`--window` is {self.window}; choose at least 1 query.")
        if self.pooling < 1 or self.pooling % 2 == 0:
            raise HeteroError(f"`--pooling` is {self.pooling}; choose an odd width of at least 1.")
        if self.reduction not in REDUCTIONS:
            raise HeteroError(f"`--gqa` is {self.reduction!r}; choose {' or '.join(REDUCTIONS)}.")

    def score(self, query: torch.Tensor, key: torch.Tensor, scaling: float, prompt: int) -> torch.Tensor:
        """query [Hq, W, D], key [H, L, D] -> [H, prompt]: pooled scores of the prompt's keys."""
        attention = window_attention(query, key, scaling)[..., :prompt]  # [H, G, prompt]
        return reduce_group(pool_average(attention, self.pooling), self.reduction)


def window_attention(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of the last queries on every key, averaged over those queries.

    query [Hq, W, D] are the last W positions of key [H, L, D], each seeing itself and what precedes it.
    Returns float32 [H, G, L] with G = Hq / H; no [L, L] matrix is made."""
    heads, length, dim = key.shape
    window = query.shape[1]
    grouped = query.reshape(heads, -1, dim).float()  # [H, G*W, D]
    logits = grouped @ key.float().transpose(1, 2) * scaling
    logits = logits.view(heads, -1, window, length)  # [H, G, W, L]
    position = torch.arange(length, device=key.device)
    hidden = position > (length - window + torch.arange(window, device=key.device))[:, None]  # [W, L]
    return logits.masked_fill_(hidden, -torch.inf).softmax(-1).mean(2)


def reduce_group(scores: torch.Tensor, reduction: str) -> torch.Tensor:
    """[H, G, L] -> [H, L]: `mean` (the paper's calibration) or `max` over the query heads of a KV head."""
    return scores.mean(1) if reduction == "mean" else scores.amax(1)


@contextmanager
def watched(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Inside, every attention layer runs SDPA and shows `watcher(layer, query, key, value, scaling, o_proj)` its
    queries [Hq, q, D], all its keys and values [H, L, D], RoPE applied, batch of one, and its output projection."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
        scaling: float | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        watcher(module.layer_idx, query[0], key[0], value[0], scale, module.o_proj.weight)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    before = model.config._attn_implementation
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
