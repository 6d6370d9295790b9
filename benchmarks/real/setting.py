"""A server's settings as one word of the command line: `heterocache@0.15:--hetero-retrieval off`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.cell import Cell
from benchmarks.quality.host import parse_flags
from hetero_sglang.choices import POLICIES
from hetero_sglang.errors import HeteroError


@dataclass(frozen=True)
class Setting(Cell):
    """A policy at a keep ratio, with `words` as further flags of its server."""

    words: str = ""

    @property
    def label(self) -> str:
        """As on the command line."""
        at = "" if self.ratio is None else f"@{self.ratio:g}"
        return f"{self.policy}{at}" + (f":{self.words}" if self.words else "")

    @property
    def flags(self) -> dict[str, Any]:
        return super().flags | parse_flags(self.words)


FULL = Setting("full")


def parse_settings(words: Sequence[str]) -> list[Setting]:
    """Each once, plain SGLang first: the others are compared with it. Raises HeteroError for what no server knows."""
    return list(dict.fromkeys([FULL, *map(_parse, words)]))


def _parse(word: str) -> Setting:
    head, _, flags = word.partition(":")
    policy, at, ratio = head.partition("@")
    if policy not in POLICIES:
        raise HeteroError(f"Policy {policy!r} is not one of {', '.join(POLICIES)}.")
    if (policy == "full") == bool(at):
        raise HeteroError(f"{word!r} is no setting: write full, or another policy with its keep ratio, as snapkv@0.5.")
    parse_flags(flags)
    try:
        number = float(ratio) if at else None
    except ValueError:
        raise HeteroError(f"Keep ratio {ratio!r} in {word!r}: write a fraction such as 0.5.") from None
    if number is not None and not 0 < number <= 1:
        raise HeteroError(f"Keep ratio {ratio!r} in {word!r}: pass more than 0 and at most 1.")
    return Setting(policy, number, words=flags.strip())
