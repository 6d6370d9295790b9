"""The model's own last layer: what branches learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.errors import HeteroError


@dataclass(frozen=True, eq=False)
class Teacher:
    """What turns states behind the last layer into logits."""

    head: torch.Tensor  # [V, H], in the model's dtype
    scale: float  # logits are multiplied by it
    norm: torch.Tensor  # [H] float32, what the final norm multiplies by
    eps: float

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Teacher:
        """Raises HeteroError for a head with a bias, and for another norm than RMS."""
        model = checkpoint.model
        head = model.get_output_embeddings()
        eps = getattr(model.config, "rms_norm_eps", None)
        if head is None or getattr(head, "bias", None) is not None or eps is None:
            raise HeteroError("the model's head has a bias or no RMS norm before it; no branch can stand in for it.")
        with torch.no_grad():
            ones = torch.ones(1, head.weight.shape[1], device=checkpoint.device, dtype=model.dtype)
            norm = model.base_model.norm(ones)[0].float() * (1.0 + eps) ** 0.5
        scale = 1.0 / getattr(model.config, "logits_scaling", 1.0)
        return cls(head.weight.detach(), scale, norm, float(eps))

    def logits(self, hidden: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        """Of all words, or of some: normed states [n, H] -> [n, V or V'] float32."""
        rows = self.head if words is None else self.head[words]
        return F.linear(hidden.to(rows.dtype), rows).float() * self.scale
