"""The contract of the operations: what they work on, and what each of them does.

`reference` has them in torch, on any device, and is the truth; `triton` as kernels that wait for nothing and run in
CUDA graphs. Both modules have the same names, and the same tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, ClassVar

import torch

from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.lanes import Mark
from hetero_sglang.config.layout import LayerLayout

NAMES = (
    "AttendStep",  # a DecodeKernel: attention of one decode step
    "Workspace",  # what probes and choices of a step write and read
    "append",  # attention of a prompt's new tokens over what a working set holds
    "ask",  # what many queries of a request look at, by its heads' key indexes
    "bring",  # rows of a prefix from the host store
    "choose",  # which rows come to a head, and which go
    "copy_slots",  # token slots of a step's requests
    "fill",  # a working set when its prompt ends
    "hold",  # new tokens of prompts whose heads hold all of theirs
    "index",  # key index rows of new keys
    "keep",  # a prompt's new tokens, to a working set
    "lack",  # what a prompt's new tokens look at most and their heads do not hold
    "locate",  # where a step has written its newest rows
    "look",  # what pivots look at, and whether their satellites hold it
    "probe",  # what heads look at, by their key indexes
    "restore",  # a working set from the host store
    "seat",  # rows that came while heads attended, to their places
    "store",  # new tokens' rows
    "swap_in",  # rows that were chosen, from the host store
    "write_back",  # a step's newest rows, to the host store
)


LAYER_GROUPS = 4  # parts of the model, from its first layers to its last ones
SHARES = 10  # equal parts of [0, 1]


class Counted(IntEnum):
    """Where a workspace counts what, since the start."""

    ROWS = 0  # that came
    LATE = 1  # that should have come
    LOOKS = 2  # of pivots at satellites, by group of layers
    DRIFTS = LOOKS + LAYER_GROUPS  # looks that found too little held, likewise
    HELD = DRIFTS + LAYER_GROUPS  # looks by the share of its pivot's attention that a satellite held
    SUM = HELD + SHARES  # of these shares, in PARTS
    COUNT = SUM + 1  # how many there are


PARTS = 1000  # of a share


@dataclass(frozen=True)
class LayerBuffers:
    """One layer's places for K/V; `role` [H] int32 is a resident head's index r, or -1 - c for compressed head c."""

    role: torch.Tensor
    resident_k: torch.Tensor  # [rows, R, D]
    resident_v: torch.Tensor  # [rows, R, Dv]
    host: torch.Tensor  # [blocks, C, BLOCK, D + Dv], pinned host memory that a device writes to directly
    hot_k: torch.Tensor  # [pages, P, D]
    hot_v: torch.Tensor  # [pages, P, Dv]
    position: torch.Tensor  # [pages, P] int32
    score: torch.Tensor  # [pages, P] float32
    first: int  # compressed heads in earlier layers
    run: ClassVar[int] = 1  # what comes to heads without an index comes row by row

    @cached_property
    def resident(self) -> torch.Tensor:
        """Head numbers [R] int64."""
        return self.role.argsort()[self.role.numel() - self.resident_k.shape[1] :]

    @cached_property
    def compressed(self) -> torch.Tensor:
        """Head numbers [C] int64."""
        return self.role.argsort(descending=True)[self.resident_k.shape[1] :]

    @cached_property
    def heads(self) -> torch.Tensor:
        """Of the compressed ones, [C] int32."""
        return self.compressed.int()

    @cached_property
    def which(self) -> torch.Tensor:
        """The compressed heads' own indexes: [C] int32."""
        return torch.arange(self.host.shape[1], dtype=torch.int32, device=self.role.device)

    @property
    def numbers(self) -> slice:
        """The layer's compressed heads among the rank's."""
        return slice(self.first, self.first + self.host.shape[1])


@dataclass(frozen=True)
class StepTables:
    """This decode step's requests, all int32 on the device; see DeviceTables."""

    length: torch.Tensor  # [B], the new token included; 0 for padding
    cap: torch.Tensor  # [B, Hc]
    page_start: torch.Tensor  # [B, Hc]
    page_list: torch.Tensor  # [n]
    clock: torch.Tensor  # [1], one more in every step
    request: torch.Tensor  # [B] request slots
    came: torch.Tensor  # [requests, 2, Hc], since each request began: rows that came, and those that were too many
    told: torch.Tensor  # the same in host memory: what a step has counted is there once the step has ended


@dataclass(frozen=True)
class Arrivals:
    """Rows that come to heads of a layer while these attend: in `work`, a Workspace, once `there` is passed."""

    layer: LayerIndex
    work: Any
    there: Mark


@dataclass(frozen=True)
class Drafts:
    """New tokens that may be taken back, `each` for every request in turn: their keys k [n, H, D] and values v
    [n, H, Dv], and which of their request's each attends to, itself among them: bits of seen [n] int64."""

    k: torch.Tensor
    v: torch.Tensor
    seen: torch.Tensor
    each: int


