"""A server's answers to the same requests, as they come, beside those that are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class News:
    """An answer and the server's counters by then, or (`output` None) that there will be no more, and why."""

    mode: str
    output: list[int] | None
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Answers:
    """One mode's output ids so far, beside the `wanted` ones."""

    mode: str
    wanted: list[list[int]]
    outputs: list[list[int]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)  # of the server's counters
    error: str = ""

    def row(self) -> dict[str, Any]:
        """How many of the answered requests are identical, of how many wanted."""
        different = [n for n, (one, other) in enumerate(zip(self.wanted, self.outputs, strict=False)) if one != other]
        counts = {"identical": len(self.outputs) - len(different), "answered": len(self.outputs)}
        ended = {"error": self.error} if self.error else {}
        return {"mode": self.mode, **counts, "requests": len(self.wanted), "different": different, **self.told, **ended}

    def line(self) -> str:
        """One row of the table."""
        row = self.row()
        text = f"{self.mode}: {row['identical']} of {row['answered']} answers identical"
        if row["answered"] < row["requests"]:
            text += f", {row['requests'] - row['answered']} requests not answered {self.error}".rstrip()
        return f"{text}, {self.told}"

    def note(self, news: News) -> None:
        """One more answer, or the end."""
        if news.output is None:
            self.error = news.error
            return
        number, self.told = len(self.outputs), news.told
        self.outputs.append(news.output)
        if news.output != self.wanted[number]:
            print(f"  {self.mode} differs: {number} {self.wanted[number]} {news.output}", flush=True)
