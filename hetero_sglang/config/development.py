"""Switches for measurements and tests. They change what a server answers, so they need HETERO_DEVELOPMENT=1.

HETERO_FETCH_RATE, for random weights: the share of satellites refilled at every look, whatever they hold; or a file
with it, which may change while the server runs. HETERO_CHANGED_ROWS, a number or a file with one: at most so many rows
come to a head with a key index when a step looks for some, and BLOCK_ROWS times as many when new tokens of a
prompt do. HETERO_WAIT_FOR_RANKINGS=1: every ranking of the worker is waited for between steps, so that tokens of two
runs can be compared."""

import os
from pathlib import Path

from hetero_sglang.errors import HeteroError

ALLOWED = "HETERO_DEVELOPMENT"
FETCH_RATE = "HETERO_FETCH_RATE"
CHANGED_ROWS = "HETERO_CHANGED_ROWS"
WAIT = "HETERO_WAIT_FOR_RANKINGS"
BLOCK_ROWS = 10  # as on SmolLM2-135M: 240 to 280 rows come for eight new tokens, some 25 when a step looks


def check() -> None:
    """HeteroError when a switch is set that is not allowed, or means nothing."""
    for name in (ALLOWED, WAIT):
        if os.environ.get(name, "") not in ("", "0", "1"):
            raise HeteroError(f"{name} is {os.environ[name][:40]!r}: set it to 1, or unset it.")
    if os.environ.get(ALLOWED) != "1":
        for name in (FETCH_RATE, CHANGED_ROWS, WAIT):
            if os.environ.get(name):
                raise HeteroError(
                    f"{name} is set, which is for measurements and tests alone: unset it, or set {ALLOWED}=1 as well."
                )
    fetch_rate()
    changed_rows()


def changed_rows() -> int | None:
    """None: as many as the server's bound allows. HeteroError when what is set is no whole number."""
    given = _written(CHANGED_ROWS)
    if given and not given.isdecimal():
        raise HeteroError(f"{CHANGED_ROWS} is {given[:40]!r}: set it to a whole number or to a file with one.")
    return int(given) if given else None


def fetch_rate() -> float | None:
    """None: drift decides. HeteroError when what is set is no share."""
    given = _written(FETCH_RATE)
    try:
        rate = float(given) if given else None
    except ValueError:
        rate = float("nan")
    if rate is not None and not 0 <= rate <= 1:
        raise HeteroError(f"{FETCH_RATE} is {given[:40]!r}: set it to a share from 0 to 1 or to a file with one.")
    return rate


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
