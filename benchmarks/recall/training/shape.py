"""The size of a model."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.errors import HeteroError

HEAD_DIM = 64
_ROUND = 64  # embedding rows come in multiples of this, for the matrix units


@dataclass(frozen=True)
class Shape:
    """A Llama: `kv_heads` KV heads of size 64 per layer, each shared by query_heads / kv_heads query heads."""

    vocabulary: int  # rows of the embedding and of the head
    width: int = 256
    layers: int = 6
    query_heads: int = 16
    kv_heads: int = 8
    ffn: int = 384
    theta: float = 1e6  # RoPE base
    eps: float = 1e-5  # of the RMS norms

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.width, self.layers, self.query_heads, self.kv_heads, self.ffn) < 1:
            raise HeteroError("Layers, heads, width and ffn must each be 1 or more.")
        if self.query_heads % self.kv_heads:
            raise HeteroError(
                f"{self.query_heads} query heads cannot share {self.kv_heads} KV heads evenly: pass a multiple."
            )

    @classmethod
    def rows(cls, tokens: int) -> int:
        """Embedding rows for a tokenizer of `tokens` tokens."""
        return -(-tokens // _ROUND) * _ROUND

    @property
    def parameters(self) -> int:
        """Number of weights."""
        attention = 2 * self.width * HEAD_DIM * (self.query_heads + self.kv_heads)
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        return 2 * self.vocabulary * self.width + self.layers * layer + self.width
