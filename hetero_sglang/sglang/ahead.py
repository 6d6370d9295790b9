"""Queries guessed one layer ahead (InfiniGen, OSDI 2024): rows of a layer come while the layer before runs its MLP.

A layer's queries are nearly those that its weights make of the state before the last layer's MLP. For decoder layers
built as SGLang's models/llama.py: `input_layernorm`, `self_attn` with `qkv_proj` and `rotary_emb`,
`post_attention_layernorm`, which returns the state beside its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

_NEEDED = ("input_layernorm", "self_attn", "post_attention_layernorm")
Queries = Callable[[], torch.Tensor]  # made in the lane that uses them


class Ahead:
    """Watches a model's decode steps from within; `bring(layer, queries)` is told every layer's but the first's."""

    def __init__(self, model: Any, bring: Callable[[int, Queries], None], read: Callable[[int], None]) -> None:
        """`read(layer)`: the state that the layer's queries are guessed from is about to be overwritten."""
        self.layers = layers_of(model)
        self.positions: torch.Tensor | None = None  # [B] of the step's tokens; None: no decode step runs
        for number, layer in enumerate(self.layers[:-1], start=1):
            layer.post_attention_layernorm.register_forward_hook(self._hook(number, bring))
            self.layers[number].input_layernorm.register_forward_pre_hook(self._guard(number, read))

    def _hook(self, number: int, bring: Callable[[int, Queries], None]) -> Callable[..., None]:
        def state_known(module: Any, given: Any, out: Any) -> None:
            if self.positions is not None:
                bring(number, lambda: self._queries(number, out[1]))

        return state_known

    def _guard(self, number: int, read: Callable[[int], None]) -> Callable[..., None]:
        def state_changes(module: Any, given: Any) -> None:
            if self.positions is not None and len(given) > 1:  # not our own call
                read(number)

        return state_changes

    def _queries(self, number: int, state: torch.Tensor) -> torch.Tensor:
        """[B, Hq * D] of layer `number` by `state` [B, hidden], RoPE applied."""
        layer = self.layers[number]
        attention = layer.self_attn
        project, size = attention.qkv_proj, attention.q_size
        inside = layer.input_layernorm(state)
        weight = getattr(project, "weight", None)
        if weight is not None and weight.dtype == inside.dtype and weight.shape[1] == inside.shape[1]:
            bias = getattr(project, "bias", None)
            q = functional.linear(inside, weight[:size], None if bias is None else bias[:size])
        else:  # quantised: the whole projection
            q = project(inside)[0][:, :size].contiguous()
        norm = getattr(attention, "q_norm", None)
        if norm is not None:
            q = norm(q.view(-1, attention.head_dim)).view(q.shape)
        q, _ = attention.rotary_emb(self.positions, q, q[:, : attention.kv_size].clone())
        return q


def layers_of(model: Any) -> list[Any]:
    """The decoder layers of a model that queries can be guessed for; none: they cannot."""
    layers = list(getattr(getattr(model, "model", None), "layers", []))
    fits = layers and all(hasattr(layer, name) for layer in layers for name in _NEEDED)
    return layers if fits and all(hasattr(x.self_attn, "qkv_proj") for x in layers) else []
