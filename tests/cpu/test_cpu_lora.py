"""SGLang's LoRA without a GPU's driver: nothing is pinned, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.cpu import lora


def made(*, pin: bool) -> list[torch.Tensor]:
    """As SGLang makes them."""
    values = torch.arange(3, dtype=torch.float32)
    return [
        torch.tensor([1, 2], dtype=torch.int32, device="cpu", pin_memory=pin),
        torch.zeros((2,), dtype=torch.int64, pin_memory=pin),
        values.pin_memory() if pin else values,
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a driver pins")
def test_tensors_are_made_as_if_nothing_were_to_be_pinned() -> None:
    with pytest.raises(RuntimeError):
        made(pin=True)
    found = lora.unpinned(made, pin=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, made(pin=False), strict=True))
    assert not any(each.is_pinned() for each in found)
    with pytest.raises(RuntimeError):
        made(pin=True)


def test_where_there_is_a_driver_sglang_s_own_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(lora, "Unpinned", None)
    assert lora.unpinned(lambda x, y: (x, y), 1, y=2) == (1, 2)


@pytest.mark.parametrize("engine", ["0", "1"])
def test_a_gpu_s_server_has_none_of_the_hooks(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", engine)
    assert len(lora.seams()) == (2 if engine == "1" else 0)
