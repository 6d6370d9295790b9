"""What a head profile of an adapter's own may say while others are served: how many rows each head keeps.

Which heads are resident, who watches for whom and how keys are indexed is one layout for all requests: the model's."""

from dataclasses import replace

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles, scale_weights
from hetero_sglang.profile.thresholds import stability_weights


def with_shares_of(adapter: HeadProfile, model: HeadProfile) -> HeadProfile:
    """The model's heads and roles, with each compressed head's weight by the adapter's measurements, or by its roles
    where they leave the same heads resident. Raises HeteroError where neither tells."""
    held = [layer.compressed for layer in model.layers]
    if adapter.measurements is not None:
        found = np.zeros((model.num_layers, model.num_kv_heads))
        some = np.array([[head in heads for head in range(model.num_kv_heads)] for heads in held])
        found[some] = stability_weights(adapter.measurements.stability[some])
        weights = found.tolist()
    elif [layer.compressed for layer in adapter.layers] == held:
        weights = [list(layer.weights) for layer in adapter.layers]
    else:
        other = sum(len(set(mine) ^ set(layer.compressed)) for mine, layer in zip(held, adapter.layers, strict=True))
        raise HeteroError(
            f"it makes {other} other heads resident than the model's, has no measurements to tell their shares by, and "
            f"what is resident is one layout for all requests; make it with `hetero-sglang profile`."
        )
    made = zip(model.layers, weights, strict=True)
    return replace(model, layers=scale_weights(tuple(LayerRoles(a.roles, tuple(w), a.pivots) for a, w in made)))


def with_index_shares_of(adapter: HeadProfile, model: HeadProfile) -> HeadProfile:
    """The same where heads find rows by a key index and none is resident: by the weights of the adapter's index.
    Raises HeteroError where it has none."""
    if adapter.index is None or model.index is None:
        raise HeteroError(
            "it has no key index, which says how many rows each head keeps; make it with `hetero-sglang profile`."
        )
    assert model.num_query_heads is not None and model.head_dim is not None
    shape = model.num_layers, model.num_kv_heads, model.num_query_heads, model.head_dim
    return alike(*shape, replace(model.index, weight=adapter.index.weight))
