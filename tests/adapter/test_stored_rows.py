"""`--kv-cache-dtype auto` of a quantised checkpoint, as SGLang resolves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
from sglang.srt.model_loader.weight_utils import get_quant_config

from benchmarks.launch import RECALL
from hetero_sglang.sglang.weights import stored_rows

FLOAT_8 = {"type": "float", "num_bits": 8}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}, "ignore": []}


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
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, None),
    ],
)
def test_rows_are_kept_in_8_bits_where_sglang_keeps_them_so(
    about: dict[str, Any] | None, own: dict[str, Any] | None, tmp_path: Path
) -> None:
    config = json.loads((RECALL / "config.json").read_text())
    more = {} if about is None else {"quantization_config": about}
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
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
