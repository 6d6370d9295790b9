"""What a server's device and host bytes hold: token slots, every rank's tiers, and requests at once."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.sizes import Shape, Sizes, Workspaces, slots_within
from hetero_sglang.config.settings import Settings

_MUCH = 0.1  # of the device's bytes, which may well stay unused


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
        return Workspaces.of(self.shape, self.settings.ranks[rank], longest, looks, index, self.settings.drafts)

    def slots(self, device_bytes: int, host_bytes: int | None, joint: bool = False) -> int:
        """Token slots for the bytes that stores and workspaces may take on each rank's device, and `host_bytes` (None:
        as many as are needed); `joint`: the host tier comes out of the device's bytes."""
        settings = self.settings
        if self.on_device:
            device_bytes -= max(self.workspaces(rank).total for rank in range(len(settings.ranks)))
        page = settings.rule.page_size
        return slots_within(settings.ranks, self.shape, page, device_bytes, host_bytes, joint, settings.index_bytes)

    def unused(self, device_bytes: int, slots: int, joint: bool = False) -> float:
        """The share of the device's bytes that so many token slots leave; `joint` as of `slots`."""
        return 1 - slots / max(slots, self.slots(device_bytes, None, joint), 1)

    def sizes(self, slots: int) -> list[Sizes]:
        """Every rank's tiers."""
        page, each = self.settings.rule.page_size, zip(self.settings.ranks, self.settings.index_bytes, strict=True)
        return [Sizes(self.shape, layout, page, slots, index) for layout, index in each]

    def admission(self, slots: int) -> Admission:
        """The ledger of empty pools. HeteroError where they could not hold a request that the slots can."""
        pages = [sizes.hot_pages for sizes in self.sizes(slots)]
        ranks = [layout.fractions for layout in self.settings.ranks]
        made = Admission(self.settings.rule, ranks, pages, self.settings.adapters)
        made.check_longest(self.longest(slots))
        return made

    def longest(self, slots: int | None = None) -> int:
        """Tokens of the longest request."""
        return self.context if slots is None else min(self.context, slots)


@dataclass(frozen=True)
class Unused:
    """What the bytes of device and host had room for: `slots` token slots, which leave a `share` of the device's."""

    slots: int
    device_bytes: int
    share: float

    def said(self, slots: int, keep_ratio: float) -> str:
        """Where the host alone bounds the `slots` that there are, and by far: what that leaves, and what to do."""
        if self.share < _MUCH or slots < (1 - _MUCH) * self.slots:  # fewer were asked for
            return ""
        more = min(1.0, keep_ratio / (1 - self.share))
        return (
            f"host memory bounds the token slots, so that {self.share * self.device_bytes / 1e9:.3g} of "
            f"{self.device_bytes / 1e9:.3g} GB of device memory for KV stay unused: give the host tier more "
            f"(--hetero-host-size, or the container's memory limit), or keep more on the device (--hetero-keep-ratio "
            f"up to {more:.2g})."
        )
