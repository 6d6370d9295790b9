"""Moments of a text that may stand anywhere in a model's context, found from one run of it at the beginning.

Attention depends on distances alone, so a text that stands later is the same text, its keys and queries turned by RoPE.
"""

import numpy as np
import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.moments import HeadMoments


def turns(checkpoint: Checkpoint, length: int, context: int) -> np.ndarray:
    """What standing later, at even steps up to the context's end, does to a text of `length` tokens.

    Complex [S, D / 2], of modulus 1: by how much each of RoPE's planes turns."""
    room = max(0, context - length)
    shifts = torch.linspace(0, room, 1 + 4 * room // length).round().long()  # faster planes turn within the text
    rope = checkpoint.model.model.rotary_emb
    cos, sin = rope(torch.zeros(1, device=checkpoint.device), shifts[None].to(checkpoint.device))  # [1, S, D]
    found = torch.complex(cos[0].double(), sin[0].double()).cpu().numpy()
    found = found[:, : found.shape[1] // 2]  # both halves are alike
    return found / np.abs(found)  # YaRN scales keys too


def anywhere(moments: HeadMoments, turned: np.ndarray) -> HeadMoments:
    """The mean of a head's moments over `turns`, as if each shifted text had been run."""
    second = moments.covariance + moments.mean[:, :, None] * moments.mean[:, None]
    mean = _complex(moments.mean) * turned.mean(0)
    mean = np.concatenate([mean.real, mean.imag], -1)
    second, queries = (_turn_second(m, turned) for m in (second, moments.queries))
    return HeadMoments(mean, second - mean[:, :, None] * mean[:, None], queries)


def _complex(x: np.ndarray) -> np.ndarray:
    """[..., D] -> [..., D / 2]: RoPE pairs a dimension with the one half a head further."""
    first, last = np.split(x, 2, -1)
    return first + 1j * last


def _turn_second(moment: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Second moments [H, D, D] of what is turned, by those of z = first + i last: E z z* and E z z^T."""
    rows = _complex(moment).swapaxes(-1, -2)  # [H, D / 2, D]: E z x^T
    first, last = np.split(rows, 2, -1)
    count = len(turned)
    turned_first = (first - 1j * last) * (turned.T @ turned.conj() / count)  # E z z*
    turned_last = (first + 1j * last) * (turned.T @ turned / count)  # E z z^T
    half = np.concatenate([turned_first + turned_last, 1j * (turned_first - turned_last)], -1) / 2  # E z x^T
    return np.concatenate([half.real, half.imag], -2)
