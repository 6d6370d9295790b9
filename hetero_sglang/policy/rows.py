"""What indexes are made of: units of tokens, and bytes kept in hot rows."""

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Index


def split_units(k: torch.Tensor, span: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [L, C, D] as complete units [C, L // span, span, D] and the tokens after them [C, L % span, D]."""
    units = k.shape[0] // span
    by_head = k.transpose(0, 1)  # [C, L, D]
    return by_head[:, : units * span].unflatten(1, (units, span)), by_head[:, units * span :]


def require_one_width(k_dim: int, v_dim: int) -> None:
    """An index that puts numbers of keys into V rows needs room for them."""
    if k_dim != v_dim:
        raise HeteroError(
            f"this --kv-policy keeps its index in rows of keys and values of one width, but the model's are {k_dim} "
            f"and {v_dim} wide: choose heterocache, snapkv, chunkkv or streamingllm."
        )


def last_query_scores(index: Index, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """An index's scores for the keys of a prompt: q [C, G, D], k [L, C, D] -> [C, L] float32.

    Tokens after the last complete unit get their true logit, the largest of the group, without `scale`."""
    units, tail = split_units(k, index.span)
    rest = (q.float() @ tail.float().transpose(1, 2)).amax(1)  # [C, L % span]
    return torch.cat((index.scores(q, *index.build(units, k.shape[-1]), scale), rest), 1)


def bytes_to_rows(packed: torch.Tensor, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes [..., n] uint8 as a K row and a V row, both [..., width] of `dtype`: bit patterns, to be copied only.

    Raises HeteroError when two rows have fewer than n bytes."""
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
