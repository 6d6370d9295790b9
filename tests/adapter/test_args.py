"""Flags on ServerArgs: they survive every way of passing them, and what cannot work is refused in one sentence."""

from __future__ import annotations

import json
import math
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from settled_args import configuration, settled_args
from sglang.srt.server_args import ServerArgs

from hetero_sglang.config.choices import CHOICES
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import load_profile, save_profile
from hetero_sglang.profile.head_profile import LayerRoles, scale_weights
from hetero_sglang.profile.roles import Role
from hetero_sglang.sglang.args import HeteroServerArgs
from hetero_sglang.sglang.asked import options_of, profile_warning
from hetero_sglang.sglang.refusals import FLAGS, NUMBERS, check_kernels
from hetero_sglang.sglang.version import TESTED, check_version, nearest

RECALL = Path(__file__).parents[2] / "assets" / "recall-8m"
REFUSED = (*FLAGS, *configuration.FLAGS)


def arguments(**flags: Any) -> HeteroServerArgs:
    """Of heterocache by pivots, unless they say otherwise, with defaults settled."""
    plain = (
        {"kv_policy": "heterocache"} if "kv_policy" in flags else {"kv_policy": "heterocache", "hetero_index": "none"}
    )
    return settled_args(model_path=str(flags.pop("model_path", RECALL)), **{**plain, **flags})


def test_values_survive_pickling_and_as_a_dictionary() -> None:
    made = arguments(hetero_keep_ratio=0.6, hetero_sink=3)
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is HeteroServerArgs
    assert configuration.values(again)["hetero_keep_ratio"] == 0.6 and again.hetero_sink == 3


def test_full_differs_from_plain_sglang_in_nothing_but_our_own_fields() -> None:
    # said outright: what the CPU platform would otherwise fill in, for both policies
    said = {"attention_backend": "torch_native", "max_total_tokens": 1000, "max_running_requests": 4, "random_seed": 1}
    said["mem_fraction_static"] = 0.7
    plain = configuration.values(ServerArgs(model_path=str(RECALL), **said))
    full = configuration.values(HeteroServerArgs(model_path=str(RECALL), **said))
    assert {k for k in plain if repr(plain[k]) != repr(full[k])} == set()
    assert {k for k in full if k not in plain} == {k for k in full if k.startswith(("hetero_", "kv_policy"))}


BAD_VALUES = {
    "attn_dp_size": 2,
    "speculative_algorithm": "EAGLE",
    "disaggregation_mode": "prefill",
    "pp_size": 2,
    "dcp_size": 2,
    "attn_cp_size": 2,
    "dllm_algorithm": "LowConfidence",
    "kv_cache_dtype": "fp4_e2m1",
    "kv_canary": "log",
    "cpu_offload_gb": 4,
    "radix_cache_backend": "other",
    "attention_backend": "triton",
    "prefill_attention_backend": "triton",
    "decode_attention_backend": "triton",
}


@pytest.mark.parametrize(("name", "fine", "reason"), REFUSED, ids=[name for name, _, _ in REFUSED])
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
        ({"architectures": ["DbrxForCausalLM"]}, "DbrxForCausalLM is not served"),
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
        ({"hetero_profile": "/no/such/profile.json"}, "/no/such/profile.json does not exist"),
        ({"hetero_profile": str(RECALL)}, "recall-8m is a directory"),
        ({"hetero_keep_ratio": 0.2}, "choose a ratio above"),
        ({"hetero_keep_ratio": 1.2}, "is not in"),
        ({"hetero_window": 3000, "hetero_dense_below": 512}, "--hetero-dense-below to at least"),
        ({"hetero_host_size": 1e6}, "free host memory"),
        ({"hetero_host_size": 0.001, "max_total_tokens": 100000}, "too small for --max-total-tokens 100000"),
        ({"hetero_host_size": 1e-5}, "too small for one compressed request.* need 0.00032 GB"),
        ({"hetero_host_size": 0}, r"0 GB is not within \(0, "),
        ({"hetero_host_size": -1.5}, "-1.5 GB is not within"),
        ({"hetero_drift_threshold": -0.1}, "is not in"),
        ({"kv_policy": "heterocash"}, "is not one of"),
        ({"kv_policy": "quest", "kv_cache_dtype": "fp8_e5m2"}, "quest keeps its index .* fp8_e5m2 would round"),
        ({"hetero_decode_kernel": "flashinfer", "attention_backend": "torch_native"}, "is one for GPUs"),
        ({"hetero_decode_kernel": "triton", "attention_backend": "torch_native"}, "drop it"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(HeteroError, match=words):
        arguments(**flags)


@pytest.mark.parametrize(("name", "kind"), NUMBERS, ids=[name for name, _ in NUMBERS])
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 10**400, -(10**5000), 2.0**31, True, "0.5", [1]],
    ids=["nan", "inf", "-inf", "10^400", "-10^5000", "2^31", "true", "text", "list"],
)
def test_a_number_that_is_none_is_refused_by_the_flags_name(name: str, kind: type, value: Any) -> None:
    with pytest.raises(HeteroError, match=f"^{flag_of(name)} ") as refusal:
        arguments(**{name: value})
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 150


