"""Servers of the 8B shape with random weights: SGLang with FlashInfer, or heterocache at a keep ratio."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.launch import Server

VOCABULARY = 120000  # ids below the special ones
FLAGS: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "grammar_backend": "none",
    "cuda_graph_backend_prefill": "disabled",
    "cuda_graph_max_bs": 64,
    "context_length": 262144,
}


def dummy_server(
    model: Path,
    policy: str,
    profile: str | None,
    log: Path | None = None,
    env: dict[str, str] | None = None,
    **flags: Any,
) -> Server:
    """`policy`: full, or a keep ratio of heterocache, which needs the head `profile` of the shape."""
    chosen: dict[str, Any] = {"kv_policy": "full", "attention_backend": "flashinfer"}
    if policy != "full":
        chosen = {"kv_policy": "heterocache", "hetero_keep_ratio": policy, "hetero_profile": profile}
    return Server(model=model, log=log, env=env, **FLAGS | chosen | flags)


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    """Token ids that share nothing with any other prompt."""
    return [rng.randrange(VOCABULARY) for _ in range(tokens)]
