"""`python -m benchmarks.recall`: show a document, a question about it and the right answer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hetero_sglang.errors import HeteroError

from .client import ask
from .evaluation import default_entries
from .language import Language
from .scoring import score

MODEL = Path(__file__).parents[2] / "assets" / "recall-8m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one document, question and answer; with --url also what a running server answers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=main.__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the document (default: 4096)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same document (default: 0)")
    parser.add_argument("--entries", type=int, help="entries (default: tokens/48, at most 100)")
    parser.add_argument("--names", type=int, default=8, help="names in the question (default: 8)")
    parser.add_argument("--dense", action="store_true", help="put all entries into one short stretch")
    parser.add_argument("--tokenizer", default=MODEL, help="folder of the recall model")
    parser.add_argument("--url", help="ask the SGLang server at this address too")
    given = parser.parse_args(arguments)
    try:
        language = Language.load(given.tokenizer)
        entries = max(given.names, default_entries(given.tokens)) if given.entries is None else given.entries
        document = language.document(given.seed, given.tokens, entries, given.dense)
        question = language.ask(document, given.seed, given.names)
        answer = language.answer(document, question.names)
        print(document.text + question.text + answer, end="")
        if given.url:
            reply = ask(given.url, document.ids + question.ids, question.max_answer_tokens)
            print(f"\nServer:{reply.text}\nRight: {score(reply.text, document, question.names)}")
    except HeteroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