def test_every_number_of_ours_is_checked() -> None:
    hints = {name: hint for name, hint in get_type_hints(HeteroServerArgs).items() if name.startswith("hetero_")}
    numbers = {name: kind for name, hint in hints.items() for kind in (int, float) if kind in (hint, *get_args(hint))}
    assert dict(NUMBERS) == numbers and len(numbers) == 9


def test_a_host_size_limits_the_slots_where_the_user_gave_no_number_of_tokens() -> None:
    """The default for CPUs, 131,072 tokens, is nobody's --max-total-tokens."""
    assert arguments(hetero_host_size=0.01).hetero_host_size == 0.01


def test_a_window_of_one_row_is_refused_as_its_row_is_copied_while_the_next_is_written() -> None:
    with pytest.raises(HeteroError, match="--hetero-window 1 is too small.*at least 2"):
        arguments(hetero_window=1, hetero_dense_below=512)
    assert arguments(hetero_window=2, hetero_dense_below=512).hetero_window == 2


def test_another_attention_backend_than_the_machine_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeteroError, match=r"--attention-backend flashinfer .* \(torch_native\)"):
        arguments(attention_backend="flashinfer")
    monkeypatch.setattr("hetero_sglang.sglang.args._cuda", lambda device: True)
    with pytest.raises(HeteroError, match=r"--attention-backend torch_native .* \(flashinfer\)"):
        arguments(attention_backend="torch_native")


def test_a_profile_of_another_model_is_refused_by_its_name(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, num_hidden_layers=6)
    other = RECALL / "hetero_profile.json"
    with pytest.raises(HeteroError, match=f"{other} is of a model with 8 layers, this model has 6"):
        arguments(model_path=model, hetero_profile=str(other))


def test_a_profile_that_cannot_decide_is_refused_by_its_name(tmp_path: Path) -> None:
    bare = json.loads((RECALL / "hetero_profile.json").read_text())
    del bare["measurements"]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    with pytest.raises(HeteroError, match="bare.json: --hetero-roles ratio"):
        arguments(hetero_profile=str(tmp_path / "bare.json"), hetero_roles="ratio")


