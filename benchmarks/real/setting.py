"""A server's settings as one word of the command line: `heterocache@0.15:--hetero-retrieval off`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.cell import Cell
from benchmarks.quality.host import parse_flags
from hetero_sglang.config.choices import POLICIES
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.asked import make_policy


@dataclass(frozen=True)
class Setting(Cell):
    """A policy at a keep ratio; `words`: further flags of its server, `profile`: for policies that read one."""

    words: str = ""
    profile: str | None = None

    @property
    def label(self) -> str:
        """As on the command line."""
        at = "" if self.ratio is None else f"@{self.ratio:g}"
        return f"{self.policy}{at}" + (f":{self.words}" if self.words else "")

    @property
    def flags(self) -> dict[str, Any]:
        profiled = self.profile and self.policy != "full" and make_policy(self.policy).roles
        return super().flags | ({"hetero_profile": self.profile} if profiled else {}) | parse_flags(self.words)


FULL = Setting("full")


def parse_settings(words: Sequence[str], profile: str | None = None) -> list[Setting]:
    """Each once, plain SGLang first: the others are compared with it. Raises HeteroError for what no server knows."""
    given = (_parse(word, profile) for word in words)
    return list(dict.fromkeys([FULL, *(setting for setting in given if setting.label != FULL.label)]))


def _parse(word: str, profile: str | None) -> Setting:
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
    return Setting(policy, number, words=flags.strip(), profile=profile)
