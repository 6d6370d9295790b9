"""What conversations are made of: random tokens, or entries that a recall model looks up."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.recall import Document, Language, Question
from benchmarks.recall.scoring import score

from .load import Load

Checked = tuple[int, int]  # what is right of an answer, of how much


class Content(ABC):
    """Token ids, the same for the same load."""

    def __init__(self, load: Load) -> None:
        self.load = load

    @abstractmethod
    def opening(self, document: int) -> list[int]:
        """What all conversations begin with, and the document."""

    @abstractmethod
    def message(self, document: int, client: int, number: int) -> list[int]:
        """A user's."""

    def most(self, document: int, client: int, number: int, output: int) -> int:
        """Tokens of the answer, at most."""
        return output

    def check(self, document: int, client: int, number: int, answer: Sequence[int]) -> Checked | None:
        """How much of a whole answer is right; None where there is nothing to be right about."""
        return None


class RandomTokens(Content):
    """Nothing repeats, as nothing in `bench_serving`'s random ids does."""

    def __init__(self, load: Load, vocabulary: int = 30_000, first: int = 100) -> None:
        super().__init__(load)
        self.range = first, vocabulary

    @cache  # noqa: B019 - lives as long as the run
    def opening(self, document: int) -> list[int]:
        return self._some("system", self.load.system_length) + self._some(document, self.load.opening_length(document))

    def message(self, document: int, client: int, number: int) -> list[int]:
        return self._some((client, number), self.load.request_length)

    def _some(self, name: object, count: int) -> list[int]:
        rng = random.Random(f"{self.load.seed} {name}")
        return [rng.randrange(*self.range) for _ in range(count)]


class Recall(Content):
    """Documents of entries and questions for some of them, in a recall model's language: answers can be checked, so
    that speed is not bought with wrong ones. A message is as long as its question, an answer as its entries."""

    def __init__(self, load: Load, model: Path, names: int = 3) -> None:
        super().__init__(load)
        self.language, self.names = Language.load(model), names

    @cache  # noqa: B019 - lives as long as the run
    def _document(self, document: int) -> Document:
        length = self.load.opening_length(document)
        seed = 1000 * self.load.seed + document % 1000  # of short chats, from 999 down
        return self.language.document(seed, length, max(self.names, length // 100))

    def _question(self, document: int, client: int, number: int) -> Question:
        return self.language.ask(self._document(document), 1000 * client + number, self.names)

    def opening(self, document: int) -> list[int]:
        return list(self._document(document).ids)

    def message(self, document: int, client: int, number: int) -> list[int]:
        return list(self._question(document, client, number).ids)

    def most(self, document: int, client: int, number: int, output: int) -> int:
        return self._question(document, client, number).max_answer_tokens

    def check(self, document: int, client: int, number: int, answer: Sequence[int]) -> Checked | None:
        names = self._question(document, client, number).names
        got = score(self.language.decode(list(answer)), self._document(document), names)
        return got.right, got.total
