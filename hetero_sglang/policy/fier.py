"""FIER (arXiv 2508.08256): at every step, the tokens whose keys, known to one bit a channel, fit the query best."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.policy.base import Index, Policy, Refresh
from hetero_sglang.policy.rows import bytes_to_rows, last_query_scores, require_one_width, rows_to_bytes

GROUP = 32  # tokens that share a channel's two levels, the paper's group
BYTES = GROUP // 8  # of sign bits per channel


class SignIndex(Index):
    """Per group two rows: the sign bits of its keys, then half the range (K row) and its middle (V row) per channel.

    A key is read back as middle + half range or middle - half range, whichever was nearer to it. Bit i of byte
    b * D + d is the sign of channel d of token 8 b + i; the bytes fill the K row first, then the V row."""

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

    def scores(
        self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
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
    would come out of the others' budget."""

    name: ClassVar[str] = "fier"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = SignIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Estimated logits of the last query, exact ones for the tokens of an incomplete last group."""
        return last_query_scores(self.index, q[-1], k, scale)


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
