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
    """Output ids so far of a policy's server in one mode, beside the `wanted` ones."""

    policy: str
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
        told = {"requests": len(self.wanted), "different": different, **self.told, **ended}
        return {"policy": self.policy, "mode": self.mode, **counts, **told}

    def line(self) -> str:
        """One row of the table."""
        row = self.row()
        text = f"{self.policy}, {self.mode}: {row['identical']} of {row['answered']} answers identical"
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
            print(f"  {self.policy}, {self.mode} differs: {number} {self.wanted[number]} {news.output}", flush=True)
