"""A document has exactly the tokens and entries asked for, and says what its entries say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError

ENTRY = re.compile(r" Entry (\w+) (\d+) (\d+)\.")


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    entries = draw(st.integers(1, 60))
    return draw(st.integers(1 + 5 * entries, 2000)), entries


@given(st.integers(0, 2**32), sizes(), st.booleans())
def test_a_document_has_exactly_its_tokens_and_its_text_tells_its_entries(
    language: Language, seed: int, size: tuple[int, int], dense: bool
) -> None:
    tokens, entries = size
    document = language.document(seed, tokens, entries, dense)
    assert len(document.ids) == tokens
    assert document.ids[0] == language.bos
    assert language.encode(document.text) == document.ids[1:]
    told = [(name, (first, second)) for name, first, second in ENTRY.findall(document.text)]
    assert told == list(document.entries.items())
    assert len(document.entries) == entries
    assert not re.search(r"\d|Entry", ENTRY.sub("", document.text))


@given(st.integers(0, 2**32), sizes())
def test_dense_entries_stand_in_one_short_stretch(language: Language, seed: int, size: tuple[int, int]) -> None:
    ids = language.document(seed, *size, dense=True).ids
    places = [at for at, id_ in enumerate(ids) if id_ == language.token[" Entry"]]
    assert places[-1] + 5 - places[0] <= 13 * size[1]


def test_a_dense_stretch_may_stand_anywhere(language: Language) -> None:
    entry = language.token[" Entry"]
    first = [language.document(seed, 1000, 5, dense=True).ids.index(entry) for seed in range(40)]
    assert min(first) < 200
    assert max(first) > 700


def test_spread_entries_reach_every_part_of_the_document(language: Language) -> None:
    entry = language.token[" Entry"]
    places = [
        at / 1000 for seed in range(40) for at, id_ in enumerate(language.document(seed, 1000, 20).ids) if id_ == entry
    ]
    for decile in range(10):
        share = sum(decile <= 10 * place < decile + 1 for place in places) / len(places)
        assert 0.06 < share < 0.14


def test_the_same_seed_gives_the_same_document_and_another_seed_another(language: Language) -> None:
    assert language.document(5, 300, 10) == language.document(5, 300, 10)
    assert language.document(5, 300, 10) != language.document(6, 300, 10)


def test_a_long_document_is_as_long_as_asked_for(language: Language) -> None:
    assert len(language.document(0, 600_000, 3).ids) == 600_000


@pytest.mark.parametrize("size", [(100, 0), (100, -1), (40, 8), (0, 1), (100_000, 901)])
def test_sizes_that_cannot_be_are_refused(language: Language, size: tuple[int, int]) -> None:
    with pytest.raises(HeteroError, match="entries"):
        language.document(0, *size)
    with pytest.raises(HeteroError, match="negative"):
        language.document(-1, 100, 3)
