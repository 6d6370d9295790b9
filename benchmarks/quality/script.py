"""What one sample sends to a server, and what counts as right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.recall import Score


@dataclass(frozen=True)
class Step:
    """One exchange of a conversation: more context, a question, and its right answer."""

    context: Sequence[int]  # ids that follow the answer before; of a first step, the document with bos
    question: Sequence[int]
    expected: str  # the right answer's line
    answer_tokens: int
    grade: Callable[[str], Score]
    traced: bool = False  # read the server's counters while the answer is generated


@dataclass(frozen=True)
class Script:
    """Conversations about one document; each prompt is all before it and the server's own answers.

    They are held one after the other or, if `together`, the first one alone and then the others at once.
    """

    conversations: Sequence[Sequence[Step]]
    stop: int  # id of the newline that ends every answer
    together: bool = False

    @property
    def digest(self) -> str:
        """Hash of everything sent and expected; changes when a task's code or the language does."""
        told = [
            [[list(s.context), list(s.question), s.expected, s.answer_tokens, s.traced] for s in steps]
            for steps in self.conversations
        ]
        return hashlib.sha256(json.dumps([told, self.stop, self.together], default=int).encode()).hexdigest()[:16]

    @property
    def prompt_tokens(self) -> int:
        """Tokens that must be prefilled, the first conversation's document being cached for the others."""
        document = len(self.conversations[0][0].context)
        asked = sum(len(s.context) + len(s.question) for steps in self.conversations for s in steps)
        return asked - document * (len(self.conversations) - 1)

    @property
    def answer_tokens(self) -> int:
        """Tokens of all right answers."""
        return sum(step.answer_tokens for steps in self.conversations for step in steps)
