"""Reading JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError


@dataclass(frozen=True)
class Line:
    """One object of a file, and where it stands."""

    path: Path
    number: int  # from 1
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field's text. Raises HeteroError if there is none."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise HeteroError(f"{self} has no text {name!r}: is --format right?")
        return value

    def texts(self, name: str) -> list[str]:
        """A field's texts, one or more; numbers are written out. Raises HeteroError if there is none."""
        value = self.fields.get(name)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(each, (str, int, float)) for each in values):
            raise HeteroError(f"{self} has no texts {name!r}: is --format right?")
        return [str(each) for each in values]

    def __str__(self) -> str:
        return f"Line {self.number} of {self.path}"


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a file, empty lines left out. Raises HeteroError for what is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeteroError(f"Cannot read {path} ({error}): pass JSON lines in UTF-8 with --data.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise HeteroError(f"Line {number} of {path} is no JSON object: pass one per line.")
        yield Line(path, number, fields)