def test_a_profile_of_other_weights_is_told_and_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same shape trained otherwise: one tensor differs, and nothing else does."""
    model = checkpoint(tmp_path)
    assert profile_warning(arguments(model_path=model)) is None and not told(caplog)
    weights = bytearray((RECALL / "model.safetensors").read_bytes())
    weights[len(weights) // 2 :] = bytes(len(weights) - len(weights) // 2)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(weights)
    warning = f"{model}/hetero_profile.json was made from other weights than {model}; profile this model."
    made = arguments(model_path=model)
    assert profile_warning(made) == warning and told(caplog) == [warning]
    assert profile_warning(arguments(model_path=model, kv_policy="snapkv")) is None  # its heads are alike


def test_weights_that_cannot_be_compared_are_told_and_left_to_sglang(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(b"short")
    assert "it cannot be told whether" in (profile_warning(arguments(model_path=model)) or "")


def test_a_profile_that_does_not_say_of_which_weights_it_is_gives_no_warning(tmp_path: Path) -> None:
    data = json.loads((RECALL / "hetero_profile.json").read_text())
    del data["provenance"]["fingerprint"]
    (tmp_path / "unsaid.json").write_text(json.dumps(data))
    assert profile_warning(arguments(hetero_profile=str(tmp_path / "unsaid.json"))) is None


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hetero_sglang"]


def test_a_malformed_profile_is_refused_naming_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "hetero-sglang head profile", "roles": [')
    with pytest.raises(HeteroError, match="broken.json"):
        arguments(hetero_profile=str(broken))


PROFILE = str(RECALL / "hetero_profile.json")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"hetero_lora_profile": ["b=" + PROFILE]},
            r"b: no adapter of that name is in --lora-paths \(these are a, c\)",
        ),
        ({"hetero_lora_profile": ["a"]}, "--hetero-lora-profile a is not NAME=FILE"),
        ({"hetero_lora_profile": ["=" + PROFILE]}, "is not NAME=FILE"),
        ({"hetero_lora_profile": ["a=x", "a=y"]}, "a=y names an adapter again"),
        ({"hetero_lora_profile": ["a=/no/such.json"]}, "/no/such.json does not exist"),
        ({"hetero_lora_profile": ["a=OTHER"]}, "OTHER is of a model with 6 layers, this model has 8"),
        ({"hetero_lora_profile": ["a=BARE"]}, "a=.*bare.json: it makes 1 other heads resident than the model's"),
        ({"hetero_lora_profile": ["a=BARE"], "kv_policy": "heterocache"}, "bare.json: it has no key index"),
        ({"hetero_lora_profile": ["a=" + PROFILE], "kv_policy": "snapkv"}, "is not read by --kv-policy snapkv"),
        ({"hetero_lora_profile": ["a=" + PROFILE], "lora_paths": None}, r"\(there are none\)"),
        ({"hetero_lora_profile": ["a=" + PROFILE], "enable_lora": False}, r"\(there are none\)"),
    ],
)
def test_a_profile_of_an_adapter_that_cannot_be_read_is_refused(
    tmp_path: Path, flags: dict[str, Any], words: str
) -> None:
    files = {"OTHER": tmp_path / "other.json", "BARE": tmp_path / "bare.json"}
    bare = replace(load_profile(PROFILE), measurements=None, index=None)
    save_profile(replace(bare, num_layers=6, layers=scale_weights(bare.layers[:6])), files["OTHER"])
    anchor = LayerRoles((Role.ANCHOR, *bare.layers[0].roles[1:]), (1.0, 0.0, 0.0, 0.0), bare.layers[0].pivots)
    save_profile(replace(bare, layers=scale_weights((anchor, *bare.layers[1:]))), files["BARE"])
    for name, file in files.items():
        words = words.replace(name, str(file))
        flags = {
            **flags,
            "hetero_lora_profile": [each.replace(name, str(file)) for each in flags["hetero_lora_profile"]],
        }
    with pytest.raises(HeteroError, match=words) as refusal:
        arguments(**{"lora_paths": ["a=/a", {"lora_name": "c", "lora_path": "/c"}], **flags})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("paths", [["a=/a"], {"a": "/a"}, [{"lora_name": "a", "lora_path": "/a"}]])
def test_an_adapter_s_profile_is_read_however_its_adapter_is_given(paths: Any) -> None:
    made = arguments(lora_paths=paths, hetero_lora_profile=["a=" + PROFILE])
    assert list(options_of(made)[1]["adapters"]) == ["a"]
    assert options_of(arguments(lora_paths=paths))[1]["adapters"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="SGLang keeps them so on a GPU")
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_8_bits_are_refused_where_sglang_refuses_them_on_a_cpu(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "EIGHT_BITS_ON_CPU", True)
    assert arguments(kv_cache_dtype=dtype).kv_cache_dtype == dtype
    monkeypatch.setattr(configuration, "EIGHT_BITS_ON_CPU", False)
    with pytest.raises(
        HeteroError, match=rf"^--kv-cache-dtype {dtype} is one for GPUs .* give --kv-cache-dtype bfloat16"
    ):
        arguments(kv_cache_dtype=dtype)
    assert arguments(kv_cache_dtype="bfloat16").kv_cache_dtype == "bfloat16"


# What the command line makes of arguments, one process for all: an import of SGLang takes seconds.
COMMAND_LINE = """
import contextlib, io, json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang import launch_server
from sglang.srt.server_args import prepare_server_args
said = []
for words in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            launch_server.run_server(prepare_server_args(words))
        except SystemExit as end:
            code = end.code
    said.append([code, out.getvalue(), err.getvalue()])
