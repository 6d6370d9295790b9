"""What a worker is told when it starts: the first message on its channel, in JSON."""

from __future__ import annotations

import msgspec


class HostLayout(msgspec.Struct, frozen=True):
    """`HostStore.layout()`: layer i's [blocks, heads[i], block, head_dim + v_head_dim] lies at byte offsets[i]."""

    rows: int
    heads: list[int]
    head_dim: int
    v_head_dim: int
    dtype: str
    itemsize: int
    block: int
    offsets: list[int]
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """One staging row: one token's K and V of one head."""
        return (self.head_dim + self.v_head_dim) * self.itemsize


class WorkerSpec(msgspec.Struct, frozen=True):
    """Which incarnation the worker is, and what it maps."""

    incarnation: int
    threads: int
    host_fd: int
    staging_fd: int
    staging_rows: int
    score_fd: int
    score_bytes: int
    layout: HostLayout
