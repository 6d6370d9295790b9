"""Chain, update and long questions: spelling in single tokens, right answers, and scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import (
    Language,
    Score,
    Session,
    ask_chain,
    ask_long,
    ask_updated,
    chain_answer,
    chain_answer_ids,
    chain_document,
    chain_entries,
    chain_question,
    long_question,
    mixed_document,
    score,
    score_chain,
    updated_document,
)
from benchmarks.recall.vocabulary import NAMES
from hetero_sglang.errors import HeteroError

seeds = st.integers(0, 2**32)
PAIRS = [("Noka", "482"), ("Lofa", "917"), ("Mire", "230")]


@given(st.sampled_from(NAMES), st.integers(2, 16))
def test_a_chain_question_reads_as_documented_with_one_token_per_word(
    language: Language, name: str, count: int
) -> None:
    question = chain_question(language, name, count)
    assert question.text == f"\nQuestion: {name} {count}?\nAnswer:"
    assert question.ids == language.encode(question.text)
    assert len(question.ids) == len(language.ask_open) + 2 + len(language.ask_close)
    assert (question.names, question.count, question.asked) == ((name,), count, f"{name} {count}")


@given(seeds, st.integers(2, 16), st.integers(0, 4))
def test_the_answer_follows_the_links(language: Language, seed: int, count: int, more: int) -> None:
    document = chain_document(language, seed, 900, chains=2, length=count + more, entries=5)
    question = ask_chain(language, document, seed, count)
    name, expected = question.names[0], []
    for _ in range(count):
        number, following = document.links[name]
        expected.append(f" {name} {number}")
        name = following
    answer = chain_answer(language, document, question)
    assert answer == ",".join(expected) + "\n"
    assert len(set(expected)) == count
    ids = chain_answer_ids(language, document, question)
    assert ids == language.encode(answer)
    assert len(ids) == question.max_answer_tokens
    assert score_chain(answer, chain_entries(document, question.names[0], count)) == Score(count, count)


def test_every_link_may_be_the_start(language: Language) -> None:
    document = chain_document(language, 0, 400, length=6)
    assert {ask_chain(language, document, seed, 6).names[0] for seed in range(60)} == set(document.links)
    assert ask_chain(language, document, 5, 6) == ask_chain(language, document, 5, 6)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Noka 482, Lofa 917, Mire 230\n", 3),
        (" Noka 482 Lofa 917 Mire 230", 3),
        (" Noka 482, Lofa 917, Mire 230, Baba 100", 3),
        (" Noka 482, Lofa 917", 2),
        (" Noka 482, Lofa 918, Mire 230", 2),
        (" Noka 482, Mire 230, Lofa 917", 1),
        (" Lofa 917, Mire 230", 0),
        (" Noka 482 100, Lofa 917, Mire 230", 2),
        (" Noka, Lofa 917, Mire 230", 2),
        (" 482 Noka 482, Lofa 917", 2),
        (" Noka 482\n, Lofa 917, Mire 230", 1),
        ("", 0),
    ],
)
def test_chain_scores_count_entries_right_in_their_place(text: str, right: int) -> None:
    assert score_chain(text, PAIRS) == Score(right, 3)


@given(st.text())
def test_any_text_can_be_scored_as_a_chain(text: str) -> None:
    assert 0 <= score_chain(text, PAIRS).right <= 3


@given(seeds, st.integers(1, 8))
def test_updated_entries_are_answered_with_their_latest_numbers(language: Language, seed: int, names: int) -> None:
    document = updated_document(language, seed, 500, 8, entries=20)
    question = ask_updated(language, document, seed, names)
    assert len(set(question.names)) == names
    assert set(question.names) <= document.updated
    answer = language.answer(document, question.names)
    assert score(answer, document, question.names) == Score(names, names)
    for name in question.names:
        early, late = (document.text.index(f" Entry {name} "), document.text.rindex(f" Entry {name} "))
        assert early < late
        assert document.text[late:].startswith(f" Entry {name} {' '.join(document.entries[name])}.")


def test_long_questions_have_up_to_64_names(language: Language) -> None:
    document = mixed_document(language, 1, 1000, entries=70)
    question = ask_long(language, document, 2)
    assert len(set(question.names)) == 64
    assert question == ask_long(language, document, 2)
    assert question.text == "\nQuestion: " + ", ".join(question.names) + "?\nAnswer:"
    assert question.ids == language.encode(question.text)
    assert len(language.answer_ids(document, question.names)) == question.max_answer_tokens
    assert long_question(language, question.names[:8]) == language.question(question.names[:8])


def test_the_chat_template_turns_chain_turns_into_the_prompt(language: Language, model_path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path)
    document = mixed_document(language, 3, 500, entries=12, chains=1, chain_length=8)
    session = Session(document)
    chained, listed = ask_chain(language, document, 0, 8), language.ask(document, 0, 3)
    session.add(chained, chain_answer(language, document, chained), chain_answer_ids(language, document, chained))
    text = tokenizer.apply_chat_template(session.messages(listed), tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(text, add_special_tokens=False) == session.prompt_ids(listed)
    assert "\nQuestion: " + chained.asked + "?\nAnswer:" in text


def test_what_cannot_be_asked_is_refused(language: Language) -> None:
    document = mixed_document(language, 0, 800, entries=3, updated=2, chains=2, chain_length=5)
    for count in (1, 17):
        with pytest.raises(HeteroError, match="2 to 16"):
            chain_question(language, NAMES[0], count)
    for count in (1, 6):
        with pytest.raises(HeteroError, match="longest chain"):
            ask_chain(language, document, 0, count)
    with pytest.raises(HeteroError, match="no name"):
        chain_question(language, "river", 3)
    with pytest.raises(HeteroError, match="no chain entry"):
        chain_entries(document, next(iter(document.entries)), 2)
    for names in (0, 3):
        with pytest.raises(HeteroError, match="document's 2"):
            ask_updated(language, document, 0, names)
    with pytest.raises(HeteroError, match="document's 5 entries"):
        ask_long(language, document, 0, 6)
    with pytest.raises(HeteroError, match="1 to 64"):
        long_question(language, NAMES[:65])
    with pytest.raises(HeteroError, match="no name"):
        long_question(language, ["river"])
