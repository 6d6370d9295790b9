"""`make chat`: a conversation in English about a long text, with plain SGLang's answers beside ours."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import tiers
from benchmarks.launch import Server
from benchmarks.real.sources import KINDS
from benchmarks.real.tasks import said
from benchmarks.real.texts import HELD_OUT, texts
from benchmarks.real_text import load_tokenizer
from hetero_sglang.errors import ending_the_process

QUESTIONS = (
    "What is this text about?",
    "Which experiment or example does it describe?",
    "Explain one of its ideas in simple words.",
    "Sum up what we said so far in one sentence.",
)


def main() -> None:
    """Serve the model with and without a keep ratio, give both a long text, ask, and say what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat", description=main.__doc__)
    add = parser.add_argument
    add("model", type=Path, help="checkpoint folder with a chat template")
    add("--kind", default="book", choices=list(KINDS), help="of text, as in benchmarks.real_text (default: book)")
    add("--tokens", type=int, default=5000, help="of the text (default: 5000)")
    add("--answer", type=int, default=80, help="tokens of an answer, at most (default: 80)")
    add("--keep-ratio", type=float, default=0.2, help="device KV per token (default: 0.2)")
    given = parser.parse_args()
    with ending_the_process():
        tokenizer = load_tokenizer(given.model)
        (text,) = texts([given.kind], HELD_OUT, tokenizer, given.tokens, 1)
        document = tokenizer.decode(text.ids, skip_special_tokens=True)
        flags: dict[str, Any] = {"kv_policy": "heterocache", "hetero_keep_ratio": given.keep_ratio}
        print(
            f"starting plain SGLang, and --kv-policy heterocache --hetero-keep-ratio {given.keep_ratio} ...", flush=True
        )
        both: dict[str, Any] = {"max_total_tokens": 8 * given.tokens}
        if not torch.cuda.is_available():  # most processors take ten times as long in 16 bits
            both["dtype"] = "float32"
        with Server(given.model, **both) as plain, Server(given.model, **both, **flags) as ours:
            print(f"up; the text is {given.tokens} tokens of {text.name}: {document[:60]!r} ...")
            same = converse(plain, ours, document, given.answer)
            summary(ours.stats(), same)


def converse(plain: Server, ours: Server, document: str, most: int) -> list[int]:
    """Hold the conversation; of each answer the words before it parts from plain SGLang's."""
    messages: list[dict[str, str]] = []
    same = []
    for question in QUESTIONS:
        messages += said(question if messages else f"{document}\n\n{question}")
        print(f"\nuser: {question}\nours: ", end="", flush=True)
        answer = ""
        for piece in streamed(ours, messages, most):
            answer += piece
            print(piece, end="", flush=True)
        full = "".join(streamed(plain, messages, most))
        words = list(zip(answer.split(), full.split(), strict=False))
        same.append(next((at for at, (one, other) in enumerate(words) if one != other), len(words)))
        print(f"\nfull: {'the same' if answer == full else full}")
        messages += [{"role": "assistant", "content": answer}]
    return same


def streamed(server: Server, messages: list[dict[str, str]], most: int) -> Iterator[str]:
    """A greedy answer piece by piece, through OpenAI's client."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": most}
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def summary(stats: dict[str, Any], same: list[int]) -> None:
    """What stayed on the device, what was fetched, and how far answers agree."""
    print(f"\n{tiers(stats)}")
    print(f"rows fetched         {stats['fetched_rows']}, {stats['late_rows']} late")
    print(f"same words           {', '.join(map(str, same))} from the beginning of each answer on")
    print(f"integrity            {stats['integrity']}")


if __name__ == "__main__":
    main()
