"""Training samples: exact length, answers that agree with earlier entries, weight 1 exactly on answers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language, Sampler
from hetero_sglang.errors import HeteroError

seeds = st.integers(0, 2**32)
lengths = st.integers(32, 3000)
PAIR = re.compile(r" (\w+) (\d+) (\d+)(?=[,\n])")


def read(language: Language, ids: np.ndarray) -> list[str]:
    return [language.decode([id_]) for id_ in ids.tolist()]


def answer_flags(words: list[str]) -> list[bool]:
    """Oracle: the words after "Answer:" up to and including the newline."""
    flags, inside = [], False
    for at, word in enumerate(words):
        flags.append(inside)
        inside = word != "\n" if inside else words[at - 1 : at + 1] == ["Answer", ":"]
    return flags


@given(seeds, lengths)
def test_weight_is_one_exactly_on_answers_and_zero_only_on_bos(language: Language, seed: int, length: int) -> None:
    sample = Sampler(language).sample(np.random.default_rng(seed), length)
    assert sample.ids.shape == sample.weights.shape == (length,)
    assert (sample.ids.dtype, sample.weights.dtype) == (np.int64, np.float32)
    assert sample.ids[0] == language.bos
    assert language.bos not in sample.ids[1:]
    flags = np.array(answer_flags(read(language, sample.ids)))
    assert np.array_equal(sample.weights == 1, flags)
    assert sample.weights[0] == 0
    assert np.all(sample.weights[1:][~flags[1:]] == np.float32(0.05))


@given(seeds, lengths)
def test_every_answer_repeats_entries_told_before_it_in_the_order_asked(
    language: Language, seed: int, length: int
) -> None:
    text = language.decode(Sampler(language).sample(np.random.default_rng(seed), length).ids)
    answers = list(re.finditer(r"\nQuestion:([^?]*)\?\nAnswer:([^\n]*\n)", text))
    assert answers or length < 128
    for match in answers:
        entries = {n: (n, a, b) for n, a, b in re.findall(r" Entry (\w+) (\d+) (\d+)\.", text[: match.start()])}
        asked = [name.strip() for name in match[1].split(",")]
        assert 1 <= len(asked) <= 8
        assert len(set(asked)) == len(asked)
        assert PAIR.findall(match[2]) == [entries[name] for name in asked]


@given(seeds, st.integers(200, 2000), st.integers(1, 25))
def test_the_number_of_entries_can_be_fixed(language: Language, seed: int, length: int, entries: int) -> None:
    sample = Sampler(language).sample(np.random.default_rng(seed), length, entries)
    assert np.count_nonzero(sample.ids == language.token[" Entry"]) <= entries
    if 6 * entries * 7 < length:
        assert np.count_nonzero(sample.ids == language.token[" Entry"]) == entries


def test_about_half_of_the_samples_ask_between_entries(language: Language) -> None:
    sampler, rng, between = Sampler(language), np.random.default_rng(), 0
    for _ in range(200):
        words = read(language, sampler.sample(rng, 1024, 40).ids)
        last_entry = max(at for at, word in enumerate(words) if word == " Entry")
        between += "Question" in words[:last_entry]
    assert 60 <= between <= 140


def test_the_number_of_entries_varies_within_its_range(language: Language) -> None:
    sampler, rng = Sampler(language), np.random.default_rng()
    entry = language.token[" Entry"]
    counts = [int(np.count_nonzero(sampler.sample(rng, 480).ids == entry)) for _ in range(300)]
    assert min(counts) >= 3
    assert max(counts) < 480 // 24
    assert len(set(counts)) > 10


def test_the_same_seed_gives_the_same_samples(language: Language) -> None:
    sampler = Sampler(language)
    one, two = (sampler.sample(np.random.default_rng(9), 700) for _ in range(2))
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.weights, two.weights)


def test_samples_that_cannot_be_are_refused(language: Language) -> None:
    rng = np.random.default_rng()
    with pytest.raises(HeteroError, match="32 or more"):
        Sampler(language).sample(rng, 31)
    with pytest.raises(HeteroError, match="entries"):
        Sampler(language).sample(rng, 10_000, 901)
