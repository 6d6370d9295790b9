"""How much host memory this process may still take."""

from collections.abc import Iterator
from pathlib import Path

import psutil


def free_host_bytes(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that can be allocated now: the available memory, less where a cgroup (v1 or v2) caps it."""
    free = psutil.virtual_memory().available
    for folder in _own_groups(cgroups, membership):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            # File pages nobody uses are counted as used but given up under pressure.
            free = min(free, limit - used + _inactive_file(folder / "memory.stat"))
    return max(0, free)


def _own_groups(cgroups: Path, membership: Path) -> Iterator[Path]:
    """This process's memory group and its ancestors: each may set a limit of its own."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        folder = root / path.lstrip("/")
        while folder != root and root in folder.parents:
            yield folder
            folder = folder.parent
        yield root


def _number(*files: Path) -> int | None:
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def _inactive_file(stat: Path) -> int:
    try:
        fields = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    # total_*: version 1, with the group's children
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
