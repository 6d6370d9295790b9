"""Servers of the 8B shape with random weights: SGLang with FlashInfer, or heterocache at a keep ratio."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes
from benchmarks.launch import Server
from hetero_sglang.config import development
from hetero_sglang.config.layout import HeadLayout, build_layout
from hetero_sglang.config.settings import HOT_PAGE, Settings
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.files import load_profile, save_profile
from hetero_sglang.profile.index_plan import IndexPlan
from hetero_sglang.sizing.typical import RUNS_SHARES, TURNS, WEIGHTS, spread

VOCABULARY = 120000  # ids below the special ones
FLAGS: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "grammar_backend": "none",
    "cuda_graph_backend_prefill": "disabled",
    "cuda_graph_max_bs": 64,
    "context_length": 262144,
}


def add_profile_option(parser: argparse.ArgumentParser) -> None:
    """--profile."""
    parser.add_argument("--profile", help="head profile of Llama-3.1-8B (required for heterocache)")


def add_policies_option(parser: argparse.ArgumentParser, ratio: str = "0.25") -> None:
    """--policies and --profile."""
    parser.add_argument("--policies", nargs="+", default=["full", ratio], help="full, or a keep ratio of heterocache")
    add_profile_option(parser)


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """--index-turns, --index-runs and --index-weights."""
    parser.add_argument(
        "--index-turns", nargs=4, type=float, default=TURNS, metavar=("NONE", "ONE", "TWO", "FOUR"),
        help="share of the heads that have no key index, and of the layers whose heads find rows in every step, every "
        "second, every fourth",
    )  # fmt: skip
    parser.add_argument(
        "--index-runs", nargs=3, type=float, default=RUNS_SHARES, metavar=("ONE", "FOUR", "EIGHT"),
        help="share of the layers whose rows come one by one, in runs of 4, of 8: the longer, the more seldom",
    )  # fmt: skip
    parser.add_argument(
        "--index-weights", nargs="+", type=float, default=WEIGHTS, metavar="W",
        help="quantiles of the heads' shares of the rows, least to most; 1: all alike",
    )  # fmt: skip


def chosen_policies(given: argparse.Namespace) -> list[str]:
    """--policies; SystemExit, before any server starts, when one of them lacks its profile."""
    if any(policy != "full" for policy in given.policies):
        profile_path(given.profile)
    return given.policies


def profile_path(given: str | None) -> str:
    """SystemExit when no profile was given."""
    if given is None:
        raise SystemExit("heterocache needs --profile, the head profile of Llama-3.1-8B.")
    return given


def layout_of(policy: str, profile: str | None) -> HeadLayout:
    """Resident and compressed heads by pivots, at the keep ratio that `policy` is."""
    return build_layout(load_profile(profile_path(profile)), float(policy))


def dummy_server(
    model: Path,
    policy: str,
    profile: str | None,
    log: Path | None = None,
    env: dict[str, str] | None = None,
    **flags: Any,
) -> Server:
    """`policy`: full, or a keep ratio of heterocache, which needs the head `profile` of the shape.

    By pivots, as in the paper, whatever else the profile has: `hetero_index` asks for another way.
    """
    chosen: dict[str, Any] = {"kv_policy": "full", "attention_backend": "flashinfer"}
    if policy != "full":
        chosen = {"kv_policy": "heterocache", "hetero_keep_ratio": policy, "hetero_profile": profile_path(profile)}
        chosen["hetero_index"] = "none"
    return Server(model=model, log=log, env=env, **FLAGS | chosen | flags)


def index_profile(
    folder: Path, turns: Sequence[float] = (0, 1, 0, 0), runs: Sequence[float] = (1, 0, 0),
    weights: Sequence[float] = (1,),
) -> Path:  # fmt: skip
    """A head profile of the shape, with key indexes of random directions, 80 bits a token; `turns`: the share of heads
    that have none, and of layers whose heads find rows in every step, every second, every fourth; `runs`: of layers
    whose rows come one by one, by 4, by 8, the longest in layers that find some most seldom; `weights`: quantiles of
    heads' shares of the rows."""
    names = ("num_hidden_layers", "num_key_value_heads", "head_dim", "num_attention_heads")
    layers, kv_heads, dim, query_heads = (int(str(shapes.LLAMA_8B[name])) for name in names)
    profile, rng = alike(layers, kv_heads, query_heads, dim), np.random.default_rng(0)
    fields = ((8, 4), (24, 2))
    encode = rng.normal(size=(layers, kv_heads, dim, 32)).astype(np.float32) / dim**0.5
    levels = np.concatenate([np.full(count, 2.0**bits - 1) for count, bits in fields])
    offset = np.broadcast_to(-levels / 2, (layers, kv_heads, 32)).astype(np.float32)
    path = folder / "index_profile.json"
    # Random weights, of norms too, lie within 0.001: queries and keys are about 2e-5. So codes use their bits, and
    # logits have a spread of 1.7: with every other token heads want other rows.
    run, every, weight = spread(layers, kv_heads, rng, turns, runs, weights)
    index = IndexPlan(fields, 7.8e3 * encode * levels, offset, 1.2e5 * encode, run, every, weight)
    save_profile(replace(profile, index=index), path)
    return path


def rows_at_once(profile: str | Path, rows: float) -> int:
    """What may come to a head that looks for rows, in whole runs, so that to all heads come `rows` a step at least on
    the mean."""
    index = load_profile(profile).index
    assert index is not None
    every, run = np.maximum(index.every, 1), index.run[:, None]
    for most in range(Settings.most_swaps):
        if (most // run * run / every * index.probed).mean() >= rows:
            return most
    raise SystemExit(
        f"{rows} rows a head and step cannot come where {index.in_a_step:g} heads look for some in a step."
    )


def changed_rows(rows: int | Path) -> dict[str, str]:
    """Environment of a server where at most so many rows come to a head that looks for some; or a file with it."""
    return {development.ALLOWED: "1", development.CHANGED_ROWS: str(rows)}


def forced_rate(rate: float | Path) -> dict[str, str]:
    """Environment of a server whose every look refills this share of the satellites; or a file with the share."""
    return {development.ALLOWED: "1", development.FETCH_RATE: str(rate)}


def whole_slots(layout: HeadLayout | None, batch: int, tokens: int) -> int:
    """Token slots of a server that holds `batch` requests of `tokens` tokens with every row in hot pages; None: dense.

    A twentieth more, for what SGLang keeps free.
    """
    slots = batch * (tokens + HOT_PAGE)
    if layout is not None and layout.num_compressed:
        rows = slots * layout.num_compressed  # each head's last page is half empty
        slots = max(slots, math.ceil(rows / sum(layout.fractions)))
    return math.ceil(1.05 * slots)


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    """Token ids that share nothing with any other prompt."""
    return [rng.randrange(VOCABULARY) for _ in range(tokens)]
