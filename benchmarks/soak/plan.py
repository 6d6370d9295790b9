"""What a client asks next, and what becomes of it: decided by its seed, before anything is asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.recall import Language
from benchmarks.soak.crowd import OPENING, User

KINDS = {"tiny": 24, "opening": 20, "single": 18, "talk": 12, "long": 1.5}  # weights; of a talk, those that begin
EXACT = (1, 4, 16, 48)  # tokens of answers that go on whatever comes
LONG = 700, 1700  # tokens of filler behind a long prompt's document, from and to
MOST_TURNS, LONGEST_TALK = 5, 800
THINK = 0.1  # seconds between a client's requests, on the mean

Prompt = tuple[list[int], tuple[str, ...]]  # its ids, and the names that it asks for


class Fate(StrEnum):
    """What a client does about its request."""

    STAYS = "stays"
    ABORTS = "aborts"  # after so many seconds
    LEAVES_IN_REQUEST = "leaves in request"  # when such a share of its bytes is sent
    LEAVES_BEFORE = "leaves before the answer"  # after so many seconds
    LEAVES_IN_ANSWER = "leaves in the answer"  # after so many bytes


FATES = {
    Fate.STAYS: 70,
    Fate.ABORTS: 8,
    Fate.LEAVES_IN_REQUEST: 4,
    Fate.LEAVES_BEFORE: 7,
    Fate.LEAVES_IN_ANSWER: 11,
}


@dataclass(frozen=True)
class Plan:
    """One request."""

    kind: str
    ids: list[int]
    names: tuple[str, ...]  # asked for; none: the prompt is no question
    new: int  # tokens of an answer, at most
    exact: bool  # exactly so many
    n: int  # answers
    stream: bool
    fate: Fate
    point: float  # of the fate: seconds, bytes or a share of them
    think: float  # seconds before it

    def body(self, rid: str) -> dict[str, object]:
        """For POST /generate."""
        sampling = {"temperature": 0, "max_new_tokens": self.new, "ignore_eos": self.exact, "n": self.n}
        return {"rid": rid, "input_ids": self.ids, "sampling_params": sampling, "stream": self.stream}


class Planner:
    """One client's requests, one after the other."""

    def __init__(self, user: User, language: Language, seed: int, hurry: float = 1.0) -> None:
        """`hurry`: how much faster than usual a client thinks."""
        self.user, self.language = user, language
        self._rng, self._fill = random.Random(f"{seed} {user.number}"), np.random.default_rng([seed, user.number])
        self._hurry = hurry
        self._talk: list[int] = []
        self._turns = 0  # left of the talk
        own = {"tiny": self._tiny, "opening": self._opening, "single": self._single, "long": self._long}
        self._makers: dict[str, Callable[[], Prompt]] = {**own, "talk": self._turn}

    def next(self) -> Plan:
        """What is asked now."""
        rng = self._rng
        kind = "talk" if self._turns > 0 else rng.choices(list(KINDS), list(KINDS.values()))[0]
        ids, names = self._makers[kind]()
        exact = not names or rng.random() < 0.2
        new = rng.choice(EXACT) if exact else 4 * len(names) + 2
        fate = rng.choices(list(FATES), list(FATES.values()))[0]
        n = 1 if kind == "talk" or rng.random() < 0.85 else rng.randint(2, 4)
        think = rng.expovariate(1 / THINK) / self._hurry
        return Plan(kind, ids, names, new, exact, n, rng.random() < 0.5, fate, self._point(fate), think)

    def answered(self, plan: Plan, ids: list[int]) -> None:
        """A talk goes on from its answer; where none came, as if nothing had been asked."""
        if plan.kind == "talk":
            stop = self.language.token["\n"]
            end = ids.index(stop) + 1 if stop in ids and not plan.exact else len(ids)
            self._talk = plan.ids + ids[:end]

    def _point(self, fate: Fate) -> float:
        rng = self._rng
        if fate is Fate.LEAVES_IN_REQUEST:
            return rng.random()
        if fate is Fate.LEAVES_IN_ANSWER:
            return float(round(10 ** rng.uniform(0, 3.6)))
        return 10 ** rng.uniform(-2.5, 0.7)  # seconds: 3 ms to 5 s

    def _question(self, among: Sequence[str]) -> Prompt:
        names = self._rng.sample(among, min(len(among), self._rng.randint(1, 4)))
        return self.language.question(names).ids, tuple(names)

    def _tiny(self) -> Prompt:
        return [self.language.bos, *self.language.filler.cut(self._fill, self._rng.randint(1, 12))], ()

    def _opening(self) -> Prompt:
        ids, names = self._question(self.user.opening)
        return self.user.document.ids[:OPENING] + ids, names

    def _single(self) -> Prompt:
        ids, names = self._question(list(self.user.document.entries))
        return self.user.document.ids + ids, names

    def _long(self) -> Prompt:
        ids, names = self._question(list(self.user.document.entries))
        filler = self.language.filler.cut(self._fill, self._rng.randint(*LONG))
        return self.user.document.ids + filler + ids, names

    def _turn(self) -> Prompt:
        if self._turns <= 0 or len(self._talk) > LONGEST_TALK:
            self._talk, self._turns = list(self.user.document.ids), self._rng.randint(2, MOST_TURNS)
        self._turns -= 1
        ids, names = self._question(list(self.user.document.entries))
        return self._talk + ids, names
