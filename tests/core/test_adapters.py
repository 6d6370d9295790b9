"""Two adapters never share rows, and each request's heads have the shares of rows that are its adapter's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from core_helpers import make_cache, make_settings, random_profile
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.parking import Parking
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles, scale_weights

SALTS = st.sampled_from((None, "", "a", "b", "xa"))
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12).map(np.array)


@given(st.lists(st.tuples(TOKENS, SALTS), max_size=12), TOKENS, SALTS, st.integers(0, 3))
def test_a_set_is_found_as_if_there_were_none_of_another_salt(sets, tokens, salt, slack) -> None:
    every, own = Parking(slack), Parking(slack)
    for held, its_salt in sets:
        ws = SimpleNamespace(length=len(held))
        every.add(ws, held, its_salt)
        if its_salt == salt:
            own.add(ws, held, its_salt)
    found, wanted = every.find(tokens, salt), own.find(tokens, salt)
    assert (found and found.ws) is (wanted and wanted.ws)


def reweighted(profile: HeadProfile, seed: int) -> HeadProfile:
    rng = random.Random(seed)
    layers = (replace(each, weights=tuple(w * rng.uniform(0.5, 2) for w in each.weights)) for each in profile.layers)
    return replace(profile, layers=scale_weights(tuple(layers)))


@given(seed=st.integers(0, 10_000), prompt=st.integers(1, 900), new=st.integers(1, 400))
def test_a_request_has_the_rows_that_its_adapter_s_profile_would_give_the_model(
    seed: int, prompt: int, new: int
) -> None:
    profile = random_profile(seed)
    other = reweighted(profile, seed)
    options = {"keep_ratio": (profile.floor + 1) / 2, "dense_below": 256}
    both = make_settings(profile, adapters={"a": other}, **options)
    cache = make_cache(both, slots=10, pages=20000)
    for shares, each in enumerate((profile, other)):
        wanted = make_settings(each, **options).rule
        grant = cache.admission.grant(prompt, new, shares=shares)
        rows = wanted.rows(wanted.grant(prompt, new))
        assert cache.start(shares, grant).rows.caps.tolist() == rows.caps.tolist()
        grown = both.rule.grown(grant, both.rule.rows(grant))[1].caps
        assert grown.tolist() == wanted.grown(wanted.grant(prompt, new), rows)[1].caps.tolist()
    cache.check_integrity()


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99), size=st.sampled_from((1, 2)))
def test_an_adapter_s_heads_keep_as_much_as_the_model_s_on_every_rank(seed: int, share: float, size: int) -> None:
    profile = random_profile(seed)
    other = reweighted(profile, seed)
    ratio = profile.floor + share * (1 - profile.floor)
    every = [
        make_settings(profile, ratio, adapters={"a": other}, rank=rank, size=size, dense_below=None)
        for rank in range(size)
    ]
    (fractions,) = every[0].adapters
    for settings, mine in zip(every, fractions, strict=True):
        assert settings.rule.adapters == (mine,)
        assert sum(mine) == pytest.approx(sum(settings.layout.fractions)) and max(mine, default=0) <= 1


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("poorest", ["", "a", "b"])
def test_whose_rows_are_too_few_is_said(poorest: str, size: int) -> None:
    """Of the model and two adapters, whose heads keep alike but for one of them."""
    profile = random_profile(5)
    uneven = replace(profile, layers=scale_weights(tuple(starved(profile))))
    by = {name: uneven if name == poorest else profile for name in ("", "a", "b")}
    model = by.pop("")
    whose = f" of adapter {poorest}" if poorest else ""
    with pytest.raises(HeteroError, match=rf"do not fit the smallest cap{whose}, \d+ rows for a prompt"):
        make_settings(model, adapters=by, size=size, dense_below=40)
    make_settings(profile, adapters={"a": profile, "b": profile}, size=size, dense_below=40)


def starved(profile: HeadProfile) -> Iterator[LayerRoles]:
    """The profile's layers with a tenth of its weight for the first head that has one."""
    found = False
    for layer in profile.layers:
        weights = list(layer.weights)
        for head in layer.compressed[: not found]:
            weights[head] /= 10
            found = True
        yield replace(layer, weights=tuple(weights))
