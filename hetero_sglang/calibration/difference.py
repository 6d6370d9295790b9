"""How much two head profiles of one model disagree."""

from collections import Counter

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile

_SHOWN = 20


def difference(one: HeadProfile, other: HeadProfile) -> str:
    """As text: counts, kinds of change, the heads, and the numbers behind them.

    Raises HeteroError for profiles of differently shaped models."""
    if (one.num_layers, one.num_kv_heads) != (other.num_layers, other.num_kv_heads):
        raise HeteroError(
            f"one profile has {one.num_layers} layers of {one.num_kv_heads} heads and the other {other.num_layers} of "
            f"{other.num_kv_heads}; compare profiles of the same model."
        )
    changed = [
        (layer, head, a, b)
        for layer, (x, y) in enumerate(zip(one.layers, other.layers, strict=True))
        for head, (a, b) in enumerate(zip(x.roles, y.roles, strict=True))
        if a is not b
    ]
    same = one.num_heads - len(changed)
    lines = [
        f"{same} of {one.num_heads} heads ({same / one.num_heads:.1%}) have the same role; "
        f"{one.num_resident} and {other.num_resident} are resident"
    ]
    kinds = Counter((a, b) for _, _, a, b in changed)
    lines += [f"  {n} from {a} to {b}" for (a, b), n in kinds.most_common()]
    first, second = one.measurements, other.measurements
    for layer, head, a, b in changed[:_SHOWN]:
        line = f"  layer {layer} head {head}: {a} -> {b}"
        if first is not None and second is not None:
            line += f" (stability {first.stability[layer, head]:.3f} -> {second.stability[layer, head]:.3f})"
        lines.append(line)
    if len(changed) > _SHOWN:
        lines.append(f"  and {len(changed) - _SHOWN} more")
    if first is not None and second is not None:
        for noun in ("stability", "similarity"):
            gap = np.abs(getattr(first, noun) - getattr(second, noun))
            lines.append(f"{noun} differs by {gap.mean():.3f} on average, {gap.max():.3f} at most")
    return "\n".join(lines)
