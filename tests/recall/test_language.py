"""The language is the one that the model was trained on, and its texts and ids say the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recall import Language
from benchmarks.recall.vocabulary import NAMES, NUMBERS
from hetero_sglang.errors import HeteroError

# Digests of the training data's names, numbers and filler text.
NAMES_SHA = "fc01685d24f5074dc36006da9a7e065e5e1aad8649d178f803b8a2b53ff6d1ce"
NUMBERS_SHA = "7c670a705386cbd78e163c26464501858dfbad0dca29af8b9be8617093f2a59f"
FILLER_SHA = "5180db901a5ac544bfc3e987e04ed2cab9a499c06903381bce830278731883ad"

names_lists = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_names_numbers_and_filler_are_those_the_model_was_trained_on(language: Language) -> None:
    assert sha(" ".join(NAMES)) == NAMES_SHA
    assert sha(" ".join(NUMBERS)) == NUMBERS_SHA
    assert sha(language.decode(language.filler.ids.tolist())) == FILLER_SHA


def test_every_name_and_number_is_one_token_of_its_own(language: Language) -> None:
    ids = [language.encode(" " + word) for word in (*NAMES, *NUMBERS)]
    assert {len(each) for each in ids} == {1}
    assert len({each[0] for each in ids}) == len(NAMES) + len(NUMBERS)


def test_filler_never_names_an_entry(language: Language) -> None:
    words = {language.token[" " + word] for word in ("Entry", *NAMES, *NUMBERS)}
    assert words.isdisjoint(language.filler.ids.tolist())


def test_filler_starts_at_a_sentence_and_has_any_length_asked_for(language: Language) -> None:
    rng = np.random.default_rng()
    for tokens in (0, 1, 7, 500, len(language.filler.ids) + 100):
        ids = language.filler.cut(rng, tokens)
        assert len(ids) == tokens
        assert language.decode(ids[:1]) in ("", " The")


@given(names_lists)
def test_a_question_reads_as_documented_and_its_ids_encode_its_text(language: Language, names: list[str]) -> None:
    question = language.question(names)
    assert question.text == "\nQuestion: " + ", ".join(names) + "?\nAnswer:"
    assert question.ids == language.encode(question.text)
    assert question.names == tuple(names)
    assert [question.stop] == language.encode("\n")


@given(st.integers(0, 2**32), st.integers(1, 20), st.data())
def test_an_answer_reads_as_documented_and_its_ids_encode_its_text(
    language: Language, seed: int, entries: int, data: st.DataObject
) -> None:
    document = language.document(seed, 150, entries)
    names = data.draw(st.lists(st.sampled_from(list(document.entries)), min_size=1, max_size=8, unique=True))
    answer = language.answer(document, names)
    assert answer == "".join(f", {n} {' '.join(document.entries[n])}" for n in names)[1:] + "\n"
    assert language.answer_ids(document, names) == language.encode(answer)
    assert len(language.encode(answer)) == language.question(names).max_answer_tokens


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_ask_picks_different_entries_of_the_document_and_repeats_itself(
    language: Language, seed: int, names: int
) -> None:
    document = language.document(seed, 150, 20)
    question = language.ask(document, seed, names)
    assert len(set(question.names)) == names
    assert set(question.names) <= set(document.entries)
    assert language.ask(document, seed, names) == question


def test_ask_leaves_no_entry_out_over_many_seeds(language: Language) -> None:
    document = language.document(0, 150, 20)
    asked = {name for seed in range(60) for name in language.ask(document, seed).names}
    assert asked == set(document.entries)


def test_what_cannot_be_asked_is_refused(language: Language) -> None:
    document = language.document(0, 100, 3)
    absent = next(name for name in NAMES if name not in document.entries)
    for names in (-1, 0, 4):
        with pytest.raises(HeteroError, match="document's 3 entries"):
            language.ask(document, 0, names)
    with pytest.raises(HeteroError, match="1 to 8"):
        language.ask(language.document(0, 100, 12), 0, 9)
    with pytest.raises(HeteroError, match="no entry"):
        language.answer(document, [absent])
    with pytest.raises(HeteroError, match="1 to 8"):
        language.question([])
    with pytest.raises(HeteroError, match="no name"):
        language.question(["river"])


def test_a_folder_without_or_with_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(HeteroError, match="no tokenizer"):
        Language.load(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(HeteroError, match="splits"):
        Language.load(tmp_path)
