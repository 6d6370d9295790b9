"""Training samples of all kinds: plain entries, chains and restated entries, asked in between and at the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import DENSE_FILLER, ENTRY_TOKENS
from .language import Language
from .long_question import MAX_LONG_NAMES
from .mix import CHAIN, PLAIN, TEXT, UPDATE, Mix
from .question import MAX_NAMES
from .sampler import ANSWER_WEIGHT, MIN_LENGTH, TEXT_WEIGHT
from .statements import lay_out, spread
from .token_table import MAX_COUNT, MIN_COUNT, TokenTable
from .told import Told

_TURNS_SHARE = 0.5  # samples with questions between the entries
_TURN_RATE = 0.15  # questions per entry in those
_TOUCHING_SHARE = 0.5  # dense samples without any filler between entries
_TOKENS_PER_COUNT = 32  # a sample of 256 tokens asks for 8 entries of a chain at most, one of 512 for 16
_NAME_TOKENS = 6  # of a list question and its answer, per name


@dataclass(frozen=True)
class MixedSample:
    """Token ids and what each belongs to."""

    ids: np.ndarray  # [L] int32, the first one bos
    kinds: np.ndarray  # [L] uint8: TEXT, or the kind of the answer

    @property
    def weights(self) -> np.ndarray:
        """Loss weight of predicting each token: 1 in answers, 0.05 elsewhere, 0 for bos. [L] float32"""
        weights = np.where(self.kinds == TEXT, np.float32(TEXT_WEIGHT), np.float32(ANSWER_WEIGHT))
        weights[0] = 0
        return weights


@dataclass(frozen=True)
class MixedSampler:
    """Draws samples; about a million tokens a second on one core."""

    language: Language
    mix: Mix = Mix()
    table: TokenTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", TokenTable.build(self.language))

    def sample(self, rng: np.random.Generator, length: int) -> MixedSample:
        """Return one sample of exactly `length` tokens; its last question or answer may be cut.

        Raises HeteroError for a length under 32.
        """
        if length < MIN_LENGTH:
            raise HeteroError(f"A sample of {length} tokens was asked for: use {MIN_LENGTH} or more.")
        dense = bool(rng.random() < self.mix.dense)
        statements = self.mix.statements(rng, self.mix.size(rng, length, dense))
        count = len(statements)
        # Short samples are half questions, or they would teach little; long ones a sixth.
        tail = max(32, length // 2 if length <= 1024 else length // 6)
        filler = max(0, length - 1 - tail - ENTRY_TOKENS * count)
        gaps = spread(rng, filler, count, _stretch(rng, count) if dense else None)
        body, ends = lay_out(gaps, self.table.rows(statements), self.language.filler.cuts(rng, gaps))
        # Python's own generator: single draws from numpy's are slow.
        page = _Page(self, random.Random(int(rng.integers(2**62))), Told(statements, self.table), length)
        turns = np.flatnonzero(rng.random(count) < _TURN_RATE).tolist() if rng.random() < _TURNS_SHARE else []
        done = 0
        for turn in turns:
            if page.asked > tail // 2:
                break
            page.add(body[done : ends[turn]])
            done = int(ends[turn])
            page.told.tell(turn + 1)
            page.ask(tail // 2)
        page.add(body[done:])
        page.told.tell(count)
        while page.size < length:
            page.ask(length - page.size)
        return page.sample(length)


def _stretch(rng: np.random.Generator, statements: int) -> int:
    """Filler tokens among dense statements."""
    return 0 if rng.random() < _TOUCHING_SHARE else statements * int(rng.integers(1, DENSE_FILLER + 1))


class _Page:
    """A sample being written."""

    def __init__(self, sampler: MixedSampler, chance: random.Random, told: Told, length: int) -> None:
        self.told = told
        self.size, self.asked = 1, 0  # tokens in all, and of questions and answers
        self._language, self._table, self._mix = sampler.language, sampler.table, sampler.mix
        self._chance = chance
        self._longest_chain = min(MAX_COUNT, max(MIN_COUNT, length // _TOKENS_PER_COUNT))
        self._ids = [np.array([sampler.language.bos], dtype=np.int32)]
        self._kinds = [np.zeros(1, dtype=np.uint8)]

    def add(self, ids: np.ndarray, kinds: np.ndarray | None = None) -> None:
        self._ids.append(ids)
        self._kinds.append(np.zeros(len(ids), dtype=np.uint8) if kinds is None else kinds)
        self.size += len(ids)

    def ask(self, room: int) -> None:
        """Ask something about what has been told, and answer; a long list only where `room` tokens suffice."""
        told, mix = self.told, self._mix
        shares = (mix.plain * bool(told.listed), mix.chain * bool(told.links), mix.update * bool(told.updated))
        if not any(shares):
            # A kind that the mix excludes may be told when it is all that a rounded share left.
            shares = (bool(told.listed), bool(told.links), False)
        kind = self._chance.choices((PLAIN, CHAIN, UPDATE), shares)[0] if any(shares) else TEXT
        chain = told.chain(self._chance, self._longest_chain) if kind == CHAIN else []
        names = told.updated if kind == UPDATE else told.listed
        if chain:
            self._follow(chain)
        elif names:
            self._list(names, room)

    def _follow(self, chain: list[int]) -> None:
        """Ask for all of `chain` or its beginning."""
        whole = self._chance.random() < 0.5  # or long chains would be rare
        count = len(chain) if whole else self._chance.randint(MIN_COUNT, len(chain))
        name_ids, table = self._table.names, self._table
        answer: list[int] = []
        for name in chain[:count]:
            answer += [name_ids[name], self.told.links[name][0], table.comma]
        self._exchange([name_ids[chain[0]], table.counts[count]], answer, [CHAIN] * len(answer))

    def _list(self, names: list[int], room: int) -> None:
        """Ask for one or more of `names`."""
        most = min(MAX_LONG_NAMES, room // _NAME_TOKENS, len(names))
        if most > MAX_NAMES and self._chance.random() < self._mix.long:
            count = self._chance.randint(MAX_NAMES + 1, most)
        else:
            count = self._chance.randint(1, min(MAX_NAMES, len(names)))
        name_ids, comma = self._table.names, self._table.comma
        updated = set(self.told.updated)
        question: list[int] = []
        answer: list[int] = []
        kinds: list[int] = []
        for name in self._chance.sample(names, count):
            word = name_ids[name]
            question += [word, comma]
            answer += [word, *self.told.latest[name], comma]
            kinds += [UPDATE if name in updated else PLAIN] * 4
        self._exchange(question[:-1], answer, kinds)

    def _exchange(self, question: list[int], answer: list[int], kinds: list[int]) -> None:
        answer[-1] = self._table.newline
        asked = [*self._language.ask_open, *question, *self._language.ask_close]
        ids = np.array(asked + answer, dtype=np.int32)
        self.add(ids, np.array([TEXT] * len(asked) + kinds, dtype=np.uint8))
        self.asked += len(ids)

    def sample(self, length: int) -> MixedSample:
        return MixedSample(np.concatenate(self._ids)[:length], np.concatenate(self._kinds)[:length])
