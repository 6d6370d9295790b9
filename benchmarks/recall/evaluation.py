"""Asking a running server many questions and counting the entries it gets right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hetero_sglang.errors import HeteroError

from .client import SPARE_TOKENS, Reply, ask
from .language import Language
from .scoring import Score, score
from .session import Session


@dataclass(frozen=True)
class Exchange:
    """One question, what the server said and what it should have said; document, session and turn from 0."""

    document: int
    session: int
    turn: int
    score: Score
    prompt_tokens: int
    reply: Reply
    expected: str


@dataclass(frozen=True)
class EvaluationResult:
    """All exchanges, in order of document, session and turn."""

    exchanges: tuple[Exchange, ...]

    @property
    def score(self) -> Score:
        """Right and total over all turns."""
        return _total(self.exchanges)

    def per_turn(self) -> list[Score]:
        """Right and total of the first, second, ... turn of all sessions."""
        return [_total(exchanges) for exchanges in self._turns()]

    def meta_per_turn(self, key: str) -> list[list[Any]]:
        """A meta_info value ("cached_tokens", ...; None where absent) of every session, turn by turn."""
        return [[exchange.reply.meta.get(key) for exchange in exchanges] for exchanges in self._turns()]

    def to_json(self) -> dict[str, Any]:
        """The counts, and every exchange that is not all right, as plain values."""
        return {
            "right": self.score.right,
            "total": self.score.total,
            "turns": [{"right": turn.right, "total": turn.total} for turn in self.per_turn()],
            "prompt_tokens": [[exchange.prompt_tokens for exchange in turn] for turn in self._turns()],
            "cached_tokens": self.meta_per_turn("cached_tokens"),
            "misses": [
                {
                    "document": exchange.document,
                    "session": exchange.session,
                    "turn": exchange.turn,
                    "said": exchange.reply.text,
                    "expected": exchange.expected,
                }
                for exchange in self.exchanges
                if exchange.score.right < exchange.score.total
            ],
        }

    def _turns(self) -> list[list[Exchange]]:
        turns = 1 + max((exchange.turn for exchange in self.exchanges), default=-1)
        return [[exchange for exchange in self.exchanges if exchange.turn == turn] for turn in range(turns)]


def evaluate(
    base_url: str,
    language: Language,
    tokens: int,
    documents: int = 4,
    turns: int = 3,
    names: int = 8,
    seed: int = 0,
    concurrency: int = 1,
    *,
    sessions: int = 1,
    entries: int | None = None,
    dense: bool = False,
) -> EvaluationResult:
    """Hold `sessions` sessions of `turns` questions about each of `documents` documents of `tokens` tokens.

    A turn's prompt carries the server's own earlier answers, so all but its question can be in the server's
    prefix cache; sessions about one document share its prefix. `concurrency` sessions run at once. `entries`
    defaults to what fits the training distribution. Raises HeteroError as `ask` and `Language` do.
    """
    if min(documents, turns, sessions, concurrency) < 1:
        raise HeteroError("Documents, turns, sessions and concurrency must each be 1 or more.")
    entries = max(names, default_entries(tokens)) if entries is None else entries

    def hold(task: tuple[int, int]) -> list[Exchange]:
        document, number = task
        session = Session(language.document(seed + document, tokens, entries, dense))
        exchanges = []
        for turn in range(turns):
            question_seed = ((seed + document) * sessions + number) * turns + turn
            question = language.ask(session.document, question_seed, names)
            prompt = session.prompt_ids(question)
            reply = ask(base_url, prompt, question.max_answer_tokens + SPARE_TOKENS)
            session.add(question, reply.text, reply.ids)
            got = score(reply.text, session.document, question.names)
            expected = language.answer(session.document, question.names)
            exchanges.append(Exchange(document, number, turn, got, len(prompt), reply, expected))
        return exchanges

    tasks = [(document, number) for document in range(documents) for number in range(sessions)]
    with ThreadPoolExecutor(concurrency) as pool:
        return EvaluationResult(tuple(exchange for held in pool.map(hold, tasks) for exchange in held))


def default_entries(tokens: int) -> int:
    """Entries for a document of `tokens`: the middle of the training range, 3 to tokens/24 and below 200."""
    return max(3, min(100, tokens // 48))


def _total(exchanges: tuple[Exchange, ...] | list[Exchange]) -> Score:
    return sum((exchange.score for exchange in exchanges), Score(0, 0))
