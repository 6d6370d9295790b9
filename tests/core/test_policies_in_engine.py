"""Every policy through the engine: what its heads hold, that they attend to just that, and that nothing leaks."""

from __future__ import annotations

import pytest
import torch
from core_helpers import DIM, GROUP, Request, decode, engine_of, held_positions, make_cache, make_settings, prefill
from test_engine import expect, scattered_slots

from hetero_sglang.config.settings import Settings
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Policy, Refresh
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.profile.ablation import alike

HEADS, LAYERS = 3, 2
OTHERS = [name for name, policy in POLICIES.items() if not policy.roles]
STEP = [name for name in OTHERS if POLICIES[name].refresh is Refresh.STEP]


def settings_of(name: str, keep_ratio: float = 0.5, **options: object) -> Settings:
    profile = alike(LAYERS, HEADS, HEADS * GROUP, DIM)
    plain = {"window": 64, "sink": 2, "dense_below": 200, "monitor_interval": 1}
    return make_settings(profile, keep_ratio, policy=POLICIES[name](), **{**plain, **options})


def held(request: Request, layer: int, head: int, length: int) -> set[int]:
    spec = request.cache.settings.layout.layers[layer]
    positions = held_positions(request, spec.first + head, length)
    assert positions.unique().numel() == positions.numel()
    return set(positions.tolist())


def queries(request: Request, layer: int, first: int, last: int) -> torch.Tensor:
    return request.q[layer][first:last].view(last - first, HEADS, GROUP, DIM)


