"""The recall model itself, on the CPU, answers questions about these documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recall import Language, Question, Score, Session, score

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(model_path: Path):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()


def greedy(model, prompt: list[int], question: Question) -> list[int]:
    """Naive greedy decoding with a KV cache, to the newline or a little past where it belongs."""
    ids, step, cache = [], torch.tensor([prompt]), None
    with torch.no_grad():
        while len(ids) < question.max_answer_tokens + 4 and question.stop not in ids:
            out = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids.append(int(out.logits[0, -1].argmax()))
            step, cache = torch.tensor([[ids[-1]]]), out.past_key_values
    return ids


@pytest.mark.parametrize(("tokens", "entries", "turns"), [(1024, 21, 3), (2048, 42, 1)])
def test_it_answers_every_entry_of_every_turn(language: Language, model, tokens: int, entries: int, turns: int) -> None:
    session, total = Session(language.document(11, tokens, entries)), Score(0, 0)
    for turn in range(turns):
        question = language.ask(session.document, turn)
        ids = greedy(model, session.prompt_ids(question), question)
        assert ids == language.answer_ids(session.document, question.names)
        total += score(language.decode(ids), session.document, question.names)
        session.add(question, language.decode(ids), ids)
    assert total == Score(8 * turns, 8 * turns)
