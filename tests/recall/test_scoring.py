"""A score counts the asked names that are followed by exactly their two numbers, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Document, Score, score
from benchmarks.recall.vocabulary import NAMES, NUMBERS
from hetero_sglang.errors import HeteroError

number = st.sampled_from(NUMBERS)
documents = st.dictionaries(st.sampled_from(NAMES), st.tuples(number, number), min_size=2, max_size=10).map(
    lambda entries: Document("", [], entries)
)
NOKA = Document("", [], {"Noka": ("482", "917"), "Lofa": ("405", "546")})


def told(entries: dict[str, tuple[str, str]]) -> str:
    return " " + ", ".join(f"{name} {a} {b}" for name, (a, b) in entries.items()) + "\n"


@given(documents, st.randoms())
def test_the_right_answer_is_all_right_in_any_order(document: Document, random) -> None:
    items = list(document.entries.items())
    random.shuffle(items)
    assert score(told(dict(items)), document, document.entries) == Score(len(items), len(items))


@given(documents, st.data())
def test_wrong_numbers_cost_exactly_their_entries(document: Document, data: st.DataObject) -> None:
    names = list(document.entries)
    wrong = data.draw(st.sets(st.sampled_from(names)))
    said = dict(document.entries)
    for name in wrong:
        numbers = list(said[name])
        at = data.draw(st.integers(0, 1))
        numbers[at] = data.draw(number.filter(lambda n, old=numbers[at]: n != old))
        said[name] = (numbers[0], numbers[1])
    assert score(told(said), document, names) == Score(len(names) - len(wrong), len(names))


@given(documents, st.data())
def test_only_asked_names_count(document: Document, data: st.DataObject) -> None:
    asked = data.draw(st.sets(st.sampled_from(list(document.entries)), min_size=1))
    assert score(told(document.entries), document, asked) == Score(len(asked), len(asked))


@given(st.text(), documents)
def test_any_text_can_be_scored(text: str, document: Document) -> None:
    result = score(text, document, document.entries)
    assert 0 <= result.right <= result.total == len(document.entries)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Noka 482 917, Lofa 405 546", 2),
        ("Noka 482 917 Lofa 405 546", 2),
        ("; Lofa 405 546. Noka   482 917 !", 2),
        (" Noka 482 917, Noka 482 917", 1),
        (" Noka 1 2, Noka 482 917", 0),
        (" Noka 482 917 917, Lofa 405", 0),
        (" Noka 917 482", 0),
        (" Noka 482, 917", 0),
        (" Noka Lofa 405 546", 1),
        (" Nokax 482 917", 0),
        (" Noka 482917", 0),
        (" Noka 482 9175", 0),
        (" 482 917 Noka", 0),
        ("\n Noka 482 917", 0),
        (" Noka 482 917\n Lofa 405 546", 1),
        ("", 0),
    ],
)
def test_malformed_answers_count_only_what_they_clearly_say(text: str, right: int) -> None:
    assert score(text, NOKA, ["Noka", "Lofa"]) == Score(right, 2)


def test_a_name_asked_twice_counts_once() -> None:
    assert score(" Noka 482 917, Noka 482 917", NOKA, ["Noka", "Noka"]) == Score(1, 1)


def test_a_name_the_document_lacks_is_refused() -> None:
    with pytest.raises(HeteroError, match="no entry"):
        score(" Noka 482 917", NOKA, ["Baba"])
