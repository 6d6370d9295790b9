"""Early exit without loss: what the first branch says are drafts, which all layers verify (LayerSkip, 2404.16710).

SGLang's NGRAM worker verifies and accepts (speculative/ngram_worker.py); in place of what its corpus finds it gets what
the layers before the branch say, one token after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from hetero_sglang.engine.verify import Verification
from hetero_sglang.sglang.backend import HeteroAttnBackend
from hetero_sglang.sglang.early_exit.layers import through
from hetero_sglang.sglang.early_exit.passes import EarlyExit
from hetero_sglang.sglang.early_exit.ranks import least
from hetero_sglang.sglang.early_exit.recorded import decode_batch, padding


class Guessing(AttentionBackend):
    """Attends for tokens that are only guessed."""

    def __init__(self, tiers: HeteroAttnBackend, made: Verification) -> None:
        self.tiers, self.made = tiers, made
        self.req_to_token_pool, self.token_to_kv_pool = tiers.req_to_token_pool, tiers.token_to_kv_pool

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """It is there."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: Any, forward_batch: Any,
        save_kv_cache: bool = True, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        """q [n, Hq * D], k [n, H, D], v [n, H, Dv] -> [n, Hq * Dv]."""
        return self.tiers.attend_guessed(self.made, q, k, v, layer)


def drafts(passes: EarlyExit, last: torch.Tensor, lengths: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens [B, count]: what was said `last` [B] behind `lengths` [B] tokens, what the first branch says of it, and so
    on. All are run again for each: a small batch costs as much as a token."""
    branch, model, device = passes.exits.branches[0], passes.model, last.device
    tiers = passes.runner.attn_backend
    tokens = torch.zeros(len(last), count, dtype=torch.int64, device=device)
    tokens[:, 0] = last
    batch = decode_batch(padding(tokens.numel(), device))
    batch.positions = (lengths.to(device)[:, None] + torch.arange(count, device=device)).flatten()
    asked = decode_batch(padding(len(last), device))
    made = tiers.guess(lengths.tolist(), count)
    with forward_context(ForwardContext(attn_backend=Guessing(tiers, made))):
        for at in range(count - 1):
            words = model.model.embed_tokens(tokens.flatten())
            hidden, residual = through(model, 0, branch.layer, batch, words, None)
            state = (hidden + residual).unflatten(0, (-1, count))[:, at]  # [B, H]
            tokens[:, at + 1] = passes.look(branch, state, asked)[0].argmax(-1)
    return least(tokens, passes.runner.tp_group)


def prepare(passes: EarlyExit, worker: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """In place of NGRAMWorker._prepare_draft_tokens: drafts [B * n] and who sees whom [B * n * n]."""
    count = worker.draft_token_num
    accepted, lens = batch.spec_info.accept_tokens, batch.spec_info.accept_lens
    worker.prev_token_ids, worker.prev_accept_lens = accepted.tolist(), lens.tolist()  # its corpus takes them in
    last = accepted.view(-1, count).gather(1, lens.long()[:, None] - 1)[:, 0]
    tokens = drafts(passes, last.long(), batch.seq_lens.cpu(), count)
    seen = np.tril(np.ones((count, count), dtype=bool))
    return tokens.cpu().numpy().ravel(), np.tile(seen, (len(last), 1, 1)).ravel()
