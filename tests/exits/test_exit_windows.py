"""No token both trains and holds out, and there are no more than were asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.exits.windows import cut
from hetero_sglang.errors import HeteroError

START = (-1,)


def documents(lengths: list[int], first: int = 0) -> list[Document]:
    """Every token another number."""
    made = []
    for number, length in enumerate(lengths):
        made.append(Document(str(number), "", tuple(range(first, first + length))))
        first += length
    return made


@given(
    st.lists(st.integers(2000, 9000), min_size=1, max_size=4),
    st.lists(st.integers(2000, 9000), max_size=2),
    st.integers(64, 300),
    st.integers(1024, 20000),
)
def test_parts_have_no_token_in_common(texts: list[int], others: list[int], length: int, tokens: int) -> None:
    given_ = documents(texts)
    held_out = documents(others, first=10**6)
    windows = cut(given_, held_out, START, length, tokens)
    seen: list[int] = []
    for part, room in ((windows.train, 1.0), (windows.calibrate, 2 / 9), (windows.check, 1 / 9)):
        assert part
        assert sum(len(window.tokens) for window in part) <= max(room * tokens, length)
        for window in part:
            assert window.tokens[:1] == START and 64 <= len(window.tokens) <= length
            mine = window.tokens[1:]
            assert list(mine) == list(range(mine[0], mine[0] + len(mine)))
            assert window.said == (False, *[True] * len(mine)) and window.asked == list(range(16, len(window.tokens)))
            seen += mine
    assert len(seen) == len(set(seen))
    assert windows.all == (*windows.train, *windows.calibrate, *windows.check)
    if others:
        assert all(window.tokens[1] < 10**6 for window in windows.train)
        assert all(window.tokens[1] >= 10**6 for window in (*windows.calibrate, *windows.check))


def test_all_texts_have_their_part_of_the_tokens() -> None:
    windows = cut(documents([40000, 40000]), [], START, 101, 3000)
    first = sum(window.tokens[1] < 40000 for window in windows.train)
    assert 14 <= first <= 16 and len(windows.train) == 29


def test_windows_ask_for_what_a_model_has_to_say() -> None:
    """Behind the token before it; a window in which it says nothing is none."""
    said = tuple(at % 400 in (100, 101, 102, 399) for at in range(40000))
    text = Document("chats", "", tuple(range(40000)), said)
    windows = cut([text], [], START, 201, 30000)
    for window in windows.all:
        assert window.asked and window.said[1:] == tuple(said[token] for token in window.tokens[1:])
        last = window.tokens[-1]
        behind = [window.tokens[place] + 1 for place in window.asked if window.tokens[place] != last]
        assert behind == [token for token in window.tokens[17:] if said[token]]
        assert (len(window.tokens) - 1 in window.asked) == said[last]


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(HeteroError, match="of 500 tokens to say, .* give longer ones"):
        cut(documents([500]), [], START, 128, 1024)