def chosen_by(policy: Policy, request: Request, layer: int, prompt: int, length: int) -> list[set[int]]:
    """What each head should select at `length` tokens, from the request's own keys: units never change."""
    rule, k = request.cache.settings.rule, request.k[layer]
    observe = request.cache.settings.observe
    at_prompt = policy.scores(queries(request, layer, prompt - observe, prompt), k[:prompt], DIM**-0.5)
    caps = [request.ws.caps[request.cache.settings.layout.layers[layer].first + h] for h in range(HEADS)]
    counts = [cap - rule.sink - rule.turning(cap) for cap in caps]
    scores = at_prompt
    if length > prompt and policy.index is not None:
        span = policy.index.span
        fraction = request.cache.settings.layout.layers[layer].fractions[0]
        firsts = policy.candidates(at_prompt, int(fraction * request.ws.final), rule.window)
        begun = prompt // span * span
        if firsts is None:
            firsts = torch.arange(0, begun, span).expand(HEADS, -1)
        firsts = torch.cat((firsts, torch.arange(begun, length // span * span, span).expand(HEADS, -1)), 1)
        tokens = (firsts[..., None] + torch.arange(span)).flatten(1)
        keys = torch.stack([k[tokens[h], h] for h in range(HEADS)]).unflatten(1, (-1, span))
        rows = policy.index.build(keys, DIM)
        found = policy.index.scores(queries(request, layer, length - 1, length)[0], *rows, DIM**-0.5)
        scores = torch.full((HEADS, length), float("-inf")).scatter_(1, tokens, found.float())
    elif length > prompt:
        length = prompt  # chosen once
    picked = policy.pick(scores, counts, rule.sink, length - rule.turning(caps[0]))
    return [set(p.tolist()) - {scores.shape[1]} for p in picked]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prompt", [256, 331])
def test_heads_hold_what_the_policy_picks_and_attend_to_it(name: str, prompt: int) -> None:
    settings = settings_of(name)
    cache, policy, rule = make_cache(settings), settings.policy, settings.rule
    request = Request(cache, 1, prompt, prompt + 80, scattered_slots(prompt + 80, 3), prompt)
    request.start()
    prefill([request], [(0, prompt - 50)])
    prefill([request], [(prompt - 50, prompt)])
    for layer in range(LAYERS):
        for head, wanted in enumerate(chosen_by(policy, request, layer, prompt, prompt)):
            cap = request.ws.caps[settings.layout.layers[layer].first + head]
            fixed = set(range(rule.sink)) | set(range(prompt - rule.turning(cap), prompt))
            assert held(request, layer, head, prompt) == wanted | fixed
    for length in range(prompt + 1, prompt + 81):
        out = decode([request], [length])
        for layer in range(LAYERS):
            wanted_out = expect(request, layer, length - 1, whole=False)
            torch.testing.assert_close(out[layer, 0], wanted_out, atol=1e-5, rtol=1e-4)
            if policy.refresh is not Refresh.STEP:
                continue
            for head, wanted in enumerate(chosen_by(policy, request, layer, prompt, length)):
                cap = request.ws.caps[settings.layout.layers[layer].first + head]
                fixed = set(range(rule.sink)) | set(range(length - rule.turning(cap), length))
                assert held(request, layer, head, length) == wanted | fixed
    cache.check_integrity()
    rows = 0.5 * request.ws.final + 1 + 2 * settings.rule.page_size  # a half-empty page of tokens and one of index
    row = cache.hot.nbytes // (cache.hot.pages * settings.rule.page_size)
    assert 0 < cache.counters.kept_bytes <= LAYERS * HEADS * rows * row
    assert cache.counters.dense_bytes == request.ws.final * LAYERS * HEADS * 2 * DIM * 4
    cache.finish(1)
    cache.check_integrity()
    assert cache.levels()["hot_pages_free"] == cache.hot.pages


@pytest.mark.parametrize("name", OTHERS)
def test_a_budget_that_covers_everything_is_dense(name: str) -> None:
    cache = make_cache(settings_of(name, keep_ratio=1.0))
    request = Request(cache, 1, 250, 300, scattered_slots(300, 1), 5)
    request.start()
    prefill([request], [(0, 250)])
    assert not request.ws.indexed
    for length in range(251, 301):
        out = decode([request], [length])
        for layer in range(LAYERS):
            torch.testing.assert_close(out[layer, 0], expect(request, layer, length - 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_a_short_prompt_that_outgrows_its_working_set_stays_consistent(name: str) -> None:
    cache = make_cache(settings_of(name), pages=3000)
    request = Request(cache, 1, 120, 420, scattered_slots(420, 2), 6)
    request.start()
    prefill([request], [(0, 120)])
    for length in range(121, 421):
        out = decode([request], [length])
        for layer in range(LAYERS):
            whole = request.ws.exact(length)
            wanted = expect(request, layer, length - 1, whole=whole)
            torch.testing.assert_close(out[layer, 0], wanted, atol=1e-5, rtol=1e-4)
    assert not request.ws.exact(420)
    cache.finish(1)
    cache.check_integrity()


@pytest.mark.parametrize("name", STEP)
def test_shapes_that_a_graph_records_have_room_for_every_head(name: str) -> None:
    """A head that was kept whole for long has more rows than its ratio gives."""
    cache = make_cache(settings_of(name, keep_ratio=0.3, dense_below=330))
    request = Request(cache, 1, 310, 400, scattered_slots(400, 2), 6)
    request.start()
    prefill([request], [(0, 310)])
    engine = engine_of(cache)
    engine.eager_step = engine.make_step(1, 400, fixed=True)
    for length in range(311, 401):
        out = decode([request], [length])
        for layer in range(LAYERS):
            wanted = expect(request, layer, length - 1, whole=request.ws.exact(length))
            torch.testing.assert_close(out[layer, 0], wanted, atol=1e-5, rtol=1e-4)
    assert not request.ws.exact(400)


@pytest.mark.parametrize("name", OTHERS)
def test_two_users_of_a_prefix_choose_for_themselves(name: str) -> None:
    """The second shares 200 token slots with the first, asks something else, and must not inherit its choice."""
    settings = settings_of(name)
    alone, beside = make_cache(settings, slots=900), make_cache(settings, slots=900)
    slots = scattered_slots(600, 7, high=900)
    outputs = []
    for cache, company in ((alone, False), (beside, True)):
        second = Request(cache, 2, 260, 300, torch.cat((slots[:200], slots[400:500])), 22)
        first = Request(cache, 1, 300, 340, slots[:340], 21)
        for name_ in "qkv":
            for layer, values in enumerate(getattr(first, name_)):
                values[:200] = getattr(second, name_)[layer][:200]
        first.start()
        prefill([first], [(0, 300)])
        if company:
            for length in (301, 302):
                decode([first], [length])
        else:
            cache.finish(1)
        second.start()
        prefill([second], [(200, 260)])
        steps = []
        for length in range(261, 275):
            together = [first, second] if company else [second]
            lengths = [302 + length - 260, length] if company else [length]
            steps.append(decode(together, lengths)[:, -1])
        outputs.append(torch.stack(steps))
        cache.check_integrity()
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", STEP)
def test_an_index_that_leaves_no_room_is_refused_with_numbers(name: str) -> None:
    share = POLICIES[name]().index_share
    with pytest.raises(HeteroError, match=f"{share:.4f}"):
        settings_of(name, keep_ratio=share)
    with pytest.raises(HeteroError, match="window"):
        settings_of(name, window=POLICIES[name]().index.span - 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", OTHERS)
def test_retrieval_off_keeps_the_choice_of_the_prompt(name: str) -> None:
    settings = settings_of(name, retrieval="off")
    cache = make_cache(settings)
    request = Request(cache, 1, 256, 300, scattered_slots(300, 3), 9)
    request.start()
    prefill([request], [(0, 256)])
    before = [[held(request, layer, head, 256) for head in range(HEADS)] for layer in range(LAYERS)]
    for length in range(257, 290):
        decode([request], [length])
    assert cache.counters.fetched_rows == 0
    for layer in range(LAYERS):
        for head in range(HEADS):
            kept = held(request, layer, head, 289) & set(range(settings.rule.sink, 256 - 64))
            assert settings.policy.recent_only or kept == before[layer][head] & set(range(settings.rule.sink, 256 - 64))


@pytest.mark.parametrize("name", OTHERS)
def test_a_request_without_a_prompt_is_served_past_its_budget(name: str) -> None:
    """Nothing to choose by at the prompt's end; heads wrap, and indexes begin, with what is decoded."""
    cache, total = make_cache(settings_of(name)), 230
    request = Request(cache, 1, 0, total, scattered_slots(total, 9), 4)
    request.start()
    prefill([request], [(0, 0)])
    for length in range(1, total + 1):
        out = decode([request], [length])
        for layer in range(LAYERS):
            wanted = expect(request, layer, length - 1, whole=False)
            torch.testing.assert_close(out[layer, 0], wanted, atol=1e-5, rtol=1e-4)
    assert not request.ws.exact(total)
    cache.finish(1)
    cache.check_integrity()
