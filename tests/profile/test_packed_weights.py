"""Quantised weights as calibration reads them: the numbers that others' code makes of the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition
from sglang.srt.layers.quantization.fp8_utils import block_quant_dequant
from sglang.srt.layers.quantization.utils import pack_cols, pack_rows, permute_rows, quantize_weights
from tiny_models import write_checkpoint

from benchmarks.launch import RECALL
from benchmarks.weights.packing import AWQ_ORDER, FORMATS, awq, fp8_blocks, int4, nf4
from benchmarks.weights.quantise import TOKENIZER, quantise
from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.packed import awq as awq_reader
from hetero_sglang.calibration.packed import compressed, gptq, scaled, table
from hetero_sglang.cli import main
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import schema
from hetero_sglang.profile.files import load_profile

FAST = ["--documents", "1", "--length", "400", "--steps", "4", "--device", "cpu", "--quiet"]
GROUP = 64


def weight(rows: int = 192, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.1


def test_awq_is_read_as_sglang_reads_it() -> None:
    packed = awq(weight())
    wanted = awq_dequantize_decomposition(packed["qweight"], packed["scales"].float(), packed["qzeros"])  # [in, out]
    found = awq_reader.plain(packed, {"version": "GEMM"})
    assert torch.equal(found, wanted.t())
    assert (found - weight()).abs().max() <= packed["scales"].float().max()


def test_awq_words_hold_columns_in_the_order_of_its_kernels() -> None:
    packed = awq(weight())
    assert sorted(AWQ_ORDER) == list(range(8))
    swapped = {**packed, "qweight": packed["qweight"] >> 4}
    assert not torch.equal(awq_reader.plain(swapped, {}), awq_reader.plain(packed, {}))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_is_read_as_sglang_writes_it(bits: int, ordered: bool, version: str) -> None:
    middle = 1 << (bits - 1)
    wanted, codes, scales, _ = quantize_weights(weight().t().contiguous(), Whole(bits), GROUP)
    group = None
    if ordered:
        wanted, codes, group, _ = permute_rows(codes, wanted, GROUP)
    kept = torch.full(scales.shape, middle - (version == "gptq"), dtype=torch.int32)
    tensors = {
        "qweight": pack_rows(codes, bits, *codes.shape),
        "qzeros": pack_cols(kept, bits, *kept.shape),
        "scales": scales,
        **({} if group is None else {"g_idx": group}),
    }
    found = gptq.plain(tensors, {"bits": bits, "checkpoint_format": version})
    assert torch.equal(found, wanted.t())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_compressed_words_are_read_as_by_compressed_tensors(bits: int, symmetric: bool, strategy: str) -> None:
    made = written(
        "pack-quantized", num_bits=bits, symmetric=symmetric, strategy=strategy,
        group_size=GROUP if strategy == "group" else None,
    )  # fmt: skip
    assert torch.equal(compressed.plain(made.tensors, {}), made.wanted)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_compressed_numbers_of_8_bits_are_read_as_by_compressed_tensors(kind: str, strategy: str) -> None:
    made = written(f"{kind}-quantized", num_bits=8, type=kind, symmetric=True, strategy=strategy)
    assert torch.equal(scaled.plain(made.tensors, {}), made.wanted)


def test_words_of_another_layout_are_refused() -> None:
    packed = int4(weight())
    for words in (packed["weight_packed"].to(torch.uint8), packed["weight_packed"].t(), packed["weight_packed"][:, 1:]):
        with pytest.raises(ValueError, match=r"their words are|are not those of 192 rows of 256"):
            compressed.plain({**packed, "weight_packed": words}, {})


def test_blocks_of_fp8_are_read_as_sglang_reads_them() -> None:
    plain = weight(320, 256)  # the last block of rows is half a one
    packed = fp8_blocks(plain)
    wanted = block_quant_dequant(packed["weight"], packed["weight_scale_inv"], [128, 128], torch.float32)
    found = scaled.plain(packed, {"weight_block_size": [128, 128]})
    assert torch.equal(found, wanted)
    assert (found - plain).abs().max() <= plain.abs().max() / 16


def test_scales_that_themselves_are_quantised_are_read() -> None:
    """bitsandbytes' double quantisation: the blocks' largest numbers as places in a table of their own."""
    packed = nf4(weight())
    plain = table.plain(packed, {})
    name = "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(packed[name].tolist()))
    most, codes = packed["weight.absmax"], torch.linspace(-1, 1, 256)
    offset = float(most.mean())
    blocks = (most - offset).unflatten(0, (-1, 256))
    coarse = blocks.abs().amax(1)
    places = ((blocks / coarse[:, None] + 1) * 127.5).round().to(torch.uint8).flatten()
    said = json.dumps({**state, "nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"})
    double = {
        **packed,
        "weight.absmax": places,
        "weight.nested_absmax": coarse,
        "weight.nested_quant_map": codes,
        name: torch.tensor(list(said.encode()), dtype=torch.uint8),
    }
    found = table.plain(double, {})
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=0, atol=float(coarse.max()) / 127.5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_checkpoint_opens_as_the_one_it_was_made_from(name: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    model = write_checkpoint(tmp_path / "plain", "llama", RECALL, **sizes)
    opened = open_checkpoint(quantise(model, name, tmp_path / name), "cpu").model
    wanted = open_checkpoint(model, "cpu").model.state_dict()
    found = opened.state_dict()
    assert found.keys() == wanted.keys()
    assert not hasattr(opened.config, "quantization_config")
    for each, plain in wanted.items():
        if each.endswith("_proj.weight"):
            lost = (found[each] - plain).norm() / plain.norm()
            assert 1e-4 < lost < (0.15 if "8" not in name else 0.03), each
        else:
            torch.testing.assert_close(found[each], plain, rtol=1e-2, atol=1e-3)


def test_a_profile_is_that_of_the_numbers_that_weights_stand_for(tmp_path: Path) -> None:
    model = quantise(RECALL, "gptq", tmp_path / "gptq")
    opened = open_checkpoint(model, "cpu").model
    plain = tmp_path / "plain"
    opened.half().save_pretrained(plain)
    for name in TOKENIZER:
        shutil.copy(RECALL / name, plain / name)
    made = []
    for each in (model, plain):
        out = tmp_path / f"{each.name}.json"
        assert main(["profile", str(each), "--out", str(out), *FAST]) == 0
        made.append(load_profile(out))
    assert made[0].provenance["fingerprint"] != made[1].provenance["fingerprint"]
    found, wanted = ({**schema.encode(each), "provenance": None} for each in made)
    assert found == wanted


@pytest.mark.parametrize("family", ["qwen3_moe", "phi3"])
def test_experts_and_joined_projections_are_read_too(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    more = {"moe_intermediate_size": 128} if family == "qwen3_moe" else {}
    model = write_checkpoint(tmp_path / "plain", family, RECALL, **sizes, **more)
    found = open_checkpoint(quantise(model, "awq", tmp_path / "awq"), "cpu").model.state_dict()
    wanted = open_checkpoint(model, "cpu").model.state_dict()
    assert found.keys() == wanted.keys()
    assert max((found[each] - plain).norm() / plain.norm() for each, plain in wanted.items()) < 0.15


def test_tensors_of_a_weight_may_lie_in_several_files(tmp_path: Path) -> None:
    model = quantise(RECALL, "awq", tmp_path / "awq")
    whole = open_checkpoint(model, "cpu").model.state_dict()
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    for number in range(3):
        save_file(dict(list(tensors.items())[number::3]), model / f"model-{number}.safetensors", {"format": "pt"})
    parted = open_checkpoint(model, "cpu").model.state_dict()
    assert all(torch.equal(parted[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"quant_method": "mxfp4"}, "which are quantised by mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "which are quantised by modelopt as NVFP4"),
        ({"bits": 4}, "which are quantised by unknown"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "as their layout is 'gemv', not gemm"),
        ({"quant_method": "gptq", "bits": 4}, "as the size of tensor"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_in_a_sentence(
    about: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = quantise(RECALL, "awq", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    with pytest.raises(
        HeteroError, match=r"^calibration cannot read the weights of .*--hetero-profile FILE`\.$"
    ) as refused:
        open_checkpoint(model, "cpu")
    assert said in str(refused.value)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    model = quantise(RECALL, "awq", tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file(
        {name: each for name, each in tensors.items() if not name.endswith("qzeros")}, model / "model.safetensors"
    )
    with pytest.raises(HeteroError, match="of which 'qzeros' is not there"):
        open_checkpoint(model, "cpu")
    save_file(
        {name: each for name, each in tensors.items() if "layers.3.mlp.up_proj" not in name},
        model / "model.safetensors",
    )
    with pytest.raises(HeteroError, match=r"of which 'model\.layers\.3\.mlp\.up_proj\.weight' is not there"):
        open_checkpoint(model, "cpu")
    (model / "model.safetensors").unlink()
    with pytest.raises(HeteroError, match="which lie in no safetensors files"):
        open_checkpoint(model, "cpu")


class Whole:
    """Numbers of few bits as SGLang's quantiser asks about them: kept with the middle of their range added."""

    def __init__(self, bits: int) -> None:
        self.bias = 1 << (bits - 1)

    def is_integer(self) -> bool:
        return True

    def has_bias(self) -> bool:
        return True

    def max(self) -> int:
        return self.bias - 1

    def min(self) -> int:
        return -self.bias


