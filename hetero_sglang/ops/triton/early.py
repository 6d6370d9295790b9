"""Kernels that begin while the one before them ends (programmatic dependent launch), from Hopper on.

Such a kernel may read before `gdc_wait` only what is older than the kernel just before it."""

from functools import cache

import torch


@cache
def overlaps(device: torch.device) -> bool:
    """Whether the device can."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def early(begin: bool) -> dict[str, bool]:
    """Launch options of a kernel that is to begin early."""
    return {"launch_pdl": True} if begin else {}
