"""What attends when several tokens of each request pass a layer together, or none has to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from hetero_sglang.sglang.backend import HeteroAttnBackend
from hetero_sglang.sglang.early_exit.turn import Turn


def stacked(batch: Any, turns: Sequence[Turn]) -> Any:
    """A decode batch in which every request of `batch` is there once for each of `turns`, one turn behind the other."""
    many = len(turns)
    lengths = torch.cat([turn.lengths for turn in turns])
    on_host = torch.cat([turn.on_host for turn in turns])
    return replace(
        batch,
        batch_size=many * turns[0].slots.numel(),
        input_ids=torch.cat([turn.ids for turn in turns]),
        positions=torch.cat([turn.positions for turn in turns]),
        req_pool_indices=batch.req_pool_indices.repeat(many),
        seq_lens=lengths,
        seq_lens_cpu=on_host,
        seq_lens_sum=int(on_host.sum()),
        out_cache_loc=torch.cat([turn.slots for turn in turns]),
        lora_ids=None if batch.lora_ids is None else batch.lora_ids * many,
    )


class Attention(ABC):
    """Of a kind of KV cache."""

    most = 1 << 30  # tokens of a request that may wait

    def parts(self, width: int | None) -> None:  # noqa: B027
        """The pass that comes is made of graphs of this width; None: it is not."""

    def __init__(self, backend: AttentionBackend, several: AttentionBackend | None = None) -> None:
        """`several` attends where each request is there several times; None: the same."""
        self.backend, self.several = backend, several or backend

    @property
    def clock(self) -> int:
        """Of the step that has begun."""
        return 0

    @abstractmethod
    def begin(self, batch: Any, turns: Sequence[Turn], rows: Sequence[int], ahead: bool) -> None:
        """Before layers run for `turns` of the requests in these rows of the step; `batch` is their `stacked` one.
        `ahead`: without the step that has begun, whose turn is the last else."""

    def comes(self, batch: Any) -> None:  # noqa: B027
        """A pass of this batch is made of graphs, which plan for themselves."""

    @abstractmethod
    def whole(self, batch: Any) -> None:
        """A pass that was to be made of graphs runs all layers at once."""

    def again(self, batch: Any) -> None:  # noqa: B027
        """Turns have run ahead of the step of this batch, which comes now."""

    def end(self) -> None:  # noqa: B027 - dense backends plan nothing apart
        """Layers have run."""

    def left(self, copied: bool) -> None:  # noqa: B027
        """The step's tokens have left before their last layers, where their keys and values are `copied` or missing."""

    def through(self) -> None:  # noqa: B027
        """All turns of this pass that had waited are through their last layers."""

    @abstractmethod
    def store(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: Any) -> None:
        """Keys [B, H * D] and values [B, H * Dv] of the step's tokens, which attend to nothing in this layer."""


class Dense(Attention):
    """SGLang's own backends: a decode batch stores its rows before each attends to as many as its length says, so turns
    of one request may be rows of one batch."""

    def comes(self, batch: Any) -> None:
        batch.mark_forward_metadata_ready()

    def whole(self, batch: Any) -> None:
        self.backend.init_forward_metadata(batch)

    def begin(self, batch: Any, turns: Sequence[Turn], rows: Sequence[int], ahead: bool) -> None:
        self.several.init_forward_metadata(batch)

    def again(self, batch: Any) -> None:
        self.backend.init_forward_metadata(batch)

    def store(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: Any) -> None:
        from sglang.srt.mem_cache.memory_pool import KVWriteLoc

        k = k.view(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.view(-1, layer.tp_v_head_num, layer.v_head_dim)
        where = KVWriteLoc(batch.out_cache_loc, None)
        self.backend.token_to_kv_pool.set_kv_buffer(layer, where, k, v, *self._units(layer))

    def _units(self, layer: Any) -> tuple[Any, Any]:
        """What a checkpoint divides keys and values by that are kept in 8 bits, unless the pool does of itself."""
        own = getattr(self.backend, "_kv_write_scales", None)
        return own(layer) if own else (layer.k_scale, layer.v_scale)


class Tiered(Attention):
    """Working sets change as tokens come: turns attend one after the other, as their steps would have."""

    def __init__(self, backend: HeteroAttnBackend) -> None:
        super().__init__(backend)
        self.tiers = backend
        self.most = backend.cache.settings.rule.window // 2  # rows leave for the host before the ring comes round

    @property
    def clock(self) -> int:
        return self.tiers.engine.clock

    def begin(self, batch: Any, turns: Sequence[Turn], rows: Sequence[int], ahead: bool) -> None:
        late = turns if ahead else turns[:-1]
        self.tiers.begin_turns(rows, [(turn.on_host.tolist(), turn.clock) for turn in late], ahead)

    def end(self) -> None:
        self.tiers.end_turns()

    def parts(self, width: int | None) -> None:
        self.tiers.parts = width

    def whole(self, batch: Any) -> None:
        self.parts(None)
        self.tiers.prepare(batch.batch_size)  # it has begun for as many as its parts are made for
        self.tiers.init_forward_metadata_in_graph(batch)

    def left(self, copied: bool) -> None:
        self.tiers.step_left(copied)

    def through(self) -> None:
        self.tiers.through()

    def store(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, batch: Any) -> None:
        self.tiers.store(q, k, v, layer, batch)


class StoreOnly(AttentionBackend):
    """Layers that a token skips keep the keys and values that they make of the state at its exit."""

    def __init__(self, of: Attention) -> None:
        self.of = of
        self.req_to_token_pool = of.backend.req_to_token_pool
        self.token_to_kv_pool = of.backend.token_to_kv_pool

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """The step's is there."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any,
        save_kv_cache: bool = True, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """q [B, Hq * D] -> [B, Hq * Dv] of zeros."""
        self.of.store(q, k, v, layer, forward_batch)
        return q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)


def attention_of(runner: Any, rows: int) -> Attention:
    """Of the backend that SGLang has built for `runner`, its ModelRunner, and passes of up to so many rows."""
    backend = runner.attn_backend
    if isinstance(backend, HeteroAttnBackend):
        return Tiered(backend)
    return Dense(backend, roomy(runner, rows) if runner.device == "cuda" else None)


def roomy(runner: Any, rows: int) -> AttentionBackend:
    """Another backend like that of `runner`, for so many rows: SGLang's have room for one of each request slot."""
    from sglang.srt.model_executor.model_runner_components.attention_backend_setup import get_attention_backend

    own = runner.req_to_token_pool
    runner.req_to_token_pool = wide = copy(own)  # of the same table
    wide.size = max(own.size, rows)
    try:
        made = get_attention_backend(model_runner=runner)
        return getattr(made, "decode_backend", made)  # of two backends that take turns
    finally:
        runner.req_to_token_pool = own
