"""A head profile as an operator wants to see it: small, and without what only the engine reads."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import IndexPlan
from hetero_sglang.profile.roles import Role


def outline(profile: HeadProfile, about: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of roles, floor, thresholds and index; `about`: the provenance of the file that it came from."""
    return {
        "layers": profile.num_layers,
        "kv_heads": profile.num_kv_heads,
        "query_heads": profile.num_query_heads,
        "head_dim": profile.head_dim,
        "floor": profile.floor,
        "roles": _counts(role for layer in profile.layers for role in layer.roles),
        "roles_by_layer": [_counts(layer.roles) for layer in profile.layers],
        "letters": {role.letter: role.value for role in Role},
        "matrix": ["".join(role.letter for role in layer.roles) for layer in profile.layers],
        "thresholds": {"stable": about.get("tau_stable"), "similar": about.get("tau_sim")},
        "index": None if profile.index is None else _index(profile.index),
        "model": about.get("model") or about.get("imported_from"),
        "fingerprint": about.get("fingerprint"),
    }


def _counts(roles: Any) -> dict[str, int]:
    found = Counter(roles)
    return {role.value: found[role] for role in Role}


def _index(index: IndexPlan) -> dict[str, Any]:
    """`every`: by layer, in one of how many steps each head finds rows; 0: it has no index."""
    return {
        "fields": [{"directions": count, "bits": bits} for count, bits in index.fields],
        "row_bytes": index.row_bytes,
        "heads": int(index.probed.sum()),
        "heads_in_a_step": index.in_a_step,
        "run": index.run.tolist(),
        "every": ["".join(map(str, layer)) for layer in index.every.tolist()],
    }
