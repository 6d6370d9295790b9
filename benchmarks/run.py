"""One run of a benchmark: rows are saved as they come, and SIGTERM or --limit end it with what there is."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import results

SIGNALS = (signal.SIGTERM, signal.SIGALRM)


class Stopped(BaseException):
    """The run is to end now; no Exception, so that what is measured cannot take it for a failure."""


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """--name and --limit."""
    parser.add_argument("--name", default=name, help=f"of the JSON in results/ (default: {name})")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop then, with the rows that there are")


def add_log_option(parser: argparse.ArgumentParser) -> None:
    """--log-dir, for benchmarks that start servers."""
    parser.add_argument("--log-dir", type=Path, default=None, help="keep the servers' logs there")


def named(words: list[str]) -> dict[str, str]:
    """Server flags from NAME=VALUE words."""
    return dict(word.split("=", 1) for word in words)


class Run:
    """A context manager, of the main thread: inside it SIGTERM and the limit raise Stopped, which ends the block.

    `doing` is what is said to be left out then; `told` are fields of the JSON beside its rows.
    """

    def __init__(self, given: argparse.Namespace, **told: Any) -> None:
        self.name, self.limit = given.name, given.limit
        self.logs: Path | None = getattr(given, "log_dir", None)
        self.rows: list[dict[str, Any]] = []
        self.told, self.doing = told, "starting"
        self.begun = time.monotonic()

    def __enter__(self) -> Run:
        self._before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        if self.limit is not None:
            signal.setitimer(signal.ITIMER_REAL, max(self.limit, 1e-3))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not isinstance(error, Stopped):
            return False
        self.told["stopped"] = f"{error} while {self.doing}"
        print(f"stopped by {self.told['stopped']}; that and what comes after it is left out", flush=True)
        self.save()
        return True

    def does(self, what: str) -> None:
        """Say what comes now."""
        self.doing = what
        print(f"[{time.monotonic() - self.begun:4.0f} s] {what}", flush=True)

    def keep(self, row: dict[str, Any]) -> dict[str, Any]:
        """One more row, saved at once."""
        self.rows.append(row)
        self.save()
        return row

    def save(self) -> Path:
        """Write results/NAME.json."""
        return results.save(self.name, {**self.told, "rows": self.rows})

    def log(self, *label: object) -> Path | None:
        """Where a server of the run writes its log; None: wherever servers do."""
        if self.logs is None:
            return None
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{'-'.join(map(str, (self.name, *label)))}.log"

    def _stop(self, number: int, _: object) -> None:
        for each in SIGNALS:  # servers are being stopped from here on
            signal.signal(each, signal.SIG_IGN)
        raise Stopped("SIGTERM" if number == signal.SIGTERM else f"the limit of {self.limit:g} s")
