"""Constrained decoding on the CPU: SGLang 0.5.17 pins xgrammar's bitmask, which needs a GPU driver, and then
refuses to apply it to CPU logits (srt/constrained/xgrammar_backend.py:60, :125, :251). 0.5.23 still refuses where a
reasoning model thinks (:301)."""

from collections.abc import Callable
from typing import Any

import torch

from hetero_sglang.cpu.platform import cpu_engine

TARGET = "sglang.srt.constrained.xgrammar_backend"


def allocate_bitmask(orig: Callable[..., torch.Tensor], vocab_size: int, batch_size: int) -> torch.Tensor:
    """AROUND `_allocate_token_bitmask`: [batch, ceil(vocab / 32)] int32, every token allowed, pinned only
    where a driver can pin."""
    if torch.cuda.is_available():
        return orig(vocab_size, batch_size)
    from xgrammar import allocate_token_bitmask

    return allocate_token_bitmask(batch_size, vocab_size)


def apply_mask(orig: Callable[..., None], grammar: Any, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """AROUND `XGrammarGrammar.apply_vocab_mask`: sets the logits of forbidden tokens to -inf in place."""
    if logits.device.type != "cpu":
        return orig(grammar, logits, vocab_mask)
    return _apply_on_cpu(logits, vocab_mask)


def apply_backend_mask(orig: Callable[..., None], logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """AROUND `XGrammarGrammarBackend.apply_vocab_mask`: the same, for a reasoning model that still thinks."""
    if logits.device.type != "cpu":
        return orig(logits, vocab_mask)
    return _apply_on_cpu(logits, vocab_mask)


def seams() -> list[tuple[str, Callable[..., Any], Any]]:
    """The hooks as (target, hook, kind) for SGLang's HookRegistry; none where the engine is not the CPU."""
    from sglang.srt.plugins.hook_registry import HookType

    if not cpu_engine():
        return []
    return [
        (f"{TARGET}._allocate_token_bitmask", allocate_bitmask, HookType.AROUND),
        (f"{TARGET}.XGrammarGrammar.apply_vocab_mask", apply_mask, HookType.AROUND),
        (f"{TARGET}.XGrammarGrammarBackend.apply_vocab_mask", apply_backend_mask, HookType.AROUND),
    ]


def _apply_on_cpu(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    # not xgrammar's own CPU kernel: 0.2.1's was seen to write past the rows of very short vocabularies
    bits = (vocab_mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1  # [B, words, 32]
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0  # [B, min(V, 32 words)]
    logits[:, : forbidden.shape[1]].masked_fill_(forbidden, float("-inf"))
