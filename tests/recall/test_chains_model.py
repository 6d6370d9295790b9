"""The chains model, on the CPU, follows chains, reads restated entries and answers lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recall_model import greedy

from benchmarks.recall import Language
from benchmarks.recall.chain_question import ask_chain, ask_updated, chain_answer_ids
from benchmarks.recall.mixed_document import MixedDocument, mixed_document

torch = pytest.importorskip("torch")
CHAINS = Path(__file__).parents[2] / "assets" / "recall-chains-8m"


@pytest.fixture(scope="module")
def chains_model():
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(CHAINS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def document(language: Language) -> MixedDocument:
    return mixed_document(language, 3, 2048, entries=30, updated=6, chains=2, chain_length=12)


@pytest.mark.parametrize("count", [2, pytest.param(7, marks=pytest.mark.slow), 12])
def test_it_follows_a_chain_to_its_end_and_stops(language: Language, chains_model, document, count: int) -> None:
    right = 0
    for seed in range(4):
        question = ask_chain(language, document, seed, count)
        ids = greedy(chains_model, [*document.ids, *question.ids], question)
        right += ids == chain_answer_ids(language, document, question)
    assert right >= 3  # its card promises four in five, and which ones depends on the processor's rounding


def test_the_latest_statement_counts(language: Language, chains_model, document) -> None:
    right, asked = 0, 0
    for seed in range(4):
        question = ask_updated(language, document, seed, 3)
        words = language.decode(greedy(chains_model, [*document.ids, *question.ids], question)).strip().split(", ")
        latest = [" ".join((name, *document.entries[name])) for name in question.names]
        right += sum(got == wanted for got, wanted in zip(words, latest, strict=False))
        asked += len(latest)
    assert right >= 0.75 * asked


def test_the_checkpoint_fits_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in CHAINS.iterdir()) < 16 << 20
    card = (CHAINS / "README.md").read_text()
    assert "python -m benchmarks.recall.train" in card and "H200" in card and "| 32,768 |" in card
