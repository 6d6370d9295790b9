"""What a server's device and host bytes hold: token slots, every rank's tiers, and requests at once."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.sizes import Shape, Sizes, Workspaces, slots_within
from hetero_sglang.config.settings import Settings


@dataclass(frozen=True)
class Budget:
    """`context`: tokens of the longest request that the model takes; `on_device`: a GPU runs the steps."""

    settings: Settings
    shape: Shape
    context: int
    on_device: bool

    def workspaces(self, rank: int, slots: int | None = None) -> Workspaces:
        """Of a rank whose requests are no longer than the model's context, or its token slots."""
        longest, index = self.longest(slots), self.settings.index is not None
        looks = self.settings.retrieves or index
        return Workspaces.of(self.shape, self.settings.ranks[rank], longest, looks, index)

    def slots(self, device_bytes: int, host_bytes: int | None, joint: bool = False) -> int:
        """Token slots for the bytes that stores and workspaces may take on each rank's device, and `host_bytes` (None:
        as many as are needed); `joint`: the host tier comes out of the device's bytes."""
        settings = self.settings
        if self.on_device:
            device_bytes -= max(self.workspaces(rank).total for rank in range(len(settings.ranks)))
        page = settings.rule.page_size
        return slots_within(settings.ranks, self.shape, page, device_bytes, host_bytes, joint, settings.index_bytes)

    def sizes(self, slots: int) -> list[Sizes]:
        """Every rank's tiers."""
        page, each = self.settings.rule.page_size, zip(self.settings.ranks, self.settings.index_bytes, strict=True)
        return [Sizes(self.shape, layout, page, slots, index) for layout, index in each]

    def admission(self, slots: int) -> Admission:
        """The ledger of empty pools. HeteroError where they could not hold a request that the slots can."""
        pages = [sizes.hot_pages for sizes in self.sizes(slots)]
        made = Admission(self.settings.rule, [layout.fractions for layout in self.settings.ranks], pages)
        made.check_longest(self.longest(slots))
        return made

    def longest(self, slots: int | None = None) -> int:
        """Tokens of the longest request."""
        return self.context if slots is None else min(self.context, slots)
