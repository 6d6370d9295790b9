"""FIER (arXiv 2508.08256): at every step, the tokens whose keys, known to one bit a channel, fit the query best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Index, Policy, Refresh
from hetero_sglang.policy.quest import require_one_width, split_units

GROUP = 32  # tokens that share a channel's two levels, the paper's group
BYTES = GROUP // 8  # of sign bits per channel


class SignIndex(Index):
    """Per group two rows: the sign bits of its keys, then half the range (K row) and its middle (V row) per channel.

    A key is read back as middle + half range or middle - half range, whichever was nearer to it. Bit i of byte
    b * D + d is the sign of channel d of token 8 b + i; the bytes fill the K row first, then the V row.
    """

    span: ClassVar[int] = GROUP
    rows: ClassVar[int] = 2

    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        require_one_width(k.shape[-1], v_dim)
        least, most = k.amin(2).float(), k.amax(2).float()  # [C, U, D]
        middle, half = (most + least) / 2, (most - least) / 2
        signs = (k >= middle[:, :, None]).unflatten(2, (BYTES, 8))  # [C, U, BYTES, 8, D]
        packed = signs.to(torch.uint8).bitwise_left_shift_(_shifts(k.device)[:, None]).sum(3, dtype=torch.uint8)
        bits_k, bits_v = bytes_to_rows(packed.flatten(2), k.shape[-1], k.dtype)
        return torch.stack((bits_k, half.to(k.dtype)), 2), torch.stack((bits_v, middle.to(k.dtype)), 2)

    def scores(self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float) -> torch.Tensor:
        """The largest logit of the group with the keys read back, without `scale`: [C, U * GROUP]."""
        dim = q.shape[-1]
        packed = rows_to_bytes(k_rows[:, :, 0], v_rows[:, :, 0], BYTES * dim).unflatten(2, (BYTES, dim))
        q, half, middle = q.float(), k_rows[:, :, 1].float(), v_rows[:, :, 1].float()  # [C, G, D], [C, U, D] twice
        # Where the bit is set a key is middle + half, else middle - half: the lower level for all, plus 2 half by bit.
        lower = (middle - half) @ q.transpose(1, 2)  # [C, U, G]
        steps = 2 * half[..., None] * q.transpose(1, 2)[:, None]  # [C, U, D, G]
        # One bit of each byte at a time: unpacked all at once, the signs would be as large as the keys in float32.
        by_bit = [(packed.bitwise_right_shift(bit) & 1).float() @ steps for bit in range(8)]  # 8 x [C, U, BYTES, G]
        logits = torch.stack(by_bit, 3).flatten(2, 3) + lower[:, :, None]  # [C, U, GROUP, G]
        return logits.amax(-1).flatten(1)


@dataclass(frozen=True)
class Fier(Policy):
    """Single tokens by their estimated logit, the maximum over the GQA group.

    Ours differs: a group shares one choice (the paper chooses per query head); rows not chosen are in host memory
    and must come from there (the paper keeps all on the device); no first layers are dense: at equal bytes they
    would come out of the others' budget.
    """

    name: ClassVar[str] = "fier"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = SignIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Estimated logits of the last query, exact ones for the tokens of an incomplete last group."""
        return last_query_scores(self.index, q[-1], k, scale)


def last_query_scores(index: Index, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """An index's scores for the keys of a prompt: q [C, G, D], k [L, C, D] -> [C, L] float32.

    Tokens after the last complete unit get their true logit, the largest of the group, without `scale`.
    """
    units, tail = split_units(k, index.span)
    rest = (q.float() @ tail.float().transpose(1, 2)).amax(1)  # [C, L % span]
    return torch.cat((index.scores(q, *index.build(units, k.shape[-1]), scale), rest), 1)


def bytes_to_rows(packed: torch.Tensor, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes [..., n] uint8 as a K row and a V row, both [..., width] of `dtype`: bit patterns, to be copied only.

    Raises HeteroError when two rows have fewer than n bytes.
    """
    row = width * dtype.itemsize
    if packed.shape[-1] > 2 * row:
        raise HeteroError(
            f"this --kv-policy keeps {packed.shape[-1]} bytes in a key and a value of its index, but {width} numbers "
            f"of {dtype} each hold {2 * row}: choose heterocache, quest, rocketkv or snapkv."
        )
    full = packed.new_zeros(*packed.shape[:-1], 2, row)
    full.flatten(-2)[..., : packed.shape[-1]] = packed
    rows = full.view(dtype)  # [..., 2, width]
    return rows[..., 0, :], rows[..., 1, :]


def rows_to_bytes(k_row: torch.Tensor, v_row: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` bytes that `bytes_to_rows` put into a K row and a V row: [..., count] uint8."""
    return torch.cat([row.contiguous().view(torch.uint8) for row in (k_row, v_row)], -1)[..., :count]


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
