"""A mixed document says exactly what its entries, updates and links say, in exactly its tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language, chain_document, mixed_document, updated_document
from benchmarks.recall.statements import Statements, spread
from benchmarks.recall.vocabulary import NAMES, NUMBERS
from hetero_sglang.errors import HeteroError

PLAIN = re.compile(r" Entry (\w+) (\d+) (\d+)\.")
LINK = re.compile(r" Entry (\w+) (\d+) ([A-Z]\w+)\.")
seeds = st.integers(0, 2**32)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "entries": draw(st.integers(1, 20)),
        "updated": draw(st.integers(0, 8)),
        "statements": draw(st.integers(2, 4)),
        "chains": draw(st.integers(0, 3)),
        "chain_length": draw(st.integers(2, 20)),
        "gap": draw(st.none() | st.integers(0, 9)),
    }


def rings(links: dict[str, tuple[str, str]]) -> list[int]:
    """Sizes of the rings that the links fall into."""
    left, sizes = dict(links), []
    while left:
        name, size = next(iter(left)), 0
        while name in left:
            name, size = left.pop(name)[1], size + 1
        sizes.append(size)
    return sizes


@given(seeds, contents(), st.integers(0, 300))
def test_its_text_tells_its_entries_updates_and_links(
    language: Language, seed: int, held: dict[str, Any], spare: int
) -> None:
    count = held["entries"] + held["updated"] * held["statements"] + held["chains"] * held["chain_length"]
    document = mixed_document(language, seed, 1 + 5 * count + spare, **held)
    assert len(document.ids) == 1 + 5 * count + spare
    assert document.ids[0] == language.bos
    assert language.encode(document.text) == document.ids[1:]
    told = [(name, (a, b)) for name, a, b in PLAIN.findall(document.text)]
    assert dict(told) == document.entries  # the latest counts
    names = [name for name, _ in told]
    assert {name for name in names if names.count(name) > 1} == document.updated
    assert sorted(map(names.count, document.updated)) == [held["statements"]] * held["updated"]
    assert [(name, (a, b)) for name, a, b in LINK.findall(document.text)] == list(document.links.items())
    assert not set(document.links) & set(document.entries)
    assert rings(dict(document.links)) == [held["chain_length"]] * held["chains"]
    assert not re.search(r"\d|Entry", LINK.sub("", PLAIN.sub("", document.text)))


def test_with_gap_0_statements_touch_and_may_stand_anywhere(language: Language) -> None:
    firsts = []
    for seed in range(30):
        ids = mixed_document(language, seed, 2000, entries=150, chains=1, gap=0).ids
        places = [at for at, id_ in enumerate(ids) if id_ == language.token[" Entry"]]
        assert np.all(np.diff(places) == 5)
        firsts.append(places[0])
    assert min(firsts) < 300
    assert max(firsts) > 800


def test_chains_stand_shuffled(language: Language) -> None:
    follows = 0
    for seed in range(40):
        links = list(chain_document(language, seed, 400).links.items())
        follows += sum(one[1][1] == two[0] for one, two in zip(links, links[1:], strict=False))
    assert follows < 40 * 15 / 4  # one in 16 by chance


def test_short_forms_and_seeds(language: Language) -> None:
    chained = chain_document(language, 3, 500, chains=2, length=7, entries=4)
    assert (len(chained.links), len(chained.entries), chained.updated) == (14, 4, frozenset())
    renewed = updated_document(language, 3, 500, 6, statements=3, entries=4)
    assert (len(renewed.links), len(renewed.entries), len(renewed.updated)) == (0, 10, 6)
    assert renewed == updated_document(language, 3, 500, 6, statements=3, entries=4)
    assert renewed != updated_document(language, 4, 500, 6, statements=3, entries=4)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({}, "0 entries"),
        ({"entries": 901}, "901 entries"),
        ({"chains": 2, "chain_length": 1}, "2 or more"),
        ({"updated": 2, "statements": 1}, "2 or more"),
        ({"entries": -1, "chains": 1}, "0 or more"),
        ({"chains": 13}, "longer document"),
        ({"entries": 3, "gap": -1}, "0 or more"),
    ],
)
def test_contents_that_cannot_be_are_refused(language: Language, held: dict[str, int], said: str) -> None:
    with pytest.raises(HeteroError, match=said):
        mixed_document(language, 0, 1000, **held)
    with pytest.raises(HeteroError, match="negative"):
        mixed_document(language, -1, 1000, entries=3)


@given(seeds, st.integers(0, 30), st.lists(st.integers(2, 9), max_size=4), st.lists(st.integers(2, 4), max_size=4))
def test_drawn_statements_have_different_names_and_first_numbers(
    seed: int, plain: int, ring_sizes: list[int], restated: list[int]
) -> None:
    told = Statements.draw(np.random.default_rng(seed), plain + 1, ring_sizes, restated)
    assert len(told) == plain + 1 + sum(ring_sizes) + sum(restated)
    assert len(np.unique(told.first)) == len(told)
    assert len(np.unique(told.names)) == plain + 1 + sum(ring_sizes) + len(restated)
    assert told.names.max() < len(NAMES)
    assert told.second[~told.links].max() < len(NUMBERS)
    assert set(told.second[told.links]) == set(told.names[told.links])


@given(seeds, st.integers(0, 500), st.integers(1, 40), st.none() | st.integers(0, 600))
def test_gaps_sum_to_the_filler_and_keep_to_the_stretch(
    seed: int, filler: int, statements: int, stretch: int | None
) -> None:
    gaps = spread(np.random.default_rng(seed), filler, statements, stretch)
    assert gaps.shape == (statements + 1,)
    assert gaps.min() >= 0
    assert gaps.sum() == filler
    if stretch is not None:
        assert gaps[1:-1].sum() <= stretch


@given(seeds, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_filler_cuts_are_single_cuts_in_a_row(language: Language, seed: int, tokens: list[int]) -> None:
    filler = language.filler
    row = filler.cuts(np.random.default_rng(seed), np.array(tokens))
    drawn = filler.starts[np.random.default_rng(seed).integers(0, len(filler.starts) - 1, len(tokens))]
    pieces = [filler.ids[s if s + n + 40 < len(filler.ids) else 0 :][:n] for s, n in zip(drawn, tokens, strict=True)]
    assert np.array_equal(row, np.concatenate(pieces))
