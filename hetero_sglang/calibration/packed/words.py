"""Numbers of few bits in words of 32."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def unpacked(words: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Of int32 [rows, n]: [rows, n * 32 / bits] int32, none negative; the first is in a word's lowest bits, or where
    `order` says: its i-th entry is the place of what lies i-th."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    codes = (words[..., None] >> shifts) & ((1 << bits) - 1)  # [rows, n, 32 / bits]
    if order is not None:
        codes = codes[..., torch.tensor(order, device=words.device).argsort()]
    return codes.flatten(1)
