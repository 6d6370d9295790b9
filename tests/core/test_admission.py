"""Laws of the ledger: what plain SGLang admits is admitted, books balance, and retraction asks for nothing more."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_helpers import random_profile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.launch import ROOT
from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.sizes import Shape, Sizes
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.fier import Fier
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.policy.quest import Quest
from hetero_sglang.policy.rocketkv import RocketKV
from hetero_sglang.policy.streamingllm import StreamingLLM
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role

SHAPE = Shape(128, 128, 2)
PLAIN = {
    "policy": HeteroCache(),
    "window": 64,
    "sink": 4,
    "dense_below": None,
    "drift_threshold": 0.9,
    "monitor_interval": 4,
}


def alike(layers: int, heads: int) -> HeadProfile:
    """All heads compressed, as policies without roles have them."""
    layer = LayerRoles((Role.ANCHOR,) * heads, (1.0,) * heads, (-1,) * heads)
    return HeadProfile(layers, heads, heads * 4, 128, (layer,) * layers)


def mixed(layers: int, heads: int, resident: int, seed: int = 0) -> HeadProfile:
    """`resident` of all heads are volatile; the others weigh 0.5 to 2."""
    rng = random.Random(seed)
    whole = set(rng.sample(range(layers * heads), resident))
    weights = [0.0 if i in whole else rng.uniform(0.5, 2) for i in range(layers * heads)]
    mean = sum(weights) / (layers * heads - resident)
    rows = []
    for layer in range(layers):
        mine = range(layer * heads, (layer + 1) * heads)
        roles = tuple(Role.VOLATILE if i in whole else Role.ANCHOR for i in mine)
        rows.append(LayerRoles(roles, tuple(weights[i] / mean for i in mine), (-1,) * heads))
    return HeadProfile(layers, heads, heads * 4, 128, tuple(rows))


# Shapes of the three published profiles and of a 135M checkpoint (heads, of which resident), and the shipped ones.
PROFILES = {
    "llama-3.1-8b": lambda: mixed(32, 8, 50),
    "r1-distill-llama-8b": lambda: mixed(32, 8, 37),
    "qwen2.5-14b": lambda: mixed(48, 8, 80),
    "smollm2-135m": lambda: mixed(30, 3, 32),
    "recall-8m": lambda: load_profile(Path(ROOT / "assets/recall-8m/hetero_profile.json")),
    "recall-chains-8m": lambda: load_profile(Path(ROOT / "assets/recall-chains-8m/hetero_profile.json")),
}
CONTEXT = {"smollm2-135m": 8192, "qwen2.5-14b": 32768}


def ledger(options: Settings, slots: int) -> Admission:
    pages = [Sizes(SHAPE, layout, options.rule.page_size, slots).hot_pages for layout in options.ranks]
    return Admission(options.rule, [layout.fractions for layout in options.ranks], pages)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("ratio", ["floor", 0.3, 0.5, 0.75])
def test_every_prompt_that_plain_sglang_admits_is_admitted(name: str, ratio: str | float) -> None:
    """At every length up to the context, from pools of one context upwards, and whatever it may generate."""
    profile, context = PROFILES[name](), CONTEXT.get(name, 65536)
    keep = profile.floor + 0.02 if ratio == "floor" else float(ratio)
    if keep <= profile.floor:
        pytest.skip("below this profile's floor")
    size = next(n for n in (2, 1) if profile.num_kv_heads % n == 0)
    for slots in (context, context + 4096, 3 * context):
        books = ledger(resolve(profile, keep_ratio=keep, size=size, **PLAIN), slots)
        books.check_longest(context)
        empty = Admission(books.rule, [books.rule.fractions], [10**9])
        edge = min(books.rule.dense_below - 1, context - 4)
        for prompt in {*range(1, context - 3, 997), context // 2, context - 4, edge}:
            for new in (1, 128, context):
                new = min(new, context - prompt - 3)  # SGLang's own bound
                grant = books.grant(prompt, new)
                assert books.fits(books.demand(grant)), (prompt, new, grant)
                if grant.whole != books.rule.grant(prompt, new).whole:
                    whole = replace(grant, whole=True)
                    wanted = books.demand(whole)
                    assert not books.fits(wanted) and empty.fits(wanted), "compressed although its whole rows fit"


@given(
    seed=st.integers(0, 500),
    size=st.sampled_from((1, 2, 4)),
    keep=st.floats(0.02, 1),
    slots=st.integers(300, 20_000),
    window=st.integers(1, 300),
    policy=st.sampled_from((HeteroCache(), StreamingLLM(), Quest(), Fier(), RocketKV())),
    data=st.data(),
)
def test_where_start_up_allows_the_longest_request_every_request_fits(
    seed: int, size: int, keep: float, slots: int, window: int, policy: object, data: st.DataObject
) -> None:
    profile = alike(3, 4) if policy.index or not policy.roles else random_profile(seed)
    ratio = profile.floor + (1 - profile.floor) * keep
    options = {**PLAIN, "window": window, "keep_ratio": ratio, "size": size, "policy": policy}
    try:
        books = ledger(resolve(profile, **options), slots)
        books.check_longest(slots)
    except HeteroError:
        assume(False)
    for _ in range(10):
        prompt = data.draw(st.integers(1, slots - 4))
        new = data.draw(st.integers(0, slots - prompt - 3))
        done = data.draw(st.integers(0, max(0, new - 1)))
        assert books.fits(books.demand(books.grant(prompt, new, done)))


def test_a_window_that_leaves_no_room_is_refused_at_start_with_one_that_does() -> None:
    options = {**PLAIN, "dense_below": 1 << 20}
    profile = mixed(30, 3, 32)
    refused = ledger(resolve(profile, keep_ratio=0.375, **{**options, "window": 4096}), 30_000)
    with pytest.raises(HeteroError, match="needs .* hot pages on rank 0") as refusal:
        refused.check_longest(8192)
    legal = int(str(refusal.value).split("--hetero-window to ")[1].split()[0])
    ledger(resolve(profile, keep_ratio=0.375, **{**options, "window": legal}), 30_000).check_longest(8192)


@given(prompt=st.integers(1, 5000), new=st.integers(1, 20_000), share=st.floats(0, 1))
def test_a_retracted_request_asks_for_what_it_held_before(prompt: int, new: int, share: float) -> None:
    """Its rows are those it began with, or those that growing had given it."""
    rule = resolve(random_profile(3), keep_ratio=0.9, **PLAIN).rule
    done = int(share * (new - 1))
    began = rule.grant(prompt, new)
    rows = rule.rows(began)
    while began.final <= prompt + done:
        began, rows = rule.grown(began, rows)
    back = rule.grant(prompt, new, done)
    assert (back.final, back.limit, back.whole) == (began.final, began.limit, began.whole)
    assert back.prompt == prompt + done < back.final
    assert (rule.rows(back).caps == rule.rows(replace(began, prompt=back.prompt)).caps).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 500), size=st.sampled_from((1, 2, 4)), data=st.data())
def test_every_ranks_pool_holds_what_the_common_ledger_promised(seed: int, size: int, data: st.DataObject) -> None:
    """Requests begin, grow and end in any order; working sets of every rank take exactly the promised pages."""
    profile = random_profile(seed)
    keep = profile.floor + (1 - profile.floor) * 0.5
    ranks = [resolve(profile, keep_ratio=keep, rank=r, size=size, **{**PLAIN, "reserve": 64}) for r in range(size)]
    books = [ledger(options, 3000) for options in ranks]
    pools = [HotPool(int(books[0].pages[r]), 16, 2, 2, torch.float32, "cpu") for r in range(size)]
    live: dict[int, list[WorkingSet]] = {}
    for slot in range(data.draw(st.integers(1, 25))):
        prompt, new = data.draw(st.integers(1, 2000)), data.draw(st.integers(0, 3000))
        grants = [book.grant(prompt, new) for book in books]
        allowed = [book.fits(book.demand(grant)) for book, grant in zip(books, grants, strict=True)]
        assert len(set(grants)) == 1 and len(set(allowed)) == 1
        if allowed[0]:
            for book in books:
                book.open(slot, grants[0])
            live[slot] = [WorkingSet(pools[r], ranks[r].rule, grants[0]) for r in range(size)]
        if live and data.draw(st.booleans()):
            other = data.draw(st.sampled_from(sorted(live)))
            grown = [book.grow(other) for book in books]
            assert len(set(grown)) == 1
            if grown[0]:
                for ws in live[other]:
                    ws.grow()
        if live and data.draw(st.booleans()):
            other = data.draw(st.sampled_from(sorted(live)))
            for ws in live.pop(other):
                ws.release()
            for book in books:
                book.close(other)
        for rank, (book, pool) in enumerate(zip(books, pools, strict=True)):
            book.check_integrity(rank, pool.available)


def test_a_queue_is_asked_about_at_every_pass_and_computed_once() -> None:
    """A pass over 256 waiting requests looks their pages up; benchmarks/admission.py tells the time."""
    books = ledger(resolve(PROFILES["llama-3.1-8b"](), keep_ratio=0.25, **PLAIN), 400_000)
    for _ in range(3):
        for index in range(256):
            books.fits(books.demand(books.grant(200 + 37 * index, 128)))
    asked = books._begin.cache_info()
    assert asked.misses <= 2 * 256 and asked.hits >= 2 * 256
