"""The model in training form: whatever works token by token is one function per half layer, fit to compile."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .shape import HEAD_DIM, Shape


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self.eps = shape.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Layer(nn.Module):
    """A Llama layer; its parameters are named as in Hugging Face checkpoints."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, queries, keys = shape.width, shape.query_heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
        self.input_layernorm, self.post_attention_layernorm = Norm(shape), Norm(shape)
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.gate_proj = nn.Linear(width, shape.ffn, bias=False)
        self.up_proj = nn.Linear(width, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, width, bias=False)

    def before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x [T, W], cos and sin [T, 1, D] -> q [T, Hq, D], k and v [T, H, D]."""
        h = self.input_layernorm(x)
        q = self.q_proj(h).unflatten(-1, (-1, HEAD_DIM))
        k = self.k_proj(h).unflatten(-1, (-1, HEAD_DIM))
        v = self.v_proj(h).unflatten(-1, (-1, HEAD_DIM))
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def after(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """x [T, W], attended [T, Hq * D] -> x [T, W]."""
        x = x + self.o_proj(attended)
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class RecallModel(nn.Module):
    """A Llama with untied embeddings.

    They start large (standard deviation `embedding_std`): with tied ones at 0.02, recall was not learned in a
    like time.
    """

    def __init__(self, shape: Shape, embedding_std: float = 0.7) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=self._std(name, weight.shape[1], embedding_std))

    def _std(self, name: str, inputs: int, embedding_std: float) -> float:
        if "embed" in name:
            return embedding_std
        if "lm_head" in name:
            return 0.02
        into_residual = "o_proj" in name or "down_proj" in name
        return inputs**-0.5 * ((2 * self.shape.layers) ** -0.5 if into_residual else 1)

    def compile_parts(self) -> None:
        """Compile the token by token parts; their shapes depend on tokens per batch alone, not on the length."""
        for layer in self.layers:
            layer.before = torch.compile(layer.before)
            layer.after = torch.compile(layer.after)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, L] -> hidden states [B * L, W], normed; `lm_head` makes logits of them."""
        batch, length = ids.shape
        x = self.embed_tokens(ids).flatten(0, 1)  # [T, W]
        if ids.is_cuda:
            x = x.to(torch.bfloat16)
        cos, sin = (t.to(x.dtype).repeat(batch, 1)[:, None] for t in self._angles(length, ids.device))
        for layer in self.layers:
            q, k, v = (t.unflatten(0, (batch, length)).transpose(1, 2) for t in layer.before(x, cos, sin))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # [B, Hq, L, D]
            x = layer.after(x, attended.transpose(1, 2).reshape(batch * length, -1))
        return self.norm(x)

    def _angles(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of every position and channel: [L, D] float32 each."""
        steps = torch.arange(0, HEAD_DIM, 2, device=device, dtype=torch.float32) / HEAD_DIM
        angles = torch.outer(
            torch.arange(length, device=device, dtype=torch.float32), torch.exp(-math.log(self.shape.theta) * steps)
        )
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE in the half-split order of Hugging Face's Llama."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin
