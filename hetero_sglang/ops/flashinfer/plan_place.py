"""Where FlashInfer's tensor-core decode looks for its plan (PrefillPlanInfo, attention/scheduler.cuh of 0.6.15)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from hetero_sglang.errors import HeteroError

TILE = 16  # query rows of a tile: a group of query heads fits one


@dataclass(frozen=True)
class PlanPlace:
    """Places in a plan's integer workspace, in words of 4 bytes from its start (`mask`: in bytes).

    Every item is a chunk of one row's tokens: `request` and `chunk_number` [items] say of which row and which chunk,
    `mask` [items] whether it exists. `outputs` and `merged` [rows + 1]: where a row's partial results begin. `chunk`:
    tokens of a chunk. `query_tile` [items] is 0 everywhere, as a row has one token."""

    items: int
    request: int
    query_tile: int
    chunk_number: int
    outputs: int
    merged: int
    chunk: int
    mask: int

    @staticmethod
    def read(info: Sequence[int]) -> PlanPlace:
        """From what FlashInfer's `plan` returned for a CUDA graph. Raises HeteroError for another form."""
        info = [int(x) for x in info]
        if len(info) != 15 or info[3] != TILE or not (info[13] and info[14]):
            raise HeteroError(
                f"this FlashInfer plans in another form ({info}) than --hetero-decode-kernel flashinfer fills in; use "
                f"--hetero-decode-kernel triton."
            )
        words = [info[i] // 4 for i in (4, 5, 6, 8, 7, 9)]
        return PlanPlace(*[info[0], *words, info[12]])

    def row(self) -> list[int]:
        return list(astuple(self))


def item_count(processors: int, kv_heads: int, rows: int, group: int) -> int:
    """Items FlashInfer's plan has room for: two programs to a processor, and one item per row at least."""
    return max(2 * processors // kv_heads, -(-rows * group // TILE) + rows - 1)


def int_words(items: int, rows: int) -> int:
    """Words of the integer workspace that hold such a plan, a multiple of 16 bytes."""
    sizes = (4 * items, 4 * items, 4 * items, 4 * rows + 4, 4, 4, 4 * rows + 4, items)
    return sum(-(-size // 16) for size in sizes) * 4


def float_bytes(items: int, query_heads: int, dim: int) -> int:
    """Bytes of the workspace for partial results."""
    return query_heads * items * TILE * (dim + 1) * 4 + 64
