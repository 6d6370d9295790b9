"""Prefill attention over K/V that lie in one piece: FlashInfer's where it can, torch's elsewhere."""

from typing import Any

import torch

from hetero_sglang.cache.sizes import PREFILL_WORKSPACE
from hetero_sglang.ops.reference.attention import prefill_attention, prefill_exact


class RaggedPrefill:
    """One plan per forward pass, used by every layer."""

    def __init__(self, device: torch.device) -> None:
        self.wrapper: Any = None
        self.fast = False
        if device.type == "cuda":
            from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

            workspace = torch.empty(PREFILL_WORKSPACE, dtype=torch.uint8, device=device)
            self.wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="auto")

    def plan(
        self, counts: list[int], lengths: list[int], query_heads: int, kv_heads: int, dim: int, v_dim: int,
        scale: float, dtype: torch.dtype, exact: list[bool],
    ) -> None:  # fmt: skip
        """The last counts[i] of lengths[i] tokens of each request attend causally to all before them; on a CPU, where
        exact[i], to the bit of SGLang's backend."""
        self.counts, self.lengths, self.scale, self.exact = counts, lengths, scale, exact
        self.fast = self.wrapper is not None and dtype in (torch.float16, torch.bfloat16) and any(counts)
        if self.fast:
            self.wrapper.plan(
                _indptr(counts), _indptr(lengths), query_heads, kv_heads, dim, v_dim, causal=True, sm_scale=scale,
                q_data_type=dtype, kv_data_type=dtype,
            )  # fmt: skip

    def run(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """q [sum n, Hq, D], keys [sum L, H, D], values [sum L, H, Dv] -> [sum n, Hq, Dv]."""
        if self.fast:
            return self.wrapper.run(q.contiguous(), keys, values)
        parts = zip(q.split(self.counts), keys.split(self.lengths), values.split(self.lengths), strict=True)
        ways = [prefill_exact if exact else prefill_attention for exact in self.exact]
        return torch.cat([way(*part, self.scale) for way, part in zip(ways, parts, strict=True)])


def _indptr(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)  # [n + 1]
