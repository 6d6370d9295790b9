"""SGLang's attention backend over the two tiers (layers/attention/base_attn_backend.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from hetero_sglang.engine.engine import TorchEngine
from hetero_sglang.engine.plan import Plan, plan_decode, plan_extend
from hetero_sglang.sglang.pool import token_slots


class HeteroAttnBackend(AttentionBackend):
    """Plans once per forward, then serves every layer from the plan; in torch, on any device.

    DeviceAttnBackend is the fast one for CUDA.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        self.device = model_runner.device
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        self.cache = self.token_to_kv_pool.cache
        self.engine = TorchEngine(self.cache)
        self.plan: Plan | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """The safe point between two steps: fetched rows become visible here, then the step is planned."""
        requests = forward_batch.req_pool_indices.tolist()
        lengths = forward_batch.seq_lens.tolist()
        table = self.req_to_token_pool.req_to_token
        if forward_batch.forward_mode.is_decode():
            self.plan = plan_decode(self.cache, requests, lengths, table)
        else:
            counts = forward_batch.extend_seq_lens.tolist()
            self.plan = plan_extend(self.cache, requests, lengths, counts, table)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [n, Hq * D], k [n, H, D], v [n, H, Dv] -> [n, Hq * Dv]."""
        return self._forward(self.engine.extend, q, k, v, layer, forward_batch)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [B, Hq * D], k [B, H, D], v [B, H, Dv] -> [B, Hq * Dv]."""
        return self._forward(self.engine.decode, q, k, v, layer, forward_batch)

    def _forward(
        self, run: Callable[..., torch.Tensor], q: Any, k: Any, v: Any, layer: Any, forward_batch: Any
    ) -> torch.Tensor:
        assert self.plan is not None and k is not None and v is not None
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        k = k.reshape(-1, layer.tp_k_head_num, layer.qk_head_dim)
        v = v.reshape(-1, layer.tp_v_head_num, layer.v_head_dim)
        index = layer.layer_id - self.token_to_kv_pool.start_layer
        self.engine.write(index, token_slots(forward_batch.out_cache_loc), k, v)
        return run(index, self.plan, q, k, v, layer.scaling).reshape(q.shape[0], -1)

    def support_triton(self) -> bool:
        return self.device != "cpu"


def build_backend(
    original: Callable[..., Any], *, model_runner: Any, backend_str: str, init_new_workspace: bool
) -> Any:
    """AROUND attention_backend_setup._build_full_attention_backend_from_str."""
    model_runner.init_new_workspace = init_new_workspace
    if backend_str == "flashinfer":
        from hetero_sglang.sglang.device_backend import DeviceAttnBackend

        return DeviceAttnBackend(model_runner)
    return HeteroAttnBackend(model_runner)
