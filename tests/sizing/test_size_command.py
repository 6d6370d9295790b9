"""`hetero-sglang size`: the start-up table's arithmetic before anything starts, and one sentence for what cannot be."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from benchmarks import shapes
from hetero_sglang.cache.sizes import slots_within
from hetero_sglang.cli import main
from hetero_sglang.config.settings import HOT_PAGE
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.files import save_profile
from hetero_sglang.sglang.static_memory import static_fraction
from hetero_sglang.sizing.estimate import GIB, LENGTHS, Estimate, settings_of
from hetero_sglang.sizing.model import read_model
from hetero_sglang.sizing.typical import typical_profile

RECALL = Path(__file__).parents[2] / "assets" / "recall-8m"
CONTEXT = 131072


def checkpoint(folder: Path, **changes: Any) -> Path:
    """Llama-3.1-8B's shape, no weights."""
    return shapes.write(folder, {**shapes.LLAMA_8B, "max_position_embeddings": CONTEXT, **changes})


def estimate(folder: Path, ratio: float = 0.25, ranks: int = 1, memory: float = 80, **more: Any) -> Estimate:
    model = read_model(str(checkpoint(folder)))
    settings = settings_of(model, typical_profile(model.shape), ratio, ranks)
    return Estimate(model, settings, **{"context": CONTEXT, "memory": memory, "fraction": 0.85, **more})


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a command that must exit with 2 and print nothing else."""
    assert main(["size", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("hetero-sglang: ")
    return said.err


def test_keys_and_values_in_8_bits_take_half_and_their_index_as_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for dtype in ("auto", "fp8_e4m3"):
        folder = str(checkpoint(tmp_path))
        assert main(["size", folder, "--gpu-memory", "80", "--keep-ratio", "0.25", "--kv-cache-dtype", dtype]) == 0
        lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "|" in line}
        said.append({name: int(lines[name].split("|")[-2].replace(",", "")) for name in ("host store", "key index")})
    assert said[0]["host store"] == 2 * said[1]["host store"] == 131072 and said[0]["key index"] == said[1]["key index"]


def test_a_checkpoint_may_ask_for_keys_and_values_in_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}}
    folder = checkpoint(tmp_path, quantization_config=said)
    text = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [7], "data_offsets": [0, 7]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(7))
    for dtype, eight in (("auto", True), ("bfloat16", False), ("fp8_e5m2", True)):
        assert main(["size", str(folder), "--gpu-memory", "80", "--kv-cache-dtype", dtype]) == 0
        assert ("keys and values in 8 bits" in capsys.readouterr().out) == eight, dtype


def test_slots_are_those_of_the_start_after_weights_and_workspaces(tmp_path: Path) -> None:
    one = estimate(tmp_path)
    left = int(80 * GIB * 0.85) - shapes.parameter_bytes()
    assert one.kv_bytes == left
    workspaces = max(one.budget.workspaces(rank).total for rank in range(one.ranks))
    settings = one.settings
    wanted = slots_within(
        settings.ranks, one.model.row, HOT_PAGE, left - workspaces, None, joint=False, index_bytes=settings.index_bytes
    )
    assert one.slots == wanted
    assert one.dense_slots == left // shapes.kv_bytes_per_token()
    assert one.host_bytes == one.slots * shapes.kv_bytes_per_token()  # every head is compressed


def test_as_many_fit_as_the_ledger_admits_and_no_more(tmp_path: Path) -> None:
    one = estimate(tmp_path)
    for length in LENGTHS:
        count = one.at_once(length)
        assert 1 <= count <= one.slots // length and count == min(one.slots // length, one.admission.concurrent(length))
        assert one.dense_at_once(length) == one.dense_slots // length
    assert one.at_once(CONTEXT + 1) == one.dense_at_once(CONTEXT + 1) == 0


def test_a_host_size_limits_the_slots(tmp_path: Path) -> None:
    free, bound = estimate(tmp_path), estimate(tmp_path, host=10)
    assert bound.slots == int(10e9) // shapes.kv_bytes_per_token() < free.slots
    assert bound.host_bytes <= 10e9 < free.host_bytes


def test_two_ranks_share_weights_and_heads(tmp_path: Path) -> None:
    two = estimate(tmp_path, ranks=2)
    assert two.dense_cell == shapes.kv_bytes_per_token() // 2
    assert two.kv_bytes == int(80 * GIB * 0.85) - shapes.parameter_bytes() // 2


def test_a_profile_of_pivots_keeps_its_resident_heads_on_the_device(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    model = read_model(str(folder))
    settings = settings_of(model, alike(32, 8, 32, 128), 0.25, 1)
    one = Estimate(model, settings, CONTEXT, 80, 0.85)
    assert one.sizes.index_bytes_per_slot == 0 and settings.index is None


@pytest.mark.parametrize("suffix", [".json", ""])
def test_the_tables_name_their_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    folder = checkpoint(tmp_path / "llama")
    arguments = ["size", str(folder), "--gpu-memory", "32", "80", "--keep-ratio", "0.25"]
    if suffix:
        path = tmp_path / "of-its-own.json"
        save_profile(typical_profile(read_model(str(folder)).shape), path)
        arguments += ["--profile", str(path)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "16.06 GB by config.json" in out and "keep ratio: 0.25" in out and "131,072 tokens" in out
    assert ("of-its-own.json" if suffix else "a typical one") in out
    assert "| GPU memory, GiB" in out and f"| {static_fraction(32 * 1024):g} " in out


def test_weights_are_counted_from_safetensors_as_they_are_served(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [10, 3], "data_offsets": [0, 120]},  # served in two bytes a number
        "b": {"dtype": "I8", "shape": [7], "data_offsets": [120, 127]},
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(127))
    model = read_model(str(folder))
    assert model.weights == 2 * 30 + 7 and "safetensors" in model.weights_from
    real = read_model(str(RECALL))
    assert real.weights == pytest.approx((RECALL / "model.safetensors").stat().st_size, rel=0.01)


def test_experts_and_a_shared_table_count_once_each(tmp_path: Path) -> None:
    plain = read_model(str(checkpoint(tmp_path / "plain"))).weights
    tied = read_model(str(checkpoint(tmp_path / "tied", tie_word_embeddings=True))).weights
    assert plain - tied == 2 * 4096 * 128256
    eight = read_model(str(checkpoint(tmp_path / "experts", model_type="mixtral", num_local_experts=8))).weights
    assert eight - plain == 2 * 32 * (7 * 3 * 4096 * 14336 + 8 * 4096)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(checkpoint(tmp_path / "good"))
    assert "no folder here" in refused(capsys, str(tmp_path / "absent"), "--gpu-memory", "80")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, str(tmp_path / "empty"), "--gpu-memory", "80")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": ')
    assert "is not JSON: line 1" in refused(capsys, str(tmp_path / "broken"), "--gpu-memory", "80")
    lacking = str(checkpoint(tmp_path / "lacking", intermediate_size=None))
    assert "config.json lacks a usable" in refused(capsys, lacking, "--gpu-memory", "80")
    quantised = str(checkpoint(tmp_path / "quantised", quantization_config={"bits": 4}))
    assert "is quantised" in refused(capsys, quantised, "--gpu-memory", "80")
    (tmp_path / "cut").mkdir()
    cut = checkpoint(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"\xff" * 9)
    assert "is not a whole safetensors file" in refused(capsys, str(cut), "--gpu-memory", "80")
    small = refused(capsys, good, "--gpu-memory", "16")
    assert "16.1 GB" in small and "16 GiB 13.3 GB" in small
    assert "workspaces" in refused(capsys, good, "--gpu-memory", "21", "--mem-fraction-static", "0.825")
    assert "choose a ratio above" in refused(capsys, good, "--gpu-memory", "80", "--keep-ratio", "0.01")
    assert "cannot be divided over 3 ranks" in refused(capsys, good, "--gpu-memory", "80", "--tp", "3")
    for flag, value in [
        ("--tp", "0"),
        ("--gpu-memory", "nan"),
        ("--gpu-memory", "0"),
        ("--host-size", "-1"),
        ("--context-length", "0"),
        ("--mem-fraction-static", "1.5"),
        ("--profile", str(tmp_path / "absent.json")),
    ]:
        given = [good, "--gpu-memory", "80"] if flag != "--gpu-memory" else [good]
        assert value.lstrip("-0") in refused(capsys, *given, flag, value), flag
    assert "required: --gpu-memory" in refused(capsys, good)
