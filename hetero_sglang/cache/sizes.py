"""How many token slots and hot pages a byte budget gives; pure arithmetic, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero_sglang.cache.admission import Admission
from hetero_sglang.config.layout import HeadLayout

PREFILL_WORKSPACE = 256 << 20  # bytes; FlashInfer's partial results of split rows
LOOK_WORKSPACE = 256 << 20  # bytes; scores of one step's looks or probes
ARRIVALS = 1 << 16  # rows that come while heads attend, of all in a step's layer
WIDE = 2  # bytes of a number as a model makes it
SPREAD = 1.25  # rows of whole blocks to rows that are wanted: beyond it a prefix is gathered row by row
ROUNDING_REQUESTS = 16  # requests whose half-empty last pages the hot pool has room for


@dataclass(frozen=True)
class Shape:
    """Bytes of one head's K+V row: `head_dim` and `v_head_dim` elements of `itemsize` bytes."""

    head_dim: int
    v_head_dim: int
    itemsize: int

    @property
    def row(self) -> int:
        return (self.head_dim + self.v_head_dim) * self.itemsize

    @property
    def hot_row(self) -> int:
        """With the position and score that the hot pool keeps beside it."""
        return self.row + 8


@dataclass(frozen=True)
class Sizes:
    """Sizes of one rank's tiers."""

    shape: Shape
    layout: HeadLayout
    page_size: int  # rows of a hot page
    slots: int
    index_bytes_per_slot: int = 0

    @property
    def hot_pages(self) -> int:
        rounding = self.layout.num_compressed * ROUNDING_REQUESTS
        return -(-int(self.slots * sum(self.layout.fractions)) // self.page_size) + rounding

    @property
    def resident_bytes_per_slot(self) -> int:
        return self.layout.num_resident * self.shape.row

    @property
    def host_bytes_per_slot(self) -> int:
        return self.layout.num_compressed * self.shape.row

    @property
    def hot_bytes(self) -> int:
        return self.hot_pages * self.page_size * self.shape.hot_row

    @property
    def device_bytes(self) -> int:
        return self.slots * (self.resident_bytes_per_slot + self.index_bytes_per_slot) + self.hot_bytes


@dataclass(frozen=True)
class Workspaces:
    """Device bytes beside the stores that a rank with compressed heads uses at most, all at once."""

    prefill: int  # FlashInfer's partial results
    looks: int  # logits of pivots that watch for drift, or of heads that probe their indexes, and rows that come then
    prefix: int  # a prefix on its way back from the host: two layers' blocks, and one layer put together
    drafts: int = 0  # tokens that are verified, in all layers, and what they look for

    @classmethod
    def of(
        cls, shape: Shape, layout: HeadLayout, longest: int, looks: bool, index: bool = False, drafts: int = 0
    ) -> Workspaces:
        """`longest`: tokens of the longest request; `looks`: whether any head looks for rows, by a key index or not;
        `drafts`: of a pass, at most."""
        rows = drafts * (layout.num_resident + layout.num_compressed) * WIDE * (shape.head_dim + shape.v_head_dim)
        if not layout.num_compressed:
            return cls(PREFILL_WORKSPACE, 0, 0, rows)
        heads = max(len(x.resident) + len(x.compressed) for x in layout.layers)
        widest = max(len(x.compressed) for x in layout.layers)
        blocks = int(2 * SPREAD * longest) * widest  # two layers' blocks; then the rows themselves, and all heads'
        looked = LOOK_WORKSPACE * looks + ARRIVALS * (shape.row + 8) * index  # a row, and where it goes
        prefix = (blocks + longest * (widest + heads)) * shape.row
        return cls(PREFILL_WORKSPACE, looked, prefix, rows + looked * (drafts > 0))

    @property
    def total(self) -> int:
        return self.prefill + self.looks + self.prefix + self.drafts


def slots_within(
    layouts: Sequence[HeadLayout], shape: Shape, page_size: int, device_bytes: int, host_bytes: int | None,
    joint: bool, index_bytes: Sequence[int] = (),
) -> int:  # fmt: skip
    """Token slots that fit every rank's device bytes and host bytes (None: no limit of its own).

    joint: the host tier lives in the same memory as the device tier (CPU engine), so both come out of
    `device_bytes`. The poorest rank decides: capacities of SGLang's ranks must agree."""
    slots: list[int] = []
    for layout, index in zip(layouts, index_bytes or [0] * len(layouts), strict=True):
        one = Sizes(shape, layout, page_size, 0, index)
        fixed = (one.hot_pages + 1) * page_size * shape.hot_row  # rounding, of requests and of the pool itself
        cell = one.resident_bytes_per_slot + one.index_bytes_per_slot + sum(layout.fractions) * shape.hot_row
        if joint:
            cell += one.host_bytes_per_slot
        slots.append(int((device_bytes - fixed) / cell))
        if host_bytes is not None and one.host_bytes_per_slot:
            slots.append(host_bytes // one.host_bytes_per_slot)
    return max(0, min(slots))


def table(sizes: Sizes, admission: Admission, longest: int, workspaces: Workspaces | None) -> str:
    """The start-up log: what goes where on this rank, and how many requests of which lengths fit at once."""
    dense = sizes.device_bytes // (sizes.resident_bytes_per_slot + sizes.host_bytes_per_slot)
    lengths = [n << 10 for n in (4, 32, 128) if n << 10 < longest]
    tiers = [
        ("resident store", sizes.slots * sizes.resident_bytes_per_slot, "device"),
        ("hot pool", sizes.hot_bytes, f"device, {sizes.hot_pages} pages of {sizes.page_size} rows"),
        ("key index", sizes.slots * sizes.index_bytes_per_slot, "device"),
        ("host store", sizes.slots * sizes.host_bytes_per_slot, "host"),
    ]
    lines = [f"  {'tier':<16}{'bytes/token':>12}{'total':>12}"]
    for name, total, where in tiers:
        lines.append(f"  {name:<16}{round(total / max(sizes.slots, 1)) or '':>12}{_size(total):>12}  {where}")
    if workspaces is not None:
        parts = ", ".join(f"{name} {_size(count)}" for name, count in vars(workspaces).items() if count)
        lines.append(f"  {'workspaces':<28}{_size(workspaces.total):>12}  device, at most: {parts}")
    fits = [f"{min(sizes.slots // n, admission.concurrent(n))} of {n >> 10}K" for n in lengths]
    fits.append(f"{min(sizes.slots // longest, admission.concurrent(longest))} of the longest, {longest} tokens")
    whole = f"prompts under {admission.rule.dense_below} tokens are kept whole where that fits the hot pool"
    more = f"{sizes.slots / max(dense, 1):.2f}x"
    lines.append(f"  token slots {sizes.slots}; dense KV in the same device bytes: {dense} ({more})")
    lines.append(f"  concurrent requests: {', '.join(fits)}; {whole}")
    return "\n".join(lines)


def _size(count: float) -> str:
    units = ["KiB", "MiB", "GiB"]
    if count < 1024:
        return f"{count:.0f} B"
    while (count := count / 1024) >= 1024 and len(units) > 1:
        units.pop(0)
    return f"{count:.1f} {units[0]}"
