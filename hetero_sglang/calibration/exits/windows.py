"""Texts cut into windows that a model reads: some to train on, some to calibrate with, some to check the result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from hetero_sglang.calibration.documents import Document
from hetero_sglang.errors import HeteroError

Tokens = tuple[int, ...]
SKIPPED = 16  # a window's first tokens, of which nothing is learned: a server decodes after a prompt
_SHORTEST = 64
_TRAINED = 0.75  # of a text, where no other is held out
_CALIBRATED = 2 / 3  # of what is held out; the rest checks
HELD_OUT = 1 / 3  # most tokens that are held out, as a share of those to train on


@dataclass(frozen=True)
class Windows:
    """Windows of tokens by what they are for; no token is in two."""

    train: tuple[Tokens, ...]
    calibrate: tuple[Tokens, ...]
    check: tuple[Tokens, ...]

    @property
    def all(self) -> tuple[Tokens, ...]:
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
    parts: tuple[list[Tokens], list[Tokens], list[Tokens]] = ([], [], [])
    for text in texts:
        end = len(text.tokens) if held_out else int(_TRAINED * len(text.tokens))
        parts[0].append(text.tokens[:end])
        if not held_out:
            _halve(text.tokens[end:], parts[1], parts[2])
    for text in held_out:
        _halve(text.tokens, parts[1], parts[2])
    rooms = (tokens, int(tokens * HELD_OUT * _CALIBRATED), int(tokens * HELD_OUT * (1 - _CALIBRATED)))
    made = [_windows(part, start, length, room) for part, room in zip(parts, rooms, strict=True)]
    if not all(made):
        raise HeteroError(
            f"the texts are too short: of {sum(len(text.tokens) for text in texts)} tokens, some are for training, "
            "some for thresholds and some to check them; give longer ones."
        )
    return Windows(*made)


def _halve(tokens: Tokens, calibrate: list[Tokens], check: list[Tokens]) -> None:
    middle = int(_CALIBRATED * len(tokens))
    calibrate.append(tokens[:middle])
    check.append(tokens[middle:])


def _windows(parts: Sequence[Tokens], start: Sequence[int], length: int, room: int) -> tuple[Tokens, ...]:
    step = length - len(start)
    cuts = [(*start, *part[at : at + step]) for part in parts for at in range(0, len(part), step)]
    cuts = [each for each in cuts if len(each) >= _SHORTEST]
    count = max(1, min(len(cuts), room // length))
    return tuple(cuts[number * len(cuts) // count] for number in range(count)) if cuts else ()
