"""Random profiles, planted attention and tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from hetero_sglang.profile.head_profile import NO_PIVOT, HeadProfile, LayerRoles, scale_weights
from hetero_sglang.profile.index_plan import Fields, IndexPlan
from hetero_sglang.profile.roles import Role

ROLE_LETTERS = {"P": Role.PIVOT, "s": Role.SATELLITE, "a": Role.ANCHOR, "V": Role.VOLATILE}


def layer_of(letters: str, weight: float = 1.0) -> LayerRoles:
    """`"Psa"`: every satellite follows the layer's first pivot; all weights alike."""
    roles = tuple(ROLE_LETTERS[letter] for letter in letters)
    first = letters.find("P")
    pivots = tuple(h if r is Role.PIVOT else first if r is Role.SATELLITE else NO_PIVOT for h, r in enumerate(roles))
    return LayerRoles(roles, tuple(0.0 if r.resident else weight for r in roles), pivots)


def profile_of(*layers: str, **fields: Any) -> HeadProfile:
    """A profile of layers in letters."""
    heads = len(layers[0])
    given = {"num_query_heads": 2 * heads, "head_dim": 64} | fields
    return HeadProfile(len(layers), heads, layers=tuple(layer_of(letters) for letters in layers), **given)


def index_of(
    layers: int, heads: int, dim: int, fields: Fields, run: int | tuple[int, ...] = 1, seed: int = 0
) -> IndexPlan:
    """A random key index in numbers that float16 holds."""
    rng = np.random.default_rng(seed)
    directions = sum(count for count, _ in fields)

    def table(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(np.float16).astype(np.float32)

    whole = (layers, heads, dim, directions)
    return IndexPlan(fields, table(*whole), table(layers, heads, directions), table(*whole), run)


@st.composite
def profiles(draw: st.DrawFn, max_layers: int = 4, max_heads: int = 8) -> HeadProfile:
    """Any valid profile, weights of mean 1."""
    count = draw(st.integers(1, max_layers))
    heads = draw(st.integers(1, max_heads))
    layers = []
    for _ in range(count):
        kinds = draw(st.lists(st.sampled_from("PsaV"), min_size=heads, max_size=heads))
        if "P" not in kinds:
            kinds = ["a" if kind == "s" else kind for kind in kinds]
        roles = tuple(ROLE_LETTERS[kind] for kind in kinds)
        centres = [h for h, role in enumerate(roles) if role is Role.PIVOT]
        pivots = [NO_PIVOT] * heads
        weights = [0.0] * heads
        for h, role in enumerate(roles):
            if role is Role.PIVOT:
                pivots[h] = h
            elif role is Role.SATELLITE:
                pivots[h] = draw(st.sampled_from(centres))
            if not role.resident:
                weights[h] = draw(st.floats(0.05, 5.0))
        layers.append(LayerRoles(roles, tuple(weights), tuple(pivots)))
    return HeadProfile(count, heads, 2 * heads, 64, scale_weights(tuple(layers)))


class PlantedLayer:
    """Scores [heads, L] per step of heads whose roles are known.

    One centre with copies that each share 63% of its keys; anchors and volatile heads elsewhere. Stable heads
    keep 95% of their keys at every step, volatile ones draw new keys every step."""

    LENGTH, TOPK = 1024, 100

    def __init__(self, heads: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        copies = max(2, heads // 3)
        volatile = max(1, heads // 4)
        letters = ["P", *"s" * copies, *"V" * volatile]
        letters += "a" * (heads - len(letters))
        order = self._rng.permutation(heads)
        self.roles = [ROLE_LETTERS[letters[i]] for i in order]
        self.centre = self.roles.index(Role.PIVOT)
        self._sets = [self._draw() for _ in range(heads)]
        for head, role in enumerate(self.roles):
            if role is Role.SATELLITE:
                self._sets[head] = self._vary(self._sets[self.centre], 0.63)

    def step(self) -> torch.Tensor:
        """Scores of one step; every call is another step."""
        scores = self._rng.random((len(self.roles), self.LENGTH), dtype=np.float32)  # noise in [0, 1)
        for head, role in enumerate(self.roles):
            keys = self._draw() if role is Role.VOLATILE else self._vary(self._sets[head], 0.95)
            scores[head, keys] += 1.0
        return torch.from_numpy(scores)

    def _draw(self) -> np.ndarray:
        return self._rng.choice(self.LENGTH, self.TOPK, replace=False)

    def _vary(self, keys: np.ndarray, kept: float) -> np.ndarray:
        stay = self._rng.permutation(keys)[: round(kept * len(keys))]
        others = self._rng.permutation(np.setdiff1d(np.arange(self.LENGTH), keys))
        return np.concatenate([stay, others[: len(keys) - len(stay)]])


def edit_json(path: Path, **changes: Any) -> Path:
    """Changes top-level fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path
