"""How much two head profiles of one model disagree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.roles import Role

_SHOWN = 20


@dataclass(frozen=True)
class Difference:
    """Heads whose role changed, as (layer, head, role in one, role in other)."""

    heads: int
    changed: tuple[tuple[int, int, Role, Role], ...]
    resident: tuple[int, int]

    @property
    def agreement(self) -> float:
        """Share of heads with the same role in both."""
        return 1.0 - len(self.changed) / self.heads


def difference(one: HeadProfile, other: HeadProfile) -> Difference:
    """Raises HeteroError for profiles of differently shaped models."""
    shapes = [(p.num_layers, p.num_kv_heads) for p in (one, other)]
    if shapes[0] != shapes[1]:
        raise HeteroError(
            f"one profile has {shapes[0][0]} layers of {shapes[0][1]} heads and the other {shapes[1][0]} of "
            f"{shapes[1][1]}; compare profiles of the same model."
        )
    changed = [
        (layer, head, a, b)
        for layer, (x, y) in enumerate(zip(one.layers, other.layers, strict=True))
        for head, (a, b) in enumerate(zip(x.roles, y.roles, strict=True))
        if a is not b
    ]
    return Difference(one.num_heads, tuple(changed), (one.num_resident, other.num_resident))


def describe(found: Difference, one: HeadProfile, other: HeadProfile) -> str:
    """The difference as text: counts, kinds of change, the heads, and the numbers behind them."""
    same = found.heads - len(found.changed)
    lines = [
        f"{same} of {found.heads} heads ({found.agreement:.1%}) have the same role; "
        f"{found.resident[0]} and {found.resident[1]} are resident"
    ]
    kinds = Counter((a, b) for _, _, a, b in found.changed)
    lines += [f"  {n} from {a.value} to {b.value}" for (a, b), n in kinds.most_common()]
    for layer, head, a, b in found.changed[:_SHOWN]:
        lines.append(f"  layer {layer} head {head}: {a.value} -> {b.value}{_stability(one, other, layer, head)}")
    if len(found.changed) > _SHOWN:
        lines.append(f"  and {len(found.changed) - _SHOWN} more")
    first, second = one.measurements, other.measurements
    if first is not None and second is not None:
        for noun, gap in (
            ("stability", first.stability - second.stability),
            ("similarity", first.similarity - second.similarity),
        ):
            lines.append(f"{noun} differs by {np.abs(gap).mean():.3f} on average, {np.abs(gap).max():.3f} at most")
    return "\n".join(lines)


def _stability(one: HeadProfile, other: HeadProfile, layer: int, head: int) -> str:
    if one.measurements is None or other.measurements is None:
        return ""
    a, b = (p.measurements.stability[layer, head] for p in (one, other) if p.measurements is not None)
    return f" (stability {a:.3f} -> {b:.3f})"
