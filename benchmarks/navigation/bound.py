"""How much of an action's latency depth can save: time by layer, and what a served token takes without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.launch import Server

from .words import REPLY


@dataclass(frozen=True)
class Line:
    """Milliseconds = fixed + layer * layers, by least squares."""

    fixed: float
    layer: float

    @classmethod
    def through(cls, points: Mapping[int, float]) -> Line:
        """Through milliseconds by number of layers, two at least."""
        count, xs = len(points), list(points)
        mean_x, mean_y = sum(xs) / count, sum(points.values()) / count
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / sum((x - mean_x) ** 2 for x in xs)
        return cls(mean_y - slope * mean_x, slope)

    def at(self, layers: float) -> float:
        """Milliseconds at a depth."""
        return self.fixed + self.layer * layers


@dataclass(frozen=True)
class Bound:
    """Of a token that is decoded and of a turn that is read in, which runs all layers and gives the reply's first
    word."""

    layers: int
    step: Line
    turn: Line

    def action(self, depth: float) -> float:
        """Milliseconds of an action whose reply is decoded at a mean depth."""
        return self.turn.at(self.layers) + (REPLY - 1) * self.step.at(depth)

    def saved(self, depth: float) -> float:
        """The share of an action's latency that is saved at that depth."""
        return 1 - self.action(depth) / self.action(self.layers)

    def to_json(self, branches: list[int]) -> dict[str, Any]:
        """Plain values; what is saved at most by branches behind these layers, and by a token for nothing."""
        return {
            **asdict(self),
            "action_ms": self.action(self.layers),
            "saved": {str(layer): self.saved(layer) for layer in branches},
            "saved_by_tokens_without_layers": self.saved(0),
        }


def sample(
    server: Server, history: list[int], turn: list[int], steps: int = 48, rounds: int = 5
) -> tuple[float, float]:
    """Milliseconds of a decoded token behind the history, and of reading a turn in behind it: the least of rounds."""
    step, read = [], []
    for _ in range(rounds):
        server.flush()
        server.generate(history, 1, ignore_eos=True)
        read.append(server.generate([*history, *turn], 1, ignore_eos=True)["meta_info"]["e2e_latency"])
        short, long = (
            server.generate([*history, *turn], count, ignore_eos=True)["meta_info"]["e2e_latency"]
            for count in (2, 2 + steps)
        )
        step.append((long - short) / steps)
    return 1000 * min(step), 1000 * min(read)


def words(bound: Bound, branches: list[int]) -> str:
    """What the bound says, in sentences."""
    if min(bound.step.layer, bound.step.fixed) <= 0:
        return "More layers took less time, so this machine was too busy, or the model too small, for a bound."
    lines = [
        f"A decoded token takes {bound.step.fixed:.2f} ms and {bound.step.layer:.3f} ms for each of "
        f"{bound.layers} layers; reading a turn in takes {bound.turn.at(bound.layers):.2f} ms, all layers.",
        f"An action takes {bound.action(bound.layers):.1f} ms: one turn read in, {REPLY - 1} tokens decoded.",
    ]
    lines += [
        f"If every decoded token left behind layer {layer}, {100 * bound.saved(layer):.1f} % of it would be saved."
        for layer in branches
    ]
    return "\n".join([*lines, f"Decoding without any layer would save {100 * bound.saved(0):.1f} %."])
