"""The laws of a soak: a sentence for each that was broken."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.soak.footprint import Footprint
from benchmarks.soak.tally import GOOD, End, Tally

# What the last quarter's median may have over the second's: so much, or such a share of it, whichever is more.
# A worker that is down or new, and connections under way, are the noise of it.
ALLOWED: dict[str, tuple[float, float]] = {
    "rss": (48 * 2**20, 0.02),
    "fds": (24, 0.0),
    "threads": (8, 0.0),
    "shared": (2, 0.0),
    "shared_bytes": (8 * 2**20, 0.01),
}
FEWEST = 16  # samples from which quarters can be told apart
_WHAT = {
    "rss": "MB of resident memory", "fds": "open files", "threads": "threads", "shared": "shared mappings",
    "shared_bytes": "MB of shared memory",
}  # fmt: skip


def of_requests(tally: Tally) -> list[str]:
    """All that were sent were answered, aborted as asked, or left; nobody was told what is another's."""
    found = []
    good = sum(tally.ends[end] for end in GOOD)
    if lost := tally.sent - tally.done:
        found.append(f"{lost} of {tally.sent} requests were sent and never ended: {good} ended well")
    for end, what in ((End.HUNG, "got no answer in time"), (End.FAILED, "failed")):
        if count := tally.ends[end]:
            said = next((each for each in tally.wrong if each.startswith(end)), "")
            found.append(f"{count} of {tally.sent} requests {what}; {said}")
    if tally.foreign:
        found.append(f"{len(tally.foreign)} times an answer had another user's entry: {tally.foreign[0]}")
    return found


def of_footprints(samples: Sequence[Footprint]) -> list[str]:
    """What grew from the second quarter to the last."""
    if len(samples) < FEWEST:
        return []
    found = []
    for name, (before, after) in quarters(samples).items():
        absolute, share = ALLOWED[name]
        if after - before > max(absolute, share * before):
            unit = 2**20 if "MB" in _WHAT[name] else 1
            numbers = f"from {before / unit:.0f} to {after / unit:.0f}"
            found.append(f"{_WHAT[name]} grew {numbers} between the second and the last quarter of the run")
    return found


def quarters(samples: Sequence[Footprint]) -> dict[str, tuple[float, float]]:
    """Medians of the second quarter and of the last; the first is the server's start-up."""
    count = len(samples)
    second, last = samples[count // 4 : count // 2], samples[3 * count // 4 :]
    return {
        name: (median(getattr(each, name) for each in second), median(getattr(each, name) for each in last))
        for name in ALLOWED
    }


def of_the_end(alive: bool, log: str, left_over: Sequence[str]) -> list[str]:
    """The server is there at the end, has lost nothing on the way, and leaves nothing behind."""
    found = [] if alive else ["the server ended before the run did"]
    if count := log.count("lost track of memory"):
        found.append(f"the server's log says {count} times that it lost track of memory")
    if left_over:
        found.append(f"the server left {len(left_over)} files in /dev/shm: {', '.join(left_over[:3])}")
    return found
