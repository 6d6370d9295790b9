"""Texts cut into windows that a model reads: some to train on, some to calibrate with, some to check the result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hetero_sglang.calibration.documents import Document
from hetero_sglang.errors import HeteroError

SKIPPED = 16  # a window's first tokens, of which nothing is learned: a server decodes after a prompt
_SHORTEST = 64
_TRAINED = 0.75  # of a text, where no other is held out
_CALIBRATED = 2 / 3  # of what is held out; the rest checks
HELD_OUT = 1 / 3  # most tokens that are held out, as a share of those to train on


class Window(NamedTuple):
    """Tokens that are read at once, and which of them a model has to say."""

    tokens: tuple[int, ...]
    said: tuple[bool, ...]

    @property
    def asked(self) -> list[int]:
        """Places of tokens behind which a model has to say something; behind the last, if it has said that."""
        last = len(self.tokens) - 1
        return [place for place in range(SKIPPED, last + 1) if self.said[min(place + 1, last)]]

    def cut(self, begin: int, end: int) -> Window:
        """A part of it."""
        return Window(self.tokens[begin:end], self.said[begin:end])


@dataclass(frozen=True)
class Windows:
    """Windows of text by what they are for; no token is in two."""

    train: tuple[Window, ...]
    calibrate: tuple[Window, ...]
    check: tuple[Window, ...]

    @property
    def all(self) -> tuple[Window, ...]:
        """In the order in which they are read."""
        return (*self.train, *self.calibrate, *self.check)

    @property
    def digest(self) -> str:
        """Of all tokens and what they are for."""
        return hashlib.sha256(repr((self.train, self.calibrate, self.check)).encode()).hexdigest()


def cut(
    texts: Sequence[Document], held_out: Sequence[Document], start: Sequence[int], length: int, tokens: int
) -> Windows:
    """Windows of at most `length` tokens, each beginning with `start`; at most `tokens` tokens to train on, evenly from
    all texts, and a third of it held out. Without texts `held_out`, the ends of the others are.

    Raises HeteroError where a part would have no window."""
    parts: tuple[list[Window], list[Window], list[Window]] = ([], [], [])
    for whole in map(_whole, texts):
        end = len(whole.tokens) if held_out else int(_TRAINED * len(whole.tokens))
        parts[0].append(whole.cut(0, end))
        if not held_out:
            _halve(whole.cut(end, len(whole.tokens)), parts[1], parts[2])
    for whole in map(_whole, held_out):
        _halve(whole, parts[1], parts[2])
    rooms = (tokens, int(tokens * HELD_OUT * _CALIBRATED), int(tokens * HELD_OUT * (1 - _CALIBRATED)))
    made = [_windows(part, start, length, room) for part, room in zip(parts, rooms, strict=True)]
    if not all(made):
        count = sum(sum(_whole(text).said) for text in texts)
        raise HeteroError(
            f"the texts are too short: of {count} tokens to say, some are for training, "
            "some for thresholds and some to check them; give longer ones."
        )
    return Windows(*made)


def _whole(text: Document) -> Window:
    return Window(text.tokens, text.said or (True,) * len(text.tokens))


def _halve(whole: Window, calibrate: list[Window], check: list[Window]) -> None:
    middle = int(_CALIBRATED * len(whole.tokens))
    calibrate.append(whole.cut(0, middle))
    check.append(whole.cut(middle, len(whole.tokens)))


def _windows(parts: Sequence[Window], start: Sequence[int], length: int, room: int) -> tuple[Window, ...]:
    step, given = length - len(start), (False,) * len(start)
    pieces = [part.cut(at, at + step) for part in parts for at in range(0, len(part.tokens), step)]
    cuts = [Window((*start, *piece.tokens), (*given, *piece.said)) for piece in pieces]
    cuts = [each for each in cuts if len(each.tokens) >= _SHORTEST and each.asked]
    count = max(1, min(len(cuts), room // length))
    return tuple(cuts[number * len(cuts) // count] for number in range(count)) if cuts else ()
