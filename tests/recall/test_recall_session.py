"""Each turn's prompt starts with the one before it and is the same as text, ids and chat messages."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language, Session

seeds = st.integers(0, 2**32)


@given(seeds, st.integers(1, 4), st.booleans())
def test_prompts_grow_by_answer_and_question_and_ids_encode_the_text(
    language: Language, seed: int, turns: int, stop_cut_off: bool
) -> None:
    document = language.document(seed, 200, 12)
    session, before = Session(document), list(document.ids)
    for turn in range(turns):
        question = language.ask(document, seed + turn, 3)
        prompt = session.prompt_ids(question)
        assert prompt == before + question.ids
        assert prompt[1:] == language.encode(session.prompt_text(question))
        ids = language.answer_ids(document, question.names)
        text = language.decode(ids)
        session.add(question, text[:-1], ids[:-1] if stop_cut_off else ids)
        before = prompt + ids
    assert document.ids == language.document(seed, 200, 12).ids


def test_a_wrong_or_empty_answer_is_kept_as_it_was_said(language: Language) -> None:
    document = language.document(0, 200, 12)
    first, second = language.ask(document, 0, 2), language.ask(document, 1, 2)
    session = Session(document)
    session.add(first, "", [])
    assert session.prompt_ids(second) == document.ids + first.ids + [first.stop] + second.ids
    assert session.prompt_text(second) == document.text + first.text + "\n" + second.text


def test_the_chat_template_turns_the_messages_into_the_prompt(language: Language, model_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path)
    document = language.document(3, 300, 12)
    session = Session(document)
    for turn in range(3):
        question = language.ask(document, turn, 3)
        text = tokenizer.apply_chat_template(session.messages(question), tokenize=False, add_generation_prompt=True)
        assert tokenizer.encode(text, add_special_tokens=False) == session.prompt_ids(question)
        ids = language.answer_ids(document, question.names)
        session.add(question, language.decode(ids), ids)
