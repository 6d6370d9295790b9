"""What is written down beside a trained model: training.json and its card."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recall.mix import KINDS, Mix

from .accuracy import Accuracy
from .card import CARD
from .schedule import parse_stages
from .settings import Settings
from .shape import Shape
from .trainer import Totals


@dataclass(frozen=True)
class Record:
    """Command, settings, what was done and what came of it."""

    command: str
    shape: Shape
    mix: Mix
    settings: Settings
    totals: Totals
    accuracy: dict[int, dict[str, Accuracy]]
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; counts of right ones beside all of them."""
        return {
            "command": self.command,
            "shape": asdict(self.shape) | {"parameters": self.shape.parameters},
            "mix": asdict(self.mix),
            "settings": asdict(self.settings),
            "totals": asdict(self.totals),
            "accuracy": {
                str(length): {kind: asdict(each) for kind, each in kinds.items()}
                for length, kinds in self.accuracy.items()
            },
            "device": self.device,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def save(self, folder: str | Path, name: str) -> None:
        """Write training.json and README.md."""
        folder = Path(folder)
        (folder / "training.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")
        (folder / "README.md").write_text(self.card(name))

    def card(self, name: str) -> str:
        """The model card."""
        shape, settings, totals = self.shape, self.settings, self.totals
        return CARD.format(
            name=name,
            millions=f"{shape.parameters / 1e6:.1f}",
            shape=shape,
            parameters=f"{shape.parameters:,}",
            mix=self.mix,
            settings=settings,
            command=self.command,
            stages=_stages(settings.stages),
            time=f"{totals.seconds / 60:.1f} minutes on {self.device}",
            steps=f"{totals.steps:,}",
            tokens=f"{totals.tokens / 1e6:,.0f} million",
            accuracy=self._table(),
        )

    def _table(self) -> str:
        lines = [f"| length | {' | '.join(KINDS)} |", "|---" * (1 + len(KINDS)) + "|"]
        for length, kinds in self.accuracy.items():
            cells = [f"{_percent(each.tokens.share)} / {_percent(each.answers.share)}" for each in kinds.values()]
            lines.append(f"| {length:,} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _stages(text: str) -> str:
    begin, parts = 0.0, []
    for stage in parse_stages(text):
        parts.append(f"{stage.length:,} ({100 * (stage.end - begin):.0f} %)")
        begin = stage.end
    return ", ".join(parts)
