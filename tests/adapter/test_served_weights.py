"""Quantised weights at a start: refused where SGLang would fail on them, and rows as their checkpoint asks for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from settled_args import settled_args
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
from sglang.srt.model_loader.weight_utils import get_quant_config

from benchmarks.launch import RECALL
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang import own_profile, weights
from hetero_sglang.sglang.weights import check_weights, stored_rows

FLOAT_8 = {"type": "float", "num_bits": 8}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}, "ignore": []}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def checkpoint(folder: Path, about: dict[str, Any] | None) -> Path:
    config = json.loads((RECALL / "config.json").read_text())
    more = {} if about is None else {"quantization_config": about}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder


def arguments(model: Path, **given: Any) -> SimpleNamespace:
    plain = {"model_path": str(model), "quantization": None, "device": None, "load_format": "auto"}
    return SimpleNamespace(**{**plain, **given})


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "cpu_engine", lambda: False)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "cpu_engine", lambda: True)
    monkeypatch.setattr(weights, "has_amx", lambda: False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="SGLang serves them on a GPU")
def test_on_a_cpu_they_are_refused_before_they_are_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_profile, "command", lambda *given: pytest.fail("calibrated"))
    with pytest.raises(HeteroError, match=r"weights quantised by awq, which SGLang does on GPUs .*, or use a GPU\.$"):
        settled_args(model_path=str(checkpoint(tmp_path, AWQ)), kv_policy="heterocache")
    with pytest.raises(HeteroError, match="weights quantised by fp8,"):
        settled_args(model_path=str(RECALL), kv_policy="quest", quantization="fp8")


def test_plain_weights_are_not_refused(on_a_cpu: None, tmp_path: Path) -> None:
    check_weights(arguments(RECALL))
    check_weights(arguments(checkpoint(tmp_path, None)))
    check_weights(arguments(tmp_path / "not-here-yet"))
    check_weights(arguments(RECALL, quantization="unquant"))


def test_a_file_of_gguf_is_quantised(on_a_cpu: None, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(HeteroError, match="quantised by gguf"):
        check_weights(arguments(file))
    with pytest.raises(HeteroError, match=r"is a single file \(GGUF\).*--hetero-profile FILE"):
        own_profile.downloaded(str(file), None)


def test_cpus_with_amx_are_left_to_sglang(on_a_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "has_amx", lambda: True)
    check_weights(arguments(checkpoint(tmp_path, AWQ)))


def test_bitsandbytes_needs_its_package_and_its_loader(
    on_a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path, NF4)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(HeteroError, match="pip install bitsandbytes"):
        check_weights(arguments(model))
    monkeypatch.setattr(weights, "find_spec", lambda name: object())
    with pytest.raises(HeteroError, match="--load-format auto does not read .*; add --load-format bitsandbytes"):
        check_weights(arguments(model))
    with pytest.raises(HeteroError, match="--load-format auto does not read"):
        check_weights(arguments(RECALL, quantization="bitsandbytes"))
    with pytest.raises(HeteroError, match="--quantization bitsandbytes of plain weights fails"):
        check_weights(arguments(RECALL, quantization="bitsandbytes", load_format="bitsandbytes"))
    check_weights(arguments(model, load_format="bitsandbytes"))


@pytest.mark.parametrize(
    ("about", "own"),
    [
        (None, None),
        (FP8, None),
        ({**FP8, "kv_cache_quant_algo": "FP8"}, None),
        (MODELOPT, None),
        ({**MODELOPT, "kv_cache_scheme": FLOAT_8}, None),
        ({**MODELOPT, "kv_cache_scheme": {"type": "int", "num_bits": 8}}, None),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, None),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": None}),
        ({**COMPRESSED, "kv_cache_scheme": FLOAT_8}, None),
        (AWQ, None),
    ],
)
def test_rows_are_kept_in_8_bits_where_sglang_keeps_them_so(
    about: dict[str, Any] | None, own: dict[str, Any] | None, tmp_path: Path
) -> None:
    checkpoint(tmp_path, about)
    if own is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": own}))
    model = torch.nn.Module()
    settled = ModelConfig(str(tmp_path))
    model.quant_config = get_quant_config(settled, LoadConfig(), {}) if settled.quantization else None
    _, dtype = configure_kv_cache_dtype(
        server_args_kv_cache_dtype="auto", model=model, model_dtype=torch.bfloat16, is_draft_worker=False,
        is_dflash=False, speculative_draft_attention_backend="",
    )  # fmt: skip
    assert stored_rows(str(tmp_path)) == ("fp8_e4m3" if dtype == torch.float8_e4m3fn else "auto")
