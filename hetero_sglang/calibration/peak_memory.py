"""The most memory a piece of work needed beyond what was held before it."""

import re
import resource
from contextlib import suppress
from pathlib import Path

import psutil
import torch


class PeakMemory:
    """Device memory on CUDA, else resident memory of this process, in bytes from construction on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (proc(5)), that of loading
            self._before = psutil.Process().memory_info().rss

    def beyond(self) -> int:
        """Bytes of the peak above the starting point."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        peak = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return max(0, peak * 1024 - self._before)
