"""StreamingLLM (arXiv 2309.17453): attention sinks and the most recent tokens, whatever they are."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.policy.base import Policy


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Positions stay those of the text, as in most servers; the paper numbers them anew within the cache."""

    name: ClassVar[str] = "streamingllm"
    recent_only: ClassVar[bool] = True

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        recency = torch.arange(k.shape[0], dtype=torch.float32, device=k.device)
        return recency.expand(k.shape[1], -1)
