"""What cannot be had with early exit is refused at start, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from settled_args import settled_args
from test_served_weights import NF4, checkpoint
from tiny_adapters import lora_paths
from tiny_exits import write_exits
from tiny_models import write_checkpoint

from benchmarks.launch import RECALL
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang import weights
from hetero_sglang.sglang.early_exit import check
from hetero_sglang.sglang.interface import Targets
from hetero_sglang.sglang.version import installed

targets: Targets = installed("targets")
layer_by_layer = pytest.mark.skipif(not targets.LAYER_BY_LAYER, reason="refused with this SGLang")
OTHER = {  # a value that each flag is refused with
    "pp_size": 2, "disaggregation_mode": "prefill", "dllm_algorithm": "LowConfidence", "speculative_algorithm": "NGRAM",
}  # fmt: skip


def args_of(**flags: Any) -> Any:
    return settled_args(**{"model_path": str(RECALL), "device": "cpu", **flags})


@layer_by_layer
@pytest.mark.parametrize("policy", ["full", "heterocache", "quest"])
def test_branches_of_the_model_are_taken_with_any_policy(tmp_path: Path, policy: str) -> None:
    args = args_of(kv_policy=policy, hetero_early_exit=str(write_exits(tmp_path)))
    assert args.hetero_exit_agreement == 0.99 and args.hetero_exit_kv == "deferred"


@layer_by_layer
@pytest.mark.parametrize("flag", [name for name, *_ in (*check.FLAGS, check.SPECULATION)])
def test_flags_that_early_exit_cannot_be_had_with_are_named(tmp_path: Path, flag: str) -> None:
    path = write_exits(tmp_path)
    with pytest.raises(HeteroError, match=rf"--{flag.replace('_', '-')} .*does not work with --hetero-early-exit"):
        args_of(kv_policy="full", hetero_early_exit=str(path), **{flag: OTHER.get(flag, True)})


@layer_by_layer
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"hetero_exit_agreement": 0.0}, "--hetero-exit-agreement 0.0 is not within"),
        ({"hetero_exit_agreement": 1.5}, "--hetero-exit-agreement 1.5 is not within"),
        ({"hetero_exit_agreement": float("nan")}, "--hetero-exit-agreement nan is no number"),
        ({"hetero_early_exit_max_batch": 0}, "--hetero-early-exit-max-batch 0 is not within 1 to 64"),
        ({"hetero_early_exit_max_batch": 65}, "--hetero-early-exit-max-batch 65 is not within 1 to 64"),
        ({"hetero_exit_kv": "guessed"}, "--hetero-exit-kv 'guessed' is not one of deferred, copied"),
        ({"kv_policy": "heterocache", "hetero_window": 2}, "--hetero-window 2 leaves no room"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(HeteroError, match=words):
        args_of(**{"kv_policy": "full", "hetero_early_exit": str(write_exits(tmp_path)), **flags})


@layer_by_layer
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"kv_policy": "full"}, "--hetero-self-draft works with a --kv-policy but full"),
        ({"speculative_algorithm": "EAGLE"}, "--hetero-self-draft drafts by the first branch"),
        ({"enable_lora": True}, "--hetero-self-draft does not know LoRA adapters"),
        ({"hetero_index": "none"}, "does not work with --kv-policy heterocache as it is set"),
        ({"speculative_num_draft_tokens": 40}, "--speculative-num-draft-tokens 40 is not within"),
    ],
)
def test_a_self_that_cannot_draft_is_refused(tmp_path: Path, flags: dict[str, Any], words: str) -> None:
    exits = str(write_exits(tmp_path))
    with pytest.raises(HeteroError, match=words):
        args_of(**{"kv_policy": "heterocache", "hetero_early_exit": exits, "hetero_self_draft": True, **flags})


@layer_by_layer
def test_branches_of_another_model_are_refused(tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", "llama", RECALL)
    with pytest.raises(HeteroError, match="is of a model of .* and this one has"):
        args_of(kv_policy="full", model_path=str(other), hetero_early_exit=str(write_exits(tmp_path)))
    gemma = write_checkpoint(tmp_path / "gemma", "gemma", RECALL)
    with pytest.raises(HeteroError, match="--hetero-early-exit knows no layers of GemmaForCausalLM"):
        args_of(kv_policy="full", model_path=str(gemma), hetero_early_exit=str(write_exits(tmp_path)))


@layer_by_layer
def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeteroError, match="cannot be read|does not exist|no such file"):
        args_of(kv_policy="full", hetero_early_exit=str(tmp_path / "none.json"))
    path = write_exits(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "confidence": "mood"}))
    with pytest.raises(HeteroError, match="the confidence is 'mood'"):
        args_of(kv_policy="full", hetero_early_exit=str(path))


@layer_by_layer
def test_a_backbone_of_4_bits_is_refused_by_its_name_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "cpu_engine", lambda: True)
    monkeypatch.setattr(weights, "has_amx", lambda: False)
    flags = {"hetero_early_exit": str(write_exits(tmp_path / "exits")), "lora_paths": lora_paths()}
    with pytest.raises(HeteroError, match="is to be served with weights quantised by bitsandbytes, which"):
        args_of(kv_policy="heterocache", model_path=str(checkpoint(tmp_path, NF4)), **flags)


@pytest.mark.skipif(targets.LAYER_BY_LAYER, reason="served with this SGLang")
def test_a_sglang_whose_layers_hand_on_more_is_refused_with_the_one_that_is_served(tmp_path: Path) -> None:
    with pytest.raises(HeteroError, match=r"--hetero-early-exit is not tested with the layers of .*0\.5\.17"):
        args_of(kv_policy="full", hetero_early_exit=str(write_exits(tmp_path)))


@layer_by_layer
def test_a_compiled_prefill_would_take_the_place_of_what_ends_early(tmp_path: Path) -> None:
    args = args_of(kv_policy="full", hetero_early_exit=str(write_exits(tmp_path)))
    prefill = args.cuda_graph_config.prefill
    for backend in ("breakable", "disabled"):
        prefill.backend = backend
        check.after(args)
    prefill.backend = "tc_piecewise"
    with pytest.raises(HeteroError, match="--cuda-graph-backend-prefill tc_piecewise does not work with"):
        check.after(args)
