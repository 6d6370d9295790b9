"""Mixed samples: every answer agrees with what was told before it, and every token's kind is right."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language, MixedSampler
from benchmarks.recall.mix import CHAIN, PLAIN, TEXT, UPDATE, Mix
from hetero_sglang.errors import HeteroError

seeds = st.integers(0, 2**32)
mixes = st.builds(
    Mix, *(st.sampled_from([0.0, 0.3, 1.0]) for _ in "pc"), st.sampled_from([0.1, 1.0]), *[st.floats(0, 1)] * 2
)
ANSWER = re.compile(r"\nQuestion:([^?]*)\?\nAnswer:([^\n]*\n)")
LONG_ENOUGH = 2048


def told_before(text: str) -> tuple[dict[str, list[str]], dict[str, tuple[str, str]]]:
    """All statements of each entry in order, and all links."""
    entries: dict[str, list[str]] = {}
    for name, numbers in re.findall(r" Entry (\w+) (\d+ \d+)\.", text):
        entries.setdefault(name, []).append(numbers)
    links = {name: (a, b) for name, a, b in re.findall(r" Entry (\w+) (\d+) ([A-Z]\w+)\.", text)}
    return entries, links


def right_answer(text: str, question: str) -> tuple[str, list[int]]:
    """Oracle: the answer to the question after `text`, and its tokens' kinds."""
    entries, links = told_before(text)
    if found := re.fullmatch(r" (\w+) (\d+)", question):
        name, said = found[1], []
        for _ in range(int(found[2])):
            number, following = links[name]
            said.append(f" {name} {number}")
            name = following
        return ",".join(said) + "\n", [CHAIN] * 3 * len(said)
    names = [name.strip() for name in question.split(",")]
    assert len(set(names)) == len(names) <= 64
    kinds = [kind for name in names for kind in [UPDATE if len(entries[name]) > 1 else PLAIN] * 4]
    return ",".join(f" {name} {entries[name][-1]}" for name in names) + "\n", kinds


@given(seeds, st.integers(32, 3000), mixes)
def test_every_answer_is_right_where_it_stands_and_its_tokens_are_of_its_kind(
    language: Language, seed: int, length: int, mix: Mix
) -> None:
    sample = MixedSampler(language, mix).sample(np.random.default_rng(seed), length)
    assert sample.ids.shape == sample.kinds.shape == sample.weights.shape == (length,)
    assert sample.ids[0] == language.bos
    assert language.bos not in sample.ids[1:]
    text = language.decode(sample.ids[1:])
    kinds, at = np.zeros(length, dtype=int), 1
    for match in ANSWER.finditer(text):
        said, expected = right_answer(text[: match.start()], match[1])
        assert match[2] == said
        start = 1 + len(language.encode(text[: match.start(2)]))
        kinds[start : start + len(expected)] = expected
        at = start + len(expected)
    assert np.array_equal(sample.kinds[:at], kinds[:at])  # what follows was cut
    cut = language.decode(sample.ids[at:])
    assert cut.count("\n") <= 2
    assert np.all(sample.kinds[at:] == TEXT) or "Answer:" in cut
    assert np.array_equal(sample.weights[1:], np.where(sample.kinds[1:] == TEXT, np.float32(0.05), np.float32(1)))
    assert sample.weights[0] == 0


def answers(language: Language, mix: Mix, length: int, samples: int) -> list[str]:
    sampler, rng = MixedSampler(language, mix), np.random.default_rng(1)
    texts = (language.decode(sampler.sample(rng, length).ids) for _ in range(samples))
    return [match[1] for text in texts for match in ANSWER.finditer(text)]


@pytest.mark.parametrize(("length", "most"), [(64, 2), (256, 8), (LONG_ENOUGH, 16)])
def test_chains_are_short_in_short_samples_and_up_to_16_in_long_ones(
    language: Language, length: int, most: int
) -> None:
    asked = answers(language, Mix(0, 1, 0), length, 150)
    counts = {int(found[1]) for each in asked if (found := re.fullmatch(r" \w+ (\d+)", each))}
    assert min(counts) == 2
    assert max(counts) == most


def test_lists_are_long_where_asked_for(language: Language) -> None:
    sizes = [len(each.split(",")) for each in answers(language, Mix(1, 0, 0, long=0.5), 4 * LONG_ENOUGH, 12)]
    assert max(sizes) > 32
    assert max(len(each.split(",")) for each in answers(language, Mix(1, 0, 0, long=0), LONG_ENOUGH, 12)) == 8


def test_shares_are_those_of_the_questions(language: Language) -> None:
    for mix, kinds in ((Mix(1, 0, 0), {PLAIN}), (Mix(0, 1, 0), {CHAIN}), (Mix(0, 0, 1), {UPDATE})):
        sampler, rng = MixedSampler(language, mix), np.random.default_rng(2)
        # A name may be asked for before it is stated again, which makes it plain.
        found = [np.unique(sampler.sample(rng, 512).kinds[-200:]).tolist() for _ in range(30)]
        assert kinds <= set(sum(found, [])) <= kinds | {TEXT}
    sampler, rng = MixedSampler(language), np.random.default_rng(3)
    counts = sum(np.bincount(sampler.sample(rng, 1024).kinds, minlength=4) for _ in range(200))
    assert np.all(counts[1:] > 0.1 * counts[1:].sum())
    assert counts[CHAIN] == counts[1:].max()


def test_dense_samples_touch_and_about_half_ask_in_between(language: Language) -> None:
    rng, entry = np.random.default_rng(4), language.token[" Entry"]
    dense, spread, between = MixedSampler(language, Mix(dense=1)), MixedSampler(language, Mix(dense=0)), 0
    touching = 0
    for _ in range(100):
        places = np.flatnonzero(dense.sample(rng, 1024).ids == entry)
        touching += np.median(np.diff(places)) == 5
        sample = spread.sample(rng, 1024)
        last = np.flatnonzero(sample.ids == entry)[-1]
        between += sample.kinds[:last].any()
    assert 30 <= touching <= 75
    assert 25 <= between <= 65


def test_the_same_seed_gives_the_same_samples(language: Language) -> None:
    one, two, other = (MixedSampler(language).sample(np.random.default_rng(seed), 700) for seed in (9, 9, 10))
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.kinds, two.kinds)
    assert not np.array_equal(one.ids, other.ids)


def test_what_cannot_be_is_refused(language: Language) -> None:
    with pytest.raises(HeteroError, match="32 or more"):
        MixedSampler(language).sample(np.random.default_rng(), 31)
    for shares in ((0, 0, 0), (1, -1, 1)):
        with pytest.raises(HeteroError, match="none below 0"):
            Mix(*shares)
    with pytest.raises(HeteroError, match="0 to 1"):
        Mix(dense=1.5)
