"""A cell of the matrix: one policy with its options at one keep ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hetero_sglang.config.choices import ABLATIONS, APPENDS, DECODE_KERNELS, INDEXES, POLICIES, RETRIEVAL, ROLES
from hetero_sglang.errors import HeteroError

OPTIONS: dict[str, list[str]] = {  # of heterocache; no values: a switch
    "retrieval": RETRIEVAL,
    "roles": ROLES,
    "ablation": [name for name in ABLATIONS if name != "none"],
    "index": INDEXES,
    "append": APPENDS,
    "decode_kernel": DECODE_KERNELS,
    "reassign": [],
}


@dataclass(frozen=True)
class Cell:
    """`ratio` is the device KV bytes kept per token, as a fraction of dense; None for `full`."""

    policy: str
    ratio: float | None = None
    options: tuple[tuple[str, str], ...] = ()  # sorted pairs; a switch has an empty value

    @property
    def variant(self) -> str:
        """Policy and options as on the command line: "heterocache:retrieval=off"."""
        return ":".join([self.policy, *(f"{name}={value}" if value else name for name, value in self.options)])

    @property
    def label(self) -> str:
        """Variant and ratio: "heterocache:retrieval=off at 0.5"."""
        return self.variant if self.ratio is None else f"{self.variant} at {self.ratio:g}"

    @property
    def flags(self) -> dict[str, Any]:
        """The server's flags, as `benchmarks.launch.Server` takes them."""
        flags: dict[str, Any] = {"kv_policy": self.policy}
        if self.ratio is not None:
            flags["hetero_keep_ratio"] = self.ratio
        return flags | {f"hetero_{name}": value or True for name, value in self.options}

    def check(self, info: dict[str, Any]) -> None:
        """Raises HeteroError if a running server's /server_info says that it serves another cell."""
        for name, wanted in self.flags.items():
            if name in info and info[name] != wanted:
                raise HeteroError(
                    f"The server runs with {name} {info[name]!r}, not {wanted!r}: name its cell with --policies and "
                    "--ratios, or let the benchmark start the server."
                )


def parse_cells(variants: Sequence[str], ratios: Sequence[float]) -> list[Cell]:
    """Every variant at every ratio, `full` once and first. Raises HeteroError for what no server knows."""
    cells: dict[Cell, None] = {}
    for policy, options in map(_parse, variants):
        at: list[float | None] = [None] if policy == "full" else list(ratios)
        cells |= {Cell(policy, ratio, options): None for ratio in at}
    return sorted(cells, key=lambda cell: cell.policy != "full")


def _parse(variant: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    policy, *words = variant.split(":")
    if policy not in POLICIES:
        raise HeteroError(f"Policy {policy!r} is not one of {', '.join(POLICIES)}.")
    if words and policy != "heterocache":
        raise HeteroError(f"{variant!r} gives options to {policy}: only heterocache has any.")
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in OPTIONS:
            raise HeteroError(f"{variant!r} has the option {name!r}: pass {', '.join(OPTIONS)}.")
        values = OPTIONS[name]
        if value not in (values or ("",)):
            allowed = f"{name}=" + "|".join(values) if values else f"{name} without a value"
            raise HeteroError(f"{variant!r} is no variant: write {allowed}.")
        options[name] = value
    return policy, tuple(sorted(options.items()))
