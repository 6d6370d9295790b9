"""Flags on ServerArgs: they survive every way of passing them, and what cannot work is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.server_args import ServerArgs

from hetero_sglang.args import CHOICES, HeteroServerArgs
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.refusals import FLAGS, check_kernels

RECALL = Path(__file__).parents[2] / "assets" / "recall-8m"


def arguments(**flags: Any) -> HeteroServerArgs:
    return HeteroServerArgs(model_path=str(flags.pop("model_path", RECALL)), **{"kv_policy": "heterocache", **flags})


def test_values_survive_pickling_and_asdict() -> None:
    made = arguments(hetero_keep_ratio=0.6, hetero_sink=3)
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is HeteroServerArgs
    assert dataclasses.asdict(again)["hetero_keep_ratio"] == 0.6 and again.hetero_sink == 3


def test_full_differs_from_plain_sglang_in_nothing_but_our_own_fields() -> None:
    # said outright: what the CPU platform would otherwise fill in, for both policies
    said = {"attention_backend": "torch_native", "max_total_tokens": 1000, "max_running_requests": 4, "random_seed": 1}
    said["mem_fraction_static"] = 0.7
    plain = dataclasses.asdict(ServerArgs(model_path=str(RECALL), **said))
    full = dataclasses.asdict(HeteroServerArgs(model_path=str(RECALL), **said))
    assert {k for k in plain if repr(plain[k]) != repr(full[k])} == set()
    assert {k for k in full if k not in plain} == {k for k in full if k.startswith(("hetero_", "kv_policy"))}


BAD_VALUES = {
    "speculative_algorithm": "NGRAM",
    "disaggregation_mode": "prefill",
    "pp_size": 2,
    "dcp_size": 2,
    "attn_cp_size": 2,
    "lora_paths": ["x=y"],
    "dllm_algorithm": "LowConfidence",
    "kv_cache_dtype": "fp8_e4m3",
    "kv_canary": "log",
    "cpu_offload_gb": 4,
    "radix_cache_backend": "other",
    "attention_backend": "triton",
    "prefill_attention_backend": "triton",
    "decode_attention_backend": "triton",
}


@pytest.mark.parametrize(("name", "fine", "reason"), FLAGS, ids=[name for name, _, _ in FLAGS])
def test_every_flag_the_design_cannot_serve_is_refused_by_name(name: str, fine: tuple, reason: str) -> None:
    value = BAD_VALUES.get(name, True)
    assert value not in fine
    with pytest.raises(HeteroError, match="--kv-policy full") as refusal:
        arguments(**{name: value})
    assert reason.split(":")[0] in str(refusal.value)


def checkpoint(folder: Path, **changes: Any) -> Path:
    config = json.loads((RECALL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    for name in ("tokenizer.json", "tokenizer_config.json", "hetero_profile.json", "model.safetensors"):
        (folder / name).symlink_to(RECALL / name)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not served"),
        ({"architectures": ["BertModel"]}, "BertModel is not served"),
        ({"num_hidden_layers": 6}, "layers"),
        ({"num_key_value_heads": 8}, "heads"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 512,
                "max_window_layers": 2,
            },
            "sliding window",
        ),
    ],
)
def test_foreign_models_and_profiles_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = checkpoint(tmp_path, **changes)
    with pytest.raises(HeteroError, match=words):
        arguments(model_path=model, hetero_profile=str(RECALL / "hetero_profile.json"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"hetero_profile": "/no/such/profile.json"}, "/no/such/profile.json"),
        ({"hetero_keep_ratio": 0.2}, "choose a ratio above"),
        ({"hetero_keep_ratio": 1.2}, "is not in"),
        ({"hetero_window": 3000, "hetero_dense_below": 512}, "--hetero-dense-below to at least"),
        ({"hetero_host_size": 1e6}, "free host memory"),
        ({"hetero_host_size": 0.001, "max_total_tokens": 100000}, "too small for --max-total-tokens"),
        ({"hetero_drift_threshold": -0.1}, "is not in"),
        ({"kv_policy": "heterocash"}, "is not one of"),
        ({"hetero_decode_kernel": "flashinfer", "attention_backend": "torch_native"}, "the CUDA engine's"),
        ({"hetero_decode_kernel": "triton", "attention_backend": "torch_native"}, "drop it"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(HeteroError, match=words):
        arguments(**flags)


def test_a_malformed_profile_is_refused_naming_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "hetero-sglang head profile", "roles": [')
    with pytest.raises(HeteroError, match="broken.json"):
        arguments(hetero_profile=str(broken))


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(RECALL), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_refuses_with_one_sentence_and_exit_code_two() -> None:
    done = launch("--kv-policy", "heterocache", "--hetero-keep-ratio", "0.1")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --hetero-keep-ratio 0.1")


def test_a_hook_that_does_not_apply_stops_the_start_and_is_named() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from hetero_sglang.sglang.hooks import install, scheduler_seams

    def hook(*_: Any) -> None: ...

    hook.__module__ = "hetero_sglang.made_up"
    target = "sglang.srt.managers.scheduler.Scheduler.no_such_method"
    try:
        with pytest.raises(HeteroError, match="Scheduler.no_such_method"):
            install([(target, hook, HookType.AFTER)])
    finally:
        HookRegistry._hooks.pop(target, None)
    assert len({t for t, _, _ in scheduler_seams()}) == len(scheduler_seams())


def test_an_untested_sglang_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetero_sglang.sglang.version import check_version

    check_version()
    with pytest.raises(HeteroError, match=r"0\.5\.99.*HETERO_ALLOW_UNTESTED=1"):
        check_version("0.5.99")
    monkeypatch.setenv("HETERO_ALLOW_UNTESTED", "1")
    check_version("0.5.99")


@pytest.mark.parametrize(
    ("capability", "changes", "words"),
    [
        ((9, 0), {}, None),
        ((7, 5), {}, "7.5, only with 8.0"),
        ((9, 0), {"head_dim": 96}, "head size of 96, only with 64 or 128 or 256"),
        ((9, 0), {"dtype": torch.float32}, "float32"),
        ((8, 0), {"num_attention_heads": 64, "kv_heads": 2}, "32 query heads to a KV head, only with at most 16"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused_with_numbers(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], changes: dict[str, Any], words: str | None
) -> None:
    shape = {"head_dim": 128, "num_attention_heads": 32, "kv_heads": 8, "dtype": torch.bfloat16, **changes}
    config = SimpleNamespace(**shape, get_total_num_kv_heads=lambda: shape["kv_heads"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if words is None:
        check_kernels("heterocache", config)
        return
    with pytest.raises(HeteroError, match=words):
        check_kernels("heterocache", config)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_word_is_refused_outside_the_command_line_too(name: str) -> None:
    with pytest.raises(HeteroError, match=f"--{name.replace('_', '-')} 'later' is not one of {CHOICES[name][0]}"):
        arguments(**{name: "later"})