class Written:
    """A weight as compressed-tensors packs it, and the numbers that it makes of that."""

    def __init__(self, tensors: dict[str, torch.Tensor], wanted: torch.Tensor) -> None:
        self.tensors, self.wanted = tensors, wanted


def written(layout: str, **about: Any) -> Written:
    args = QuantizationArgs(**about)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
    plain = weight()
    parts = {
        "tensor": plain[None, None].flatten(2),
        "channel": plain[:, None],
        "group": plain.unflatten(1, (-1, GROUP)),
    }
    grouped = parts[about["strategy"]]  # [rows, parts, numbers]
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    top = 448.0 if about.get("type") == "float" else float((1 << (args.num_bits - 1)) - 1)
    if args.symmetric:
        scale, zero = torch.maximum(high, -low) / top, None
    else:
        scale = (high - low) / (2 * top + 1)
        zero = (-top - 1 - low / scale).round().clamp(-top - 1, top).to(torch.int8)
    if about["strategy"] == "tensor":
        scale = scale.reshape(1)
    given = {"weight": plain, "weight_scale": scale, **({} if zero is None else {"weight_zero_point": zero})}
    packing = BaseCompressor.get_value_from_registry(layout)
    packed = packing.compress(dict(given), scheme)
    return Written(packed, packing.decompress(dict(packed), scheme)["weight"])
