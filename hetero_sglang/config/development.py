"""Switches for measurements and tests. They change what a server answers, so they need HETERO_DEVELOPMENT=1.

HETERO_FETCH_RATE, for random weights: the share of satellites refilled at every look, whatever they hold; or a file
with it, which may change while the server runs. HETERO_CHANGED_ROWS, a number or a file with one: at most so many rows
come to a head with a key index when a step looks for some, and BLOCK_ROWS times as many when new tokens of a
prompt do. HETERO_WAIT_FOR_RANKINGS=1: every ranking of the worker is waited for between steps, so that tokens of two
runs can be compared. HETERO_FORCED_EXITS: the share of branches, drawn at random by each rank, at which a batch
leaves early, however sure they are, if every rank has drawn so. HETERO_PARTS=1: on a CPU too, passes that may end early
run as on a GPU, in parts with buffers of their own. HETERO_CHECKSUMS=1: host rows are summed up when they are first
seen and compared in every pass. HETERO_FAULT, names with commas between or a file with them: what goes wrong on purpose
(`FAULTS`)."""

import os
from pathlib import Path

from hetero_sglang.errors import HeteroError

ALLOWED = "HETERO_DEVELOPMENT"
FETCH_RATE = "HETERO_FETCH_RATE"
CHANGED_ROWS = "HETERO_CHANGED_ROWS"
FORCED_EXITS = "HETERO_FORCED_EXITS"
PARTS = "HETERO_PARTS"
WAIT = "HETERO_WAIT_FOR_RANKINGS"
CHECKSUMS = "HETERO_CHECKSUMS"
FAULT = "HETERO_FAULT"
SWITCHES = (FETCH_RATE, CHANGED_ROWS, FORCED_EXITS, PARTS, WAIT, CHECKSUMS, FAULT)
FAULTS = {
    "worker-dies": "the retrieval worker ends when it is asked for a ranking",
    "worker-stalled": "it stops reading",
    "worker-slow": "a ranking takes it half a second more",
    "worker-late": "a ranking takes it twelve seconds more, and the request may have ended",
    "worker-lies": "it names tokens that do not exist",
    "host-bit": "a bit of a host row of every request flips before every pass; HETERO_CHECKSUMS=1 sees it",
}
BLOCK_ROWS = 10  # as on SmolLM2-135M: 240 to 280 rows come for eight new tokens, some 25 when a step looks


def check() -> None:
    """HeteroError when a switch is set that is not allowed, or means nothing."""
    for name in (ALLOWED, PARTS, WAIT, CHECKSUMS):
        if os.environ.get(name, "") not in ("", "0", "1"):
            raise HeteroError(f"{name} is {os.environ[name][:40]!r}: set it to 1, or unset it.")
    if os.environ.get(ALLOWED) != "1":
        for name in SWITCHES:
            if os.environ.get(name):
                raise HeteroError(
                    f"{name} is set, which is for measurements and tests alone: unset it, or set {ALLOWED}=1 as well."
                )
    fetch_rate()
    forced_exits()
    changed_rows()
    if unknown := sorted(faults() - FAULTS.keys()):
        raise HeteroError(f"{FAULT} names {unknown[0][:40]!r}: choose among {', '.join(FAULTS)}.")


def changed_rows() -> int | None:
    """None: as many as the server's bound allows. HeteroError when what is set is no whole number."""
    given = _written(CHANGED_ROWS)
    if given and not given.isdecimal():
        raise HeteroError(f"{CHANGED_ROWS} is {given[:40]!r}: set it to a whole number or to a file with one.")
    return int(given) if given else None


def fetch_rate() -> float | None:
    """None: drift decides. HeteroError when what is set is no share."""
    return _share(FETCH_RATE)


def forced_exits() -> float | None:
    """None: branches decide. HeteroError when what is set is no share."""
    return _share(FORCED_EXITS)


def _share(name: str) -> float | None:
    given = _written(name)
    try:
        share = float(given) if given else None
    except ValueError:
        share = float("nan")
    if share is not None and not 0 <= share <= 1:
        raise HeteroError(f"{name} is {given[:40]!r}: set it to a share from 0 to 1 or to a file with one.")
    return share


def faults() -> frozenset[str]:
    """What goes wrong on purpose, now."""
    return frozenset(filter(None, (name.strip() for name in _written(FAULT).split(","))))


def checksums() -> bool:
    """Whether host rows are compared with what they were."""
    return _set(CHECKSUMS) == "1"


def parts() -> bool:
    """Whether a CPU runs passes that may end early in parts."""
    return _set(PARTS) == "1"


def waits() -> bool:
    """Whether rankings are waited for between steps."""
    return _set(WAIT) == "1"


def _written(name: str) -> str:
    """What is set, or what the file that is set says."""
    given = _set(name)
    try:
        return Path(given).read_text().strip() if os.path.isfile(given) else given
    except (OSError, ValueError):  # bytes that are no text, too
        return "nothing readable"


def _set(name: str) -> str:
    return os.environ.get(name, "") if os.environ.get(ALLOWED) == "1" else ""
