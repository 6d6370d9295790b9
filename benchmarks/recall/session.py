"""A session: several questions in turn about one document, each prompt starting with the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .document import Document
from .question import Question


@dataclass(frozen=True)
class Turn:
    """A question and the answer it was given, right or wrong, closed by its newline."""

    question: Question
    answer_text: str
    answer_ids: list[int]


@dataclass
class Session:
    """The conversation so far about one document."""

    document: Document
    turns: list[Turn] = field(default_factory=list)

    def add(self, question: Question, answer_text: str, answer_ids: Sequence[int]) -> None:
        """Close a turn; the newline that a server cut off as a stop string is put back."""
        text, ids = answer_text, list(answer_ids)
        if not text.endswith("\n"):
            text += "\n"
        if not ids or ids[-1] != question.stop:
            ids.append(question.stop)
        self.turns.append(Turn(question, text, ids))

    def prompt_ids(self, question: Question) -> list[int]:
        """Ids to send for `question`: document, earlier turns, question."""
        ids = list(self.document.ids)
        for turn in self.turns:
            ids += [*turn.question.ids, *turn.answer_ids]
        return ids + question.ids

    def prompt_text(self, question: Question) -> str:
        """The same prompt as text, without bos."""
        past = (turn.question.text + turn.answer_text for turn in self.turns)
        return "".join([self.document.text, *past, question.text])

    def messages(self, question: Question) -> list[dict[str, str]]:
        """The same prompt as chat messages: the model's chat template gives back its ids, bos included."""
        chat = [{"role": "system", "content": self.document.text}]
        for turn in self.turns:
            chat.append({"role": "user", "content": turn.question.asked})
            chat.append({"role": "assistant", "content": turn.answer_text.strip()})
        chat.append({"role": "user", "content": question.asked})
        return chat
