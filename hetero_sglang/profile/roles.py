"""The four things a KV head can do."""

from enum import StrEnum


class Role(StrEnum):
    """A KV head's part in its layer (HeteroCache's taxonomy)."""

    PIVOT = "pivot"  # centre of a cluster; watches for drift on its satellites' behalf
    SATELLITE = "satellite"  # attends like its pivot
    ANCHOR = "anchor"  # unlike the other heads, attention stable over time
    VOLATILE = "volatile"  # unlike the other heads, attention shifts

    @property
    def letter(self) -> str:
        """Capital where K/V of every token stays on the device."""
        return {"pivot": "P", "satellite": "s", "anchor": "a", "volatile": "V"}[self.value]

    @property
    def resident(self) -> bool:
        """Whether K/V of every token stays on the device."""
        return self in (Role.PIVOT, Role.VOLATILE)
