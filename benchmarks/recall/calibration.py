"""`python -m benchmarks.recall.calibration DIR`: texts for `hetero-sglang profile --text`, ending in questions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from .chain_question import ask_chain
from .language import Language
from .mixed_document import mixed_document
from .token_table import MAX_COUNT

TOKENIZER = Path(__file__).parents[2] / "assets" / "recall-chains-8m"
_GAPS = (None, 0, None, 4)  # filler between statements: spread out, none, spread out, a little


def text(language: Language, seed: int, tokens: int) -> str:
    """A document of about `tokens` tokens with entries, restated entries and two chains, and a question without answer.

    One in three asks for eight entries, the others for a chain of 16.
    """
    rng = np.random.default_rng([5, seed])
    document = mixed_document(
        language, 100 + seed, tokens, entries=60, updated=10, chains=2, chain_length=MAX_COUNT, gap=_GAPS[seed % 4]
    )
    if seed % 3:
        return document.text + ask_chain(language, document, int(rng.integers(1000)), MAX_COUNT).text
    return document.text + language.ask(document, int(rng.integers(1000))).text


def main() -> None:
    """Write one UTF-8 file per seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall.calibration", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=3072)
    given = parser.parse_args()
    language = Language.load(TOKENIZER)
    given.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(given.texts):
        (given.folder / f"{seed:03d}.txt").write_text(text(language, seed, given.tokens), encoding="utf-8")
    print(f"wrote {given.texts} texts to {given.folder}")


if __name__ == "__main__":
    main()
