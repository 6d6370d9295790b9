"""Models of every architecture that is served, never seen before: as plain SGLang serves them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_checkpoint

from benchmarks.launch import RECALL, Server
from hetero_sglang.sglang.refusals import MODELS


def scaled(kind: str, original: int = 4096) -> dict[str, Any]:
    """RoPE of a longer context."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": original}
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    return {"rope_parameters": rope | bounds}


# What is served -> its architecture in SGLang, family and changes of its configuration. docs/models.md has this table.
SERVED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Phi-3": ("Phi3ForCausalLM", "phi3", {}),
    "Llama 3.1 and later (RoPE `llama3`)": ("LlamaForCausalLM", "llama", scaled("llama3", 1024)),
    "Llama, RoPE `linear`": ("LlamaForCausalLM", "llama", scaled("linear")),
    "Llama, RoPE `dynamic`": ("LlamaForCausalLM", "llama", scaled("dynamic")),
    "Qwen 2 and 2.5, RoPE `yarn`": ("Qwen2ForCausalLM", "qwen2", scaled("yarn", 1024)),
    "Qwen 3": ("Qwen3ForCausalLM", "qwen3", {}),
    "Qwen 3 (experts)": ("Qwen3MoeForCausalLM", "qwen3_moe", {}),
    "Mistral without a window": ("MistralForCausalLM", "mistral", {}),
    "Gemma 1": ("GemmaForCausalLM", "gemma", {}),
    "Mixtral (experts)": ("MixtralForCausalLM", "mixtral", {}),
    "OLMo 2": ("Olmo2ForCausalLM", "olmo2", {}),
    "Granite": ("GraniteForCausalLM", "granite", {"attention_multiplier": 0.2}),
    "a KV head for each query head": ("LlamaForCausalLM", "llama", {"num_key_value_heads": 4}),
    "a KV head for 16 query heads": ("LlamaForCausalLM", "llama", {"num_attention_heads": 32}),
    "heads of 64 dimensions": ("LlamaForCausalLM", "llama", {"head_dim": 64}),
    "heads of 128 dimensions": ("LlamaForCausalLM", "llama", {"head_dim": 128}),
    "heads of 256 dimensions": ("LlamaForCausalLM", "llama", {"head_dim": 256}),
    "heads of 80 dimensions, on a CPU alone": ("LlamaForCausalLM", "llama", {"head_dim": 80}),
    "heads of 96 dimensions, on a CPU alone": ("LlamaForCausalLM", "llama", {"head_dim": 96}),
}


def table() -> str:
    """Of docs/models.md."""
    rows = [f"| {name} | `{architecture}` |" for name, (architecture, *_) in SERVED.items()]
    return "\n".join(["| model | architecture |", "|---|---|", *rows])


def test_the_documentation_names_what_is_tried_here() -> None:
    assert table() in (Path(__file__).parents[2] / "docs" / "models.md").read_text(), table()
    assert {architecture for architecture, *_ in SERVED.values()} <= set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_a_checkpoint_never_seen_is_served_as_by_plain_sglang(name: str, tmp_path: Path) -> None:
    _, family, changes = SERVED[name]
    model = write_checkpoint(tmp_path / "tiny", family, RECALL, **changes)
    rng, same = random.Random(name), {"dtype": "float32", "max_total_tokens": 8000}
    prompts = [[0, *rng.choices(range(3, 2900), k=length)] for length in (1, 17, 90, 200, 500)]
    long = [0, *rng.choices(range(3, 2900), k=1800)]
    with (
        Server(model, **same) as plain,
        Server(
            model, **same, kv_policy="heterocache", hetero_dense_below=1000, hetero_window=32,
            env={"XDG_CACHE_HOME": str(tmp_path / "cache")}, log=tmp_path / "log",
        ) as ours,
    ):  # fmt: skip
        assert "has no head profile yet" in (tmp_path / "log").read_text()
        for prompt in prompts:
            wanted, found = (each.generate(prompt, 24, ignore_eos=True)["output_ids"] for each in (plain, ours))
            assert found == wanted, len(prompt)
        first, found = (each.generate(long, 24, ignore_eos=True)["output_ids"] for each in (plain, ours))
        stats = ours.stats()
    assert found[0] == first[0] and len(found) == 24  # the prompt is read whole
    assert stats["compressed_requests"] == 1 and stats["fetched_rows"] > 0
