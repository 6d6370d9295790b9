"""A question about some names of a document."""

from __future__ import annotations

from dataclasses import dataclass

MAX_NAMES = 8  # the model was trained on no longer question


@dataclass(frozen=True)
class Question:
    r"""What follows a document, or an earlier answer: "\nQuestion: Noka, Lofa?\nAnswer:"."""

    names: tuple[str, ...]
    text: str
    ids: list[int]
    stop: int  # id of the newline that ends its answer

    @property
    def asked(self) -> str:
        """What stands between "Question:" and "?"."""
        return ", ".join(self.names)

    @property
    def max_answer_tokens(self) -> int:
        """Tokens of a full answer: name, two numbers, and a comma or the newline, per entry."""
        return 4 * len(self.names)
