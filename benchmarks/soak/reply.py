"""What a server sends back to POST /generate, streamed or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One of a request's answers."""

    text: str
    ids: list[int]
    finish: dict[str, Any] | None
    tokens: int

    @property
    def aborted(self) -> bool:
        return self.finish is not None and self.finish["type"] == "abort"

    @classmethod
    def of(cls, told: dict[str, Any]) -> Part:
        meta = told["meta_info"]
        ids = told.get("output_ids") or []
        return cls(told.get("text") or "", ids, meta.get("finish_reason"), meta.get("completion_tokens", len(ids)))


@dataclass(frozen=True)
class Reply:
    """The answers by their index, or why there are none."""

    parts: dict[int, Part]
    error: str = ""

    @property
    def aborted(self) -> bool:
        return any(part.aborted for part in self.parts.values())

    def lacks(self, n: int, exactly: int | None) -> str:
        """What is missing of `n` whole answers, of `exactly` so many tokens; empty: nothing."""
        if len(self.parts) != n:
            return f"{len(self.parts)} of {n} answers came"
        for part in self.parts.values():
            if part.finish is None:
                return "an answer ends without a reason"
            if exactly is not None and not part.aborted and (part.tokens, len(part.ids)) != (exactly, exactly):
                return f"{part.tokens} tokens were told and {len(part.ids)} came, not {exactly}"
        return ""

    @classmethod
    def whole(cls, status: int, body: bytes) -> Reply:
        """Of a reply that was not streamed. ValueError or KeyError for one that cannot be read."""
        if status != 200:
            return cls({}, f"{status} {body[:200].decode(errors='replace')}")
        told = json.loads(body)
        return cls(dict(enumerate(map(Part.of, told if isinstance(told, list) else [told]))))

    @classmethod
    def streamed(cls, status: int, body: bytes) -> Reply:
        """Of all events together: the last of each answer has all of it."""
        if status != 200:
            return cls({}, f"{status} {body[:200].decode(errors='replace')}")
        parts: dict[int, Part] = {}
        for line in body.split(b"\n"):
            if line.startswith(b"data:") and b"[DONE]" not in line:
                told = json.loads(line[5:])
                if "error" in told:
                    return cls(parts, str(told["error"]))
                parts[told.get("index", 0)] = Part.of(told)
        if not body.rstrip().endswith(b"data: [DONE]"):
            return cls(parts, "the stream ends before its end")
        return cls(parts)