@dataclass(frozen=True)
class LayerPivots:
    """One layer's pivots, by cluster: all int32 [P] on the device."""

    head: torch.Tensor  # KV head of the layer
    place: torch.Tensor  # index among the resident heads


@dataclass(frozen=True)
class Watch:
    """How pivots watch for drift. `request` and `prompt` [B] are the step's; int32 on the device."""

    request: torch.Tensor  # request slots
    prompt: torch.Tensor  # tokens of their prompts
    leader: torch.Tensor  # [requests, Hc], each compressed head's cluster in its layer, -1: none
    filled: torch.Tensor  # [requests, Hc], the request's length when the head was last refilled
    rate: torch.Tensor  # [1] float32: refill so many by chance, whatever they hold; below 0: by what they hold
    interval: int  # steps between two looks
    threshold: float  # the share of its pivot's attention that a satellite must hold
    decay: float  # of what a row is worth, per look; 0: the newest look alone counts
    least: int  # rows of a head that is refilled at all
    group: int  # the layer's, of LAYER_GROUPS


@dataclass(frozen=True)
class Behind:
    """What a prompt's new tokens find: a working set, whose first tokens are their prefix.

    `numbers` [4] int32 on the device: how many of the new tokens attend, from which on, tokens of the prefix, tokens
    that the set stands for. `block` of them look for rows together. Of full heads' recent tokens, no selected run holds
    those of the last `window`, nor others of these runs of `run` tokens."""

    numbers: torch.Tensor
    block: int
    window: int
    run: int
    sink: int
    ring: int


@dataclass(frozen=True)
class NewRows:
    """What a step has written: `row` [B, Hc] int32 flat hot rows, -1 for padding; `slot` [B] int32 token slots."""

    row: torch.Tensor
    slot: torch.Tensor


@dataclass(frozen=True)
class HostPlaces:
    """Where every compressed head's rows lie in the host store, in elements from `base`; [Hc] int64 on the device.

    Block b of head h begins at `at[h] + b * stride[h]`."""

    blocks: Sequence[torch.Tensor]  # by layer [blocks, C, BLOCK, D + Dv], pinned
    base: torch.Tensor  # one of them
    at: torch.Tensor
    stride: torch.Tensor

    @classmethod
    def of(cls, blocks: Sequence[torch.Tensor], layers: Sequence[LayerLayout], device: torch.device) -> HostPlaces:
        """blocks: the host store's, by layer."""
        pairs = [(layer, c) for layer, x in enumerate(layers) for c in range(len(x.compressed))]
        base = blocks[pairs[0][0]]
        size, begin = base.element_size(), base.data_ptr()
        places = [(blocks[layer].data_ptr() - begin) // size + c * blocks[layer].stride(1) for layer, c in pairs]
        strides = [blocks[layer].stride(0) for layer, _ in pairs]
        return cls(blocks, base, torch.tensor(places, device=device), torch.tensor(strides, device=device))


def flat_rows(page_list: torch.Tensor, start: torch.Tensor | int, row: torch.Tensor, page: int) -> torch.Tensor:
    """Flat hot rows int64 of rows `row` of heads whose pages page_list[start:] lists, `page` rows each (broadcasts)."""
    return page_list[start + row // page].long() * page + row % page


def passed(length: int, ring: int, run: int) -> int:
    """How many of the oldest of a full head's `ring` rows hold tokens of a run that has left the window as a whole, and
    may be among the selected: of so many recent tokens the window has all but `run` - 1."""
    return ring - (length - (length - ring + run - 1) // run * run)


class DecodeKernel(ABC):
    """Attention of one DecodeStep over both device tiers; made with the step, it keeps the step's addresses."""

    def prepare(self, width: int) -> None:  # noqa: B027 - most have nothing to prepare
        """On the host, before a step of `width` requests is run, captured or replayed; waits for nothing."""

    @abstractmethod
    def plan(self, tables: StepTables) -> None:
        """Once per step, recorded in the graph: cut the work of every layer for these lengths and caps."""

    @abstractmethod
    def attend(
        self, layer: int, q: torch.Tensor, buffers: LayerBuffers, tables: StepTables, scale: float,
        ordered: bool = False, arrivals: Arrivals | None = None, drafts: Drafts | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """q [B, Hq, D] -> [B, Hq, Dv], heads in the model's order, recorded in the graph.

        Resident heads attend to the request's tokens, compressed ones to their first min(cap, length) rows, but for
        what may be among the selected again (`passed`), and to `arrivals`; padding (length 0) gives something finite.
        `ordered`: other kernels than `store` may have written rows just before. `drafts`: which the B queries are of,
        and attend to as well."""
