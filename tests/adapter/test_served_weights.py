"""Quantised weights at a start: refused where SGLang would fail on them, and rows as their checkpoint asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from settled_args import configuration, settled_args

from benchmarks.launch import RECALL
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang import own_profile, pool, weights
from hetero_sglang.sglang.args import HeteroServerArgs
from hetero_sglang.sglang.asked import item_bytes, options_of
from hetero_sglang.sglang.version import TESTED, release
from hetero_sglang.sglang.weights import check_weights, described, stored_rows

FLOAT_8 = {"type": "float", "num_bits": 8}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}, "ignore": []}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def checkpoint(folder: Path, about: dict[str, Any] | None, own: dict[str, Any] | None = None) -> Path:
    """`own`: what stands in a file of its own."""
    config = json.loads((RECALL / "config.json").read_text())
    more = {} if about is None else {"quantization_config": about}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    if own is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": own}))
    return folder


def arguments(model: Path, **given: Any) -> SimpleNamespace:
    plain = {"model_path": str(model), "quantization": None, "device": None, "load_format": "auto", "revision": None}
    return SimpleNamespace(**{**plain, "trust_remote_code": False, **given})


def check(model: Path, **given: Any) -> None:
    """As a start does."""
    asked = arguments(model, **given)
    check_weights(asked, described(asked))


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
    check(RECALL)
    check(checkpoint(tmp_path, None))
    check(tmp_path / "not-here-yet")
    check(RECALL, quantization="unquant")


def test_a_file_of_gguf_is_quantised(on_a_cpu: None, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(HeteroError, match="quantised by gguf"):
        check(file)
    with pytest.raises(HeteroError, match=r"is a single file \(GGUF\).*--hetero-profile FILE"):
        own_profile.downloaded(str(file), None)


def test_cpus_with_amx_are_left_to_sglang(on_a_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "has_amx", lambda: True)
    check(checkpoint(tmp_path, AWQ))


def test_bitsandbytes_needs_its_package_and_its_loader(
    on_a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path, NF4)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(HeteroError, match="pip install bitsandbytes"):
        check(model)
    monkeypatch.setattr(weights, "find_spec", lambda name: object())
    with pytest.raises(HeteroError, match="--load-format auto does not read .*; add --load-format bitsandbytes"):
        check(model)
    with pytest.raises(HeteroError, match="--load-format auto does not read"):
        check(RECALL, quantization="bitsandbytes")
    with pytest.raises(HeteroError, match="--quantization bitsandbytes of plain weights fails"):
        check(RECALL, quantization="bitsandbytes", load_format="bitsandbytes")
    check(model, load_format="bitsandbytes")


EVERY, NEWER = TESTED, TESTED[1:]


@pytest.mark.parametrize(
    ("about", "own", "versions"),
    [
        (None, None, ()),
        (FP8, None, ()),
        ({**FP8, "kv_cache_quant_algo": "FP8"}, None, NEWER),
        (MODELOPT, None, ()),
        ({**MODELOPT, "kv_cache_scheme": FLOAT_8}, None, EVERY),
        ({**MODELOPT, "kv_cache_scheme": {"type": "int", "num_bits": 8}}, None, ()),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, None, EVERY),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, EVERY),
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": None}, ()),
        ({**COMPRESSED, "kv_cache_scheme": {**FLOAT_8, "strategy": "tensor"}}, None, NEWER),
        ({**COMPRESSED, "kv_cache_scheme": {**FLOAT_8, "strategy": "channel"}}, None, ()),
        (AWQ, None, ()),
    ],
)
def test_rows_are_kept_in_8_bits_where_this_version_of_sglang_keeps_them_so(
    about: dict[str, Any] | None, own: dict[str, Any] | None, versions: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint(tmp_path, about, own)
    wanted = "fp8_e4m3" if release() in versions else "auto"
    assert stored_rows(tmp_path) == wanted
    assert stored_rows(tmp_path, arguments(tmp_path)) == wanted
    assert stored_rows(tmp_path, arguments(tmp_path, quantization="unquant")) == wanted, "which SGLang passes over"


def test_a_checkpoint_that_says_nonsense_is_refused_in_one_sentence(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"quant_method": "no-such-method"})
    with pytest.raises(HeteroError, match=r"cannot read how the weights of .* are quantised \(.*\); mend") as refusal:
        stored_rows(tmp_path)
    assert "\n" not in str(refusal.value)


class Hub:
    """A hub with one model, whose revision v2 asks for keys and values in 8 bits; nothing of it is here at first."""

    def __init__(self, cache: Path) -> None:
        self.folder, self.asked = cache / "models--some--model", []

    def snapshot_download(self, name: str, revision: str | None = None, allow_patterns: Sequence[str] = ()) -> str:
        if name != "some/model" or "*.json" not in allow_patterns:
            raise OSError("no such repository")
        self.asked.append(revision)
        commit = {None: "0" * 40, "v2": "2" * 40}[revision]
        for folder in ("refs", f"snapshots/{commit}"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / "refs" / (revision or "main")).write_text(commit)
        made = self.folder / "snapshots" / commit
        for file in RECALL.glob("*.json"):
            shutil.copy(file, made)
        checkpoint(made, None, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"} if revision else None)
        return str(made)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # SGLang finds what was fetched, and no more
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(weights, "has_amx", lambda: True)  # it serves them there
    monkeypatch.setattr(configuration, "EIGHT_BITS_ON_CPU", True)
    return made


def started(revision: str | None, policy: str = "snapkv", **flags: Any) -> HeteroServerArgs:
    return settled_args(model_path="some/model", revision=revision, kv_policy=policy, **flags)


@pytest.mark.parametrize("before", [(), (None,)])
def test_a_checkpoint_that_is_not_here_yet_is_asked_at_its_revision(hub: Hub, before: tuple[None, ...]) -> None:
    """Also where another revision is here."""
    for revision in before:
        hub.snapshot_download("some/model", revision, ["*.json"])
    for revision, rows, item in ((None, "auto", 2), ("v2", "fp8_e4m3", 1), (None, "auto", 2)):
        made = started(revision)
        assert (made.kv_cache_dtype, item_bytes(made)) == (rows, item)
        assert options_of(made)[1]["itemsize"] == item
    assert hub.asked == [*before, None, "v2", None]
    said = started("v2", kv_cache_dtype="bfloat16")
    assert (said.kv_cache_dtype, item_bytes(said)) == ("bfloat16", 2)


def test_what_8_bits_do_not_go_with_is_refused_of_one_that_is_not_here_yet(hub: Hub) -> None:
    room = {"hetero_window": 32}
    assert started(None, "quest", **room).kv_cache_dtype == "auto"
    with pytest.raises(HeteroError, match=r"quest keeps .* fp8_e4m3 would round; .* or --kv-cache-dtype bfloat16\.$"):
        started("v2", "quest", **room)
    assert started("v2", "quest", kv_cache_dtype="bfloat16", **room).kv_cache_dtype == "bfloat16"


def test_weights_that_are_not_here_yet_are_refused_before_they_are_downloaded(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "has_amx", lambda: False)
    monkeypatch.setattr(weights, "cpu_engine", lambda: True)
    monkeypatch.setattr(own_profile, "downloaded", lambda *given: pytest.fail("downloaded"))
    with pytest.raises(HeteroError, match="some/model is to be served with weights quantised by modelopt"):
        started("v2", "heterocache")


def test_a_name_that_no_hub_knows_is_left_to_sglang(hub: Hub) -> None:
    assert described(arguments(Path("other/model"))) is None
    assert stored_rows(None, arguments(Path("other/model"))) == "auto"


@pytest.mark.parametrize("found", [torch.float8_e4m3fn, torch.bfloat16])
def test_what_sglang_settles_on_once_the_model_is_loaded_must_be_what_the_start_has_told(
    found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for item in (1, 2, 4):
        monkeypatch.setattr(pool, "runtime", lambda item=item: SimpleNamespace(item=item))
        if item == found.itemsize:
            pool.check_stored(found)
            continue
        flag = {1: "fp8_e4m3", 2: "bf16"}[found.itemsize]
        with pytest.raises(HeteroError, match=rf"auto {flag}, numbers of {8 * found.itemsize} bits .* {flag}\.$"):
            pool.check_stored(found)
