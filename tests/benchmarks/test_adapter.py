"""The adapter that is measured: what it is taught, and that its merged weights are what SGLang adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import adapter
from benchmarks.launch import RECALL
from benchmarks.recall import Language
from benchmarks.recall.scoring import score


def test_it_is_taught_to_answer_in_the_opposite_order() -> None:
    language = Language.load(RECALL)
    document = language.document(3, 100, 6)
    question = language.ask(document, 3, 4)
    answer = language.decode(adapter.backwards(language, 3, 100, 6, 4)[len(document.ids + question.ids) :])
    assert [part.split()[0] for part in answer.split(",")] == list(question.names[::-1])
    assert score(answer, document, question.names).right == 4


def test_the_merged_checkpoint_has_its_product_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "STEPS", 2)
    files = adapter.Files(tmp_path)
    adapter.train(Language.load(RECALL), files.adapter)
    adapter.merge(files)
    about = json.loads((files.adapter / "adapter_config.json").read_text())
    added = load_file(files.adapter / "adapter_model.safetensors")
    base, merged = (load_file(folder / "model.safetensors") for folder in (RECALL, files.merged))
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed and all(name.split(".")[-2] in about["target_modules"] for name in changed)
    for name in changed:
        a, b = (added[f"base_model.model.{name.removesuffix('weight')}lora_{end}.weight"].float() for end in "AB")
        wanted = base[name].float() + about["lora_alpha"] / about["r"] * b @ a
        assert torch.equal(merged[name], wanted.bfloat16())