json.dump(said, sys.stdout)
"""


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


WRONG = {
    **{
        f"--{name.replace('_', '-')}": ("later", f"'later' is not one of {', '.join(CHOICES[name])}.")
        for name in CHOICES
    },
    "--hetero-keep-ratio": ("0.1", "0.1 is not in"),
    "--hetero-window": ("wide", "invalid int value: 'wide'"),
    "--hetero-sink": ("9" * 5000, "invalid int value"),
    "--hetero-host-size": ("nan", "nan is no number"),
    "--hetero-drift-threshold": ("nan", "nan is no number"),
    "--hetero-kep-ratio": ("0.5", "unrecognized arguments"),
}


@pytest.fixture(scope="module")
def command_line() -> dict[str, list]:
    """Exit code, output and error text: of each wrong flag, of a port in use, of `--help`, and of a flag not ours."""
    model = ["--model-path", str(RECALL)]
    policy = ["--kv-policy", "heterocache", "--hetero-index", "none"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        tries = {flag: [*model, *policy, flag, value] for flag, (value, _) in WRONG.items()}
        tries["--port"] = [*model, *policy, "--port", str(server.getsockname()[1])]
        tries |= {"--help": ["--help"], "--tp-size": [*model, "--tp-size", "two"]}
        done = subprocess.run(
            [sys.executable, "-c", COMMAND_LINE],
            input=json.dumps(list(tries.values())),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    return dict(zip(tries, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("flag", WRONG)
def test_what_is_wrong_with_a_flag_of_ours_is_one_sentence_and_exit_code_two(
    command_line: dict[str, list], flag: str
) -> None:
    code, _, said = command_line[flag]
    last = [line for line in said.splitlines() if line][-1]
    assert code == 2 and "usage:" not in said
    assert last.startswith("error: ") and flag in last and WRONG[flag][1] in last and last.endswith(".")


def test_a_port_in_use_ends_the_command_before_anything_is_loaded(command_line: dict[str, list]) -> None:
    code, _, said = command_line["--port"]
    assert code == 2 and "Address already in use" in said.splitlines()[-1]


def test_help_names_every_word_of_every_choice(command_line: dict[str, list]) -> None:
    code, shown, _ = command_line["--help"]
    words = " ".join(shown.split()).replace("- ", "-")  # lines break at hyphens, too
    assert code == 0
    for name, choices in CHOICES.items():
        assert ", ".join(choices) in words[words.index(flag_of(name) + " ", words.index("options:")) :]


def test_what_is_wrong_with_a_flag_of_sglangs_is_said_by_sglang(command_line: dict[str, list]) -> None:
    code, _, said = command_line["--tp-size"]
    assert code == 2 and said.startswith("usage:")


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


def test_an_untested_sglang_is_refused_with_those_that_are_tested_unless_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_version()
    for tested in TESTED:
        check_version(tested)
    with pytest.raises(HeteroError, match=r"0\.5\.99.*0\.5\.17 and 0\.5\.23.*HETERO_ALLOW_UNTESTED=1"):
        check_version("0.5.99")
    monkeypatch.setenv("HETERO_ALLOW_UNTESTED", "1")
    check_version("0.5.99")


@pytest.mark.parametrize(
    ("found", "like"),
    [
        ("0.5.17", "0.5.17"),
        ("0.5.17.post1", "0.5.17"),
        ("0.5.22", "0.5.17"),
        ("0.5.23", "0.5.23"),
        ("0.6.0rc1", "0.5.23"),
        ("0.4.9", "0.5.17"),
    ],
)
def test_an_untested_sglang_that_is_allowed_is_taken_for_the_latest_before_it(found: str, like: str) -> None:
    assert nearest(found) == like


@pytest.mark.parametrize(
    ("capability", "changes", "words"),
    [
        ((9, 0), {}, None),
        ((7, 5), {}, "7.5, only with 8.0"),
        ((8, 6), {"kv_cache_dtype": "fp8_e5m2"}, None),
        ((8, 6), {"kv_cache_dtype": "fp8_e4m3"}, "fp8_e4m3 and compute capability 8.6, only with 8.9"),
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
    args = SimpleNamespace(kv_policy="heterocache", kv_cache_dtype=changes.get("kv_cache_dtype", "auto"))
    if words is None:
        check_kernels(args, config)
        return
    with pytest.raises(HeteroError, match=words):
        check_kernels(args, config)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_word_is_refused_outside_the_command_line_too(name: str) -> None:
    with pytest.raises(HeteroError, match=f"{flag_of(name)} 'later' is not one of {CHOICES[name][0]}"):
        arguments(**{name: "later"})
