"""What a task is: a builder of scripts, and the points at which it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..script import Script

Point = Mapping[str, Any]  # a builder's own parameters, as JSON values


@dataclass(frozen=True)
class Task:
    """`build(language, length, seed, **point)` returns the script of one sample.

    `length` is the document's, in tokens. Builders are pure: the same arguments give the same script.
    """

    name: str
    build: Callable[..., Script]
    points: tuple[Point, ...] = ({},)
    reduced: tuple[Point, ...] = ({},)  # the points of the reduced matrix
    shortest: int = 0  # no samples of shorter documents
