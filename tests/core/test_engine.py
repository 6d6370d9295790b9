"""Prefill and decode over both tiers against a naive oracle: float64, one head at a time, poisoned buffers."""

from __future__ import annotations

import pytest
import torch
from core_helpers import (
    GROUP,
    Request,
    decode,
    demand,
    dense,
    held_positions,
    make_cache,
    make_settings,
    prefill,
    random_profile,
)


def expect(
    request: Request, layer: int, token: int, whole: bool = True, gone: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """What attention of `token` must be: over every earlier token, or over what each head holds, and over `gone`: what
    each of all compressed heads held in selected rows before."""
    spec = request.cache.settings.layout.layers[layer]
    heads = request.k[layer].shape[1]
    out = torch.empty(heads * GROUP, request.q[layer].shape[-1])
    for head in range(heads):
        positions = torch.arange(token + 1)
        if not whole and head in spec.compressed:
            positions = held_positions(request, spec.first + spec.compressed.index(head), token + 1)
            assert positions.unique().numel() == positions.numel(), "a token is counted twice"
            assert positions.min() >= 0 and positions.max() == token, "an empty row, or the new token is missing"
            if gone is not None:
                positions = torch.cat((positions.cpu(), gone[spec.first + spec.compressed.index(head)])).unique()
        q = request.q[layer][token].view(heads, GROUP, -1)[head]
        k, v = request.k[layer][positions, head], request.v[layer][positions, head]
        out[head * GROUP : (head + 1) * GROUP] = dense(q, k, v)
    return out


def scattered_slots(count: int, seed: int, low: int = 1, high: int = 600) -> torch.Tensor:
    return torch.randperm(high - low, generator=torch.Generator().manual_seed(seed))[:count] + low


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunks", [[100], [33, 67], [98, 2], [1, 99]])
def test_prefill_is_exact_for_every_chunking(seed: int, chunks: list[int]) -> None:
    cache = make_cache(make_settings(random_profile(seed)))
    request = Request(cache, 1, 100, 120, scattered_slots(120, seed), seed)
    request.start()
    begin = 0
    for size in chunks:
        outputs = prefill([request], [(begin, begin + size)])
        for layer, out in enumerate(outputs):
            for token in {begin, begin + size // 2, begin + size - 1}:
                torch.testing.assert_close(out[0][token - begin], expect(request, layer, token), atol=1e-5, rtol=1e-4)
        begin += size


@pytest.mark.parametrize("seed", range(6))
def test_decode_attends_to_exactly_what_each_head_holds(seed: int) -> None:
    """Two requests in one batch, of different lengths, long past a full turn of the ring."""
    cache = make_cache(make_settings(random_profile(seed)))
    slots = scattered_slots(400, seed)
    one = Request(cache, 1, 100, 160, slots[:160], seed)
    two = Request(cache, 2, 70, 160, slots[160:320], seed + 100)
    for request in (one, two):
        request.start()
    prefill([one, two], [(0, 100), (0, 70)])
    assert not one.ws.exact(101)
    for step in range(1, 30):
        out = decode([one, two], [100 + step, 70 + step])
        for layer in range(out.shape[0]):
            for row, (request, base) in enumerate(((one, 100), (two, 70))):
                wanted = expect(request, layer, base + step - 1, whole=False)
                torch.testing.assert_close(out[layer, row], wanted, atol=1e-5, rtol=1e-4)
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(4))
def test_a_short_request_is_dense_until_its_working_set_is_full(seed: int) -> None:
    cache = make_cache(make_settings(random_profile(seed)))
    request = Request(cache, 3, 20, 80, scattered_slots(80, seed), seed)
    request.start()
    prefill([request], [(0, 20)])
    for length in range(21, 65):
        out = decode([request], [length])
        assert request.ws.exact(length)
        for layer in range(out.shape[0]):
            torch.testing.assert_close(out[layer, 0], expect(request, layer, length - 1), atol=1e-5, rtol=1e-4)
    for length in range(65, 81):  # past dense_below the heads wrap, and still hold each token once
        out = decode([request], [length])
        for layer in range(out.shape[0]):
            wanted = expect(request, layer, length - 1, whole=False)
            torch.testing.assert_close(out[layer, 0], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beside", [False, True])
def test_a_request_without_a_prompt_decodes_from_nothing(seed: int, beside: bool) -> None:
    """SGLang serves `input_ids: [[]]`: a prefill of no tokens, alone or beside another, then steps as ever."""
    cache = make_cache(make_settings(random_profile(seed)))
    slots = scattered_slots(200, seed)
    empty, other = Request(cache, 1, 0, 20, slots[:20], seed), Request(cache, 2, 90, 110, slots[20:130], seed + 50)
    live, prompts = ([empty, other], [0, 90]) if beside else ([empty], [0])
    for request in live:
        request.start()
    for layer, outputs in enumerate(prefill(live, [(0, prompt) for prompt in prompts])):
        assert outputs[0].shape == (0, *empty.q[layer].shape[1:])
        if beside:
            torch.testing.assert_close(outputs[1][89], expect(other, layer, 89), atol=1e-5, rtol=1e-4)
    for step in range(1, 21):
        out = decode(live, [prompt + step for prompt in prompts])
        for layer in range(out.shape[0]):
            torch.testing.assert_close(out[layer, 0], expect(empty, layer, step - 1), atol=1e-5, rtol=1e-4)
    for request in live:
        cache.finish(request.slot)
    cache.check_integrity()


def test_keep_ratio_one_is_dense_at_any_length() -> None:
    cache = make_cache(make_settings(random_profile(1), keep_ratio=1.0))
    request = Request(cache, 1, 150, 200, scattered_slots(200, 1), 5)
    request.start()
    prefill([request], [(0, 150)])
    for length in (151, 152, 153):
        out = decode([request], [length])
        for layer in range(out.shape[0]):
            torch.testing.assert_close(out[layer, 0], expect(request, layer, length - 1), atol=1e-5, rtol=1e-4)


def test_a_prefix_hit_reads_its_compressed_heads_back_from_the_host() -> None:
    """A second request shares 60 slots of the first, which has ended: only the stores still know them."""
    cache = make_cache(make_settings(random_profile(2)))
    slots = scattered_slots(200, 3)
    first = Request(cache, 1, 100, 100, slots[:100], 7)
    first.start()
    prefill([first], [(0, 100)])
    cache.finish(1)
    second = Request(cache, 1, 90, 120, torch.cat((slots[:60], slots[100:160])), 8)
    for name in "qkv":
        for layer, values in enumerate(getattr(second, name)):
            values[:60] = getattr(first, name)[layer][:60]
    second.start()
    outputs = prefill([second], [(60, 90)])
    for layer, out in enumerate(outputs):
        for token in (60, 75, 89):
            torch.testing.assert_close(out[0][token - 60], expect(second, layer, token), atol=1e-5, rtol=1e-4)


def test_the_rows_kept_are_the_best_by_the_observed_queries() -> None:
    """The working set of a full head against a naive ranking of its prompt."""
    settings = make_settings(random_profile(4))
    cache = make_cache(settings)
    request = Request(cache, 1, 120, 130, scattered_slots(130, 4), 9)
    request.start()
    prefill([request], [(0, 120)])
    rule = settings.rule
    for layer, spec in enumerate(settings.layout.layers):
        for i, head in enumerate(spec.compressed):
            number = spec.first + i
            cap = request.ws.caps[number]
            if cap >= 120:
                continue
            best = torch.zeros(GROUP, 120)
            for token in range(120 - settings.observe, 120):
                q = request.q[layer][token].view(-1, GROUP, 16)[head]
                weight = (q @ request.k[layer][: token + 1, head].T * 16**-0.5).softmax(-1)
                best[:, : token + 1] = torch.maximum(best[:, : token + 1], weight)
            pooled = torch.stack([best[:, max(0, t - 2) : t + 3].mean(-1) for t in range(120)]).amax(-1)
            middle = pooled[rule.sink : 120 - rule.window]
            count = cap - rule.sink - rule.window
            threshold = middle.sort(descending=True).values[count - 1]
            held = set(held_positions(request, number, 120).tolist())
            assert set(range(rule.sink)) <= held and set(range(120 - rule.window, 120)) <= held
            clear = {t + rule.sink for t, s in enumerate(middle.tolist()) if s > threshold + 1e-6}
            assert clear <= held and len(held) == cap


def test_growth_keeps_a_long_generation_exact_while_pages_last() -> None:
    settings = make_settings(random_profile(5), keep_ratio=1.0, reserve=10)
    cache = make_cache(settings)
    request = Request(cache, 1, 40, 100, scattered_slots(100, 5), 11)
    request.start()
    prefill([request], [(0, 40)])
    assert max(request.ws.caps) == 50
    for length in range(41, 101):
        out = decode([request], [length])
        for layer in range(out.shape[0]):
            torch.testing.assert_close(out[layer, 0], expect(request, layer, length - 1), atol=1e-5, rtol=1e-4)
    assert cache.counters.refused_growth == 0
    cache.finish(1)
    cache.check_integrity()
    assert cache.levels()["hot_pages_free"] == cache.hot.pages


def test_growth_refused_wraps_instead_and_says_so() -> None:
    settings = make_settings(random_profile(5), keep_ratio=1.0, reserve=10)
    cache = make_cache(settings, pages=demand(settings, 70, 90))
    request = Request(cache, 1, 70, 160, scattered_slots(160, 5), 11)
    request.start()
    prefill([request], [(0, 70)])
    for length in range(71, 161):
        out = decode([request], [length])
        for layer in range(out.shape[0]):
            wanted = expect(request, layer, length - 1, whole=False)
            torch.testing.assert_close(out[layer, 0], wanted, atol=1e-5, rtol=1e-4)
    assert cache.counters.refused_growth == 1


def test_bits_equal_torch_native_on_bf16() -> None:
    """The exact forms must not differ from SGLang's CPU backend in a single bit."""
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    from hetero_sglang.ops.reference.attention import decode_exact, prefill_attention, prefill_exact

    torch.manual_seed(3)
    for prefix, count in [(0, 1), (0, 90), (130, 30), (700, 333), (40, 1100), (1500, 2)]:
        length = prefix + count
        q = torch.randn(count, 8, 64).bfloat16()
        k, v = torch.randn(length, 4, 64).bfloat16(), torch.randn(length, 4, 64).bfloat16()
        padded = torch.empty(8, length, 64, dtype=torch.bfloat16)
        padded[:, prefix:] = q.movedim(0, 1)
        keys, values = k.movedim(0, 1)[None], v.movedim(0, 1)[None]
        wanted = sdpa(padded[None], keys, values, is_causal=True, enable_gqa=True)[0].movedim(1, 0)[prefix:]
        assert torch.equal(prefill_exact(q, k, v, 64**-0.5), wanted)
        torch.testing.assert_close(prefill_attention(q, k, v, 64**-0.5), wanted)
        one = sdpa(q[:1].movedim(0, 1)[None], keys, values, enable_gqa=True)[0].movedim(1, 0)
        queries = q[0].view(4, 2, 64)
        mine = torch.cat([decode_exact(queries[h : h + 1], k[:, [h]], v[:, [h]], 64**-0.5) for h in range(4)])
        assert torch.equal(mine.reshape(1, 8, 64), one)
