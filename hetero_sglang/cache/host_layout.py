"""Where the host store's rows lie in its memory; without torch, for the retrieval worker."""

import msgspec

BLOCK = 16  # slots whose rows of a head lie together


class HostLayout(msgspec.Struct, frozen=True):
    """Layer i's [blocks, heads[i], BLOCK, head_dim + v_head_dim] lies at byte offsets[i]."""

    rows: int
    heads: list[int]
    head_dim: int
    v_head_dim: int
    dtype: str
    itemsize: int
    offsets: list[int]
    nbytes: int
