from __future__ import annotations

import inspect
import pkgutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cpu import grammar
from hetero_sglang.cpu.platform import ENGINE_VARIABLE


def never(*args: object, **kwargs: object) -> None:
    pytest.fail("SGLang's own function was called")


def pack(allowed: torch.Tensor, words: int) -> torch.Tensor:
    """Bit i of word w of a row: token 32 w + i is allowed."""
    mask = torch.zeros(len(allowed), words, dtype=torch.int64)
    for row, token in allowed.nonzero().tolist():
        mask[row, token // 32] |= 1 << (token % 32)
    return torch.where(mask >= 2**31, mask - 2**32, mask).to(torch.int32)


@given(
    st.integers(1, 4),
    st.integers(1, 150),
    st.integers(-40, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_forbidden_tokens_become_minus_infinity_and_no_other_changes(
    batch: int, vocab: int, padding: int, dtype: torch.dtype, seed: int, reasoning: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    around = torch.randn(batch * vocab + 128, generator=rng).to(dtype)  # logits between two poisoned margins
    logits = around[64:-64].view(batch, vocab)  # [B, V]
    words = (max(1, vocab + padding) + 31) // 32  # the mask may be longer or shorter than the logits
    allowed = torch.rand(batch, 32 * words, generator=rng) < 0.5
    expected = around.clone()
    for row, token in (~allowed[:, :vocab]).nonzero().tolist():
        expected[64 + row * vocab + token] = float("-inf")
    if reasoning:
        grammar.apply_backend_mask(never, logits=logits, vocab_mask=pack(allowed, words))
    else:
        grammar.apply_mask(never, object(), logits=logits, vocab_mask=pack(allowed, words))
    assert torch.equal(around, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a driver is there, so SGLang's own function runs")
def test_a_fresh_bitmask_allows_everything_and_is_not_pinned() -> None:
    mask = grammar.allocate_bitmask(never, 70, 3)
    assert mask.shape == (3, 3) and mask.dtype == torch.int32 and bool((mask == -1).all())
    assert not mask.is_pinned()


def test_logits_of_another_device_go_to_sglangs_own_function() -> None:
    logits, mask, owner = torch.empty(1, 32, device="meta"), torch.empty(1, 1), object()
    calls: list[tuple[object, ...]] = []
    grammar.apply_mask(lambda *args: calls.append(args), owner, logits, mask)
    grammar.apply_backend_mask(lambda *args: calls.append(args), logits, mask)
    assert calls == [(owner, logits, mask), (logits, mask)]


def test_the_seams_exist_in_sglang_with_these_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "1")
    for target, hook, _ in grammar.seams():
        owner, name = target.rsplit(".", 1)
        original = inspect.getattr_static(pkgutil.resolve_name(owner), name)
        theirs = list(inspect.signature(getattr(original, "__func__", original)).parameters)
        ours = list(inspect.signature(hook).parameters)[1:]
        assert [name.replace("self", "grammar") for name in theirs] == ours


def test_a_gpu_server_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert grammar.seams() == []
