"""Accuracy of a trained model, per sample length and kind of answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.recall.mix import KINDS
from benchmarks.recall.mixed_sampler import MixedSampler

from .data import Batches, load
from .loss import targets_of
from .model import RecallModel

_SEED = 1_000_000  # no stage's number: evaluation samples are never training samples


@dataclass(frozen=True)
class Count:
    """Right ones of all."""

    right: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.total + other.total)

    @property
    def share(self) -> float | None:
        """None where there was nothing to count."""
        return self.right / self.total if self.total else None


@dataclass(frozen=True)
class Accuracy:
    """Of one length and kind. Given the right beginning an answer is right throughout exactly if greedy decoding
    gives it, so `answers` says what a server will score."""

    tokens: Count = Count()
    names: Count = Count()
    numbers: Count = Count()
    marks: Count = Count()  # commas and the newline: whether an answer goes on and ends where it should
    answers: Count = Count()

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(*(getattr(self, part) + getattr(other, part) for part in PARTS))


PARTS = tuple(Accuracy.__dataclass_fields__)


@torch.no_grad()
def measure(
    model: RecallModel, sampler: MixedSampler, lengths: Sequence[int], tokens: int, seed: int, batch_tokens: int = 65536
) -> dict[int, dict[str, Accuracy]]:
    """Accuracy by length and kind over about `tokens` tokens of fresh samples per length, on the model's device."""
    device = next(model.parameters()).device
    words = _words(sampler, model.shape.vocabulary).to(device)
    result = {}
    for length in lengths:
        size = max(1, batch_tokens // length)
        data = load(Batches(sampler, length, size, (seed, _SEED)), 0, device)
        result[length] = {kind: Accuracy() for kind in KINDS}
        for _ in range(max(1, tokens // (size * length))):
            ids, kinds = next(data)
            following, kind, _ = targets_of(ids, kinds)
            right = predict(model, ids.long()) == following
            for at, name in enumerate(KINDS, start=1):
                result[length][name] += _tally(at, kind, right, words[following], kind_of_answers(kind))
    return result


def predict(model: RecallModel, ids: torch.Tensor) -> torch.Tensor:
    """The most likely next token after each of `ids` [B, L]: [B * L]."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        return model.lm_head(model(ids)).argmax(-1)


def kind_of_answers(kind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which answer each token is of, counted from 0 (-1: none), [T], and the answers' kinds, their tokens' largest."""
    inside = kind > 0
    begins = inside & ~torch.cat((inside.new_zeros(1), inside[:-1]))
    number = torch.where(inside, begins.long().cumsum(0) - 1, -1)
    kinds = kind.new_zeros(int(begins.sum())).long()
    return number, kinds.scatter_reduce(0, number[inside], kind[inside].long(), "amax")


def _tally(
    at: int, kind: torch.Tensor, right: torch.Tensor, word: torch.Tensor, answers: tuple[torch.Tensor, torch.Tensor]
) -> Accuracy:
    number, kinds = answers
    mine = kind == at
    whole = torch.ones_like(kinds, dtype=torch.bool)
    whole[number[(number >= 0) & ~right]] = False
    masks = [mine, mine & (word == 1), mine & (word == 2), mine & (word == 0)]
    tokens, names, numbers, marks = (_count(right[mask]) for mask in masks)
    return Accuracy(tokens, names, numbers, marks, _count(whole[kinds == at]))


def _count(right: torch.Tensor) -> Count:
    return Count(int(right.sum()), right.numel())


def _words(sampler: MixedSampler, vocabulary: int) -> torch.Tensor:
    """1 for names, 2 for numbers, 0 for everything else: [V]."""
    words = torch.zeros(vocabulary, dtype=torch.uint8)
    words[torch.from_numpy(sampler.table.names).long()] = 1
    words[torch.from_numpy(sampler.table.numbers).long()] = 2
    return words
