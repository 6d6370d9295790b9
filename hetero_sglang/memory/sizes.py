"""How many token slots and hot pages a byte budget gives; pure arithmetic, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero_sglang.memory.budget import CapRule
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.memory.layout import HeadLayout

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
        return HotPool.row_bytes(self.head_dim, self.v_head_dim, self.itemsize)


@dataclass(frozen=True)
class Sizes:
    """Sizes of one rank's tiers."""

    shape: Shape
    layout: HeadLayout
    page_size: int  # rows of a hot page
    slots: int

    @property
    def hot_rows_per_slot(self) -> float:
        return sum(self.layout.fractions)

    @property
    def hot_pages(self) -> int:
        rounding = self.layout.num_compressed * ROUNDING_REQUESTS
        return -(-int(self.slots * self.hot_rows_per_slot) // self.page_size) + rounding

    @property
    def resident_bytes_per_slot(self) -> int:
        return self.layout.num_resident * self.shape.row

    @property
    def host_bytes_per_slot(self) -> int:
        return self.layout.num_compressed * self.shape.row

    @property
    def dense_bytes_per_slot(self) -> int:
        return self.resident_bytes_per_slot + self.host_bytes_per_slot

    @property
    def device_bytes(self) -> int:
        return self.slots * self.resident_bytes_per_slot + self.hot_pages * self.page_size * self.shape.hot_row


def slots_within(
    layouts: Sequence[HeadLayout], shape: Shape, page_size: int, device_bytes: int, host_bytes: int | None, joint: bool
) -> int:
    """Token slots that fit every rank's device bytes and host bytes (None: no limit of its own).

    joint: the host tier lives in the same memory as the device tier (CPU engine), so both come out of
    `device_bytes`. The poorest rank decides: capacities of SGLang's ranks must agree.
    """
    slots: list[int] = []
    for layout in layouts:
        one = Sizes(shape, layout, page_size, 0)
        fixed = (one.hot_pages + 1) * page_size * shape.hot_row  # rounding, of requests and of the pool itself
        cell = one.resident_bytes_per_slot + one.hot_rows_per_slot * shape.hot_row
        if joint:
            cell += one.host_bytes_per_slot
        slots.append(int((device_bytes - fixed) / cell))
        if host_bytes is not None and one.host_bytes_per_slot:
            slots.append(host_bytes // one.host_bytes_per_slot)
    return max(0, min(slots))


def concurrent(sizes: Sizes, rule: CapRule, length: int) -> int:
    """Unshared requests of `length` tokens that fit at once, by slots and by hot pages."""
    pages = rule.held(length, length)
    by_pages = sizes.hot_pages // pages if pages else sizes.slots
    return min(sizes.slots // length, by_pages)


def table(sizes: Sizes, rule: CapRule, keep_ratio: float, floor: float) -> str:
    """The start-up log: what goes where."""
    dense = sizes.device_bytes // sizes.dense_bytes_per_slot
    hot = sizes.device_bytes - sizes.slots * sizes.resident_bytes_per_slot
    lines = [
        f"heterocache: keep ratio {keep_ratio:g} (floor {floor:.3f}), "
        f"{sizes.layout.num_resident} resident + {sizes.layout.num_compressed} compressed KV heads on this rank",
        f"  {'tier':<16}{'bytes/token':>12}{'total':>12}",
        f"  {'resident store':<16}{sizes.resident_bytes_per_slot:>12}"
        f"{_size(sizes.slots * sizes.resident_bytes_per_slot):>12}  device",
        f"  {'hot pool':<16}{hot / max(sizes.slots, 1):>12.0f}{_size(hot):>12}  device, "
        f"{sizes.hot_pages} pages of {sizes.page_size} rows",
        f"  {'host store':<16}{sizes.host_bytes_per_slot:>12}"
        f"{_size(sizes.slots * sizes.host_bytes_per_slot):>12}  host",
        f"  token slots {sizes.slots}; dense KV in the same device bytes: {dense} ({sizes.slots / max(dense, 1):.2f}x)",
        "  concurrent requests: "
        + ", ".join(f"{concurrent(sizes, rule, n << 10)} of {n}K" for n in (4, 32, 128))
        + f"; prompts under {rule.dense_below} tokens are kept whole",
    ]
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    raise AssertionError
