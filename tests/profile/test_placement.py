"""Where weights are while a model is calibrated that a GPU cannot hold: what it computes is the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.launch import RECALL
from hetero_sglang.calibration import placement
from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.reading import read

CPU = torch.device("cpu")


def test_a_layer_is_away_from_home_while_it_computes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(at_home: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device | None) -> None:
        for each, home in at_home:
            each.data = home if device is None else home.clone()  # as on another device

    monkeypatch.setattr(placement, "_move", move)
    model = open_checkpoint(RECALL, "cpu").model
    layers: Any = model.model.layers
    home = [layer.self_attn.o_proj.weight.data_ptr() for layer in layers]

    def away(*_: object) -> None:
        seen.append([layer.self_attn.o_proj.weight.data_ptr() != at for layer, at in zip(layers, home, strict=True)])

    tokens, seen = torch.tensor([[0, *range(100, 160)]]), list[list[bool]]()
    with torch.inference_mode():
        wanted = model(tokens).logits
        placement.in_turns(model, CPU)
        for layer in layers:
            layer.mlp.register_forward_hook(away)
        found = model(tokens).logits
    assert torch.equal(found, wanted)
    assert seen == [[other == at for other in range(8)] for at in range(8)]
    away()
    assert not any(seen[-1])


@pytest.mark.parametrize(("spare", "turns"), [(0, False), (-1, True)])
def test_layers_take_turns_where_a_gpu_has_too_little_memory(
    spare: int, turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, moved, taken = [torch.zeros(7, dtype=torch.float16)], [], []
    model: Any = SimpleNamespace(parameters=lambda: weights, to=moved.append)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (14 + placement.ROOM + spare, 1 << 40))
    monkeypatch.setattr(placement, "in_turns", lambda *given: taken.append(given))
    placement.put(model, torch.device("cuda:0"))
    assert (bool(taken), bool(moved)) == (turns, not turns)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_document_is_read_alike_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Document("numbers", "", (0, *range(3, 1500)))
    found = []
    for room in (0, 1 << 60):
        monkeypatch.setattr(placement, "ROOM", room)
        checkpoint = open_checkpoint(RECALL, "cuda")
        layers: Any = checkpoint.model.model.layers
        assert layers[0].self_attn.o_proj.weight.is_cuda == (room == 0)
        found.append(list(read(checkpoint, document, 64)))
    for whole, turned in zip(*found, strict=True):
        assert all(
            torch.equal(getattr(whole, name), getattr(turned, name)) for name in ("query", "key", "value", "o_proj")
        )
