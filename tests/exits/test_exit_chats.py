"""Of a chat the assistant's words count, and what ends them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hetero_sglang.calibration.chats import from_chats
from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.errors import HeteroError

TEMPLATE = (
    "{% for m in messages %}< {{ m.role }} > {{ m.content | trim }} <end> \\n {% endfor %}"
    "{% if add_generation_prompt %}< assistant > {% endif %}"
)
CHATS = [
    [
        ("system", "be kind"), ("user", "hello you"), ("assistant", " hello user "),
        ("user", "go"), ("assistant", "gone"),
    ],
    [("user", "hello"), ("assistant", "hello")],
]  # fmt: skip


def checkpoint(template: str | None) -> Checkpoint:
    words = ["be", "kind", "hello", "you", "user", "go", "gone", "<", ">", "<end>", "assistant", "system", "\\n", "?"]
    own = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="?")
    tokenizer.chat_template = template
    return Checkpoint(None, tokenizer, None)  # type: ignore[arg-type]


def written(folder: Path, chats: list[list[tuple[str, str]]]) -> Path:
    path = folder / "chats.jsonl"
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]}) for chat in chats]
    path.write_text("\n\n".join(lines))
    return path


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_replies_are_said_and_the_rest_is_given(template: str | None, tmp_path: Path) -> None:
    opened = checkpoint(template)
    found = from_chats(written(tmp_path, CHATS), opened)
    words = opened.tokenizer.convert_ids_to_tokens(list(found.tokens))
    shown = " ".join(f"[{word}]" if said else word for word, said in zip(words, found.said, strict=True))
    if template is None:
        assert shown == "be kind hello you [hello] [user] go [gone] hello [hello]"
    else:
        assert shown == (
            "< system > be kind <end> \\n < user > hello you <end> \\n < assistant > [hello] [user] [<end>] \\n "
            "< user > go <end> \\n < assistant > [gone] [<end>] \\n "
            "< user > hello <end> \\n < assistant > [hello] [<end>] \\n"
        )


@pytest.mark.parametrize("line", ["hello", "{}", '{"messages": []}', '{"messages": [{"role": "user", "content": 1}]}'])
def test_a_line_that_is_no_chat_is_refused(line: str, tmp_path: Path) -> None:
    path = written(tmp_path, CHATS)
    path.write_text(path.read_text() + "\n" + line)
    with pytest.raises(HeteroError, match=r"line 4 of .* is no chat; write \{\"messages\": "):
        from_chats(path, checkpoint(None))


def test_chats_without_a_reply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeteroError, match="no chat in .* has a reply of the assistant"):
        from_chats(written(tmp_path, [[("user", "hello")]]), checkpoint(TEMPLATE))
