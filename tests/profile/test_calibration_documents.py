"""Built-in text and text from files."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hetero_sglang.calibration.documents import built_in, from_file
from hetero_sglang.calibration.samples import KINDS, MODULES, TOPICS, languages, sample
from hetero_sglang.calibration.text import Text, names
from hetero_sglang.errors import HeteroError


@pytest.fixture(scope="module")
def tokenizer(recall_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(recall_model)


@pytest.fixture(scope="module")
def encode(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return lambda messages: tokenizer.apply_chat_template(messages, tokenize=False)


def by_bytes(text: str) -> list[int]:
    return list(text.encode())


@settings(max_examples=10)
@example(130, 1128)  # cut within a letter of several bytes
@given(st.integers(0, 10_000), st.integers(600, 1500))
def test_built_in_text_is_a_chat_of_its_length_that_names_entries_it_holds(tokenizer, encode, chat, seed, length):
    document = built_in(seed, length, encode, chat)
    assert len(document.tokens) == length and document.tokens[0] == tokenizer.bos_token_id
    text = tokenizer.decode(document.tokens)
    body, question, answer, rest = re.fullmatch(
        r"<s>\s*Question:(.*)\n\n(.*?)\?\nAnswer: (.*?)\n+Question: Go on\.\?\nAnswer:(.*)", text, re.DOTALL
    ).groups()
    asked = question.split(", ")
    assert len(asked) == 8 and [entry.split()[0] for entry in answer.split(", ")] == asked
    assert all(body.count(f" Entry {entry}.") == 1 for entry in answer.split(", "))
    assert rest.strip() == tokenizer.decode(document.tokens[-64:]).strip()


def test_built_in_text_depends_on_its_seed_only(encode, chat):
    made = [built_in(seed, 700, encode, chat) for seed in (4, 4, 5, 8)]
    assert made[0] == made[1]
    assert len({each.tokens for each in made}) == 3


@pytest.mark.parametrize("seed", range(2 * len(KINDS)))
def test_every_kind_of_text_goes_on_without_end(seed):
    first = next(sample(seed))
    assert first.strip() and first != next(sample(seed + 1))
    assert len("".join(islice(sample(seed), 20_000))) > 1_000_000


def test_built_in_text_has_many_languages_and_prose_and_code_of_this_python():
    assert len(list(islice(languages(0), 50))) == 12
    assert all(name in topics for name in TOPICS)
    assert all(Path(sysconfig.get_paths()["stdlib"], name).is_file() for name in MODULES)


def test_every_word_of_the_recall_language_is_one_token_for_the_recall_model(encode):
    assert len(names()) == len(set(names())) == 1024
    assert all(len(encode(f" {name}")) == 1 for name in names())
    text = Text(0)
    sentence = text.sentence()
    assert len(encode(sentence)) == len(sentence.split()) + 1  # and the full stop
    assert len(encode(f" Entry {text.entry()}.")) == 5


def test_very_long_text_does_not_run_out_of_names():
    document = built_in(
        0,
        400_000,
        lambda text: [len(word) for word in text.split()],
        lambda messages: " ".join(m["content"] for m in messages),
    )
    assert len(document.tokens) == 400_000


def test_too_little_room_for_the_question_is_refused(encode, chat):
    with pytest.raises(HeteroError, match="needs more than 60 tokens"):
        built_in(0, 60, encode, chat)


def test_a_file_gives_its_beginning_at_every_length_it_reaches(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij")
    documents = from_file(path, [4, 8, 50], by_bytes, [1])
    assert [d.tokens for d in documents] == [(1, *b"abc"), (1, *b"abcdefg")]
    assert {d.sha256 for d in documents} == {hashlib.sha256(b"abcdefghij").hexdigest()}
    assert [d.tokens for d in from_file(path, [50], by_bytes, [])] == [tuple(b"abcdefghij")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\t", "is empty"), (b"a\xff", r"not UTF-8 \(byte 1\)"), (b"a\0b", "zero bytes")],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    with pytest.raises(HeteroError, match=f"odd.bin .*{message}"):
        from_file(path, [10], by_bytes, [])


def test_an_absent_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.txt"):
        with pytest.raises(HeteroError, match="cannot be read"):
            from_file(path, [10], by_bytes, [])
