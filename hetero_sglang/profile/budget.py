"""Device tokens of each compressed head at a keep ratio (HeteroCache, budget allocation)."""

from itertools import accumulate

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile


def base_fraction(profile: HeadProfile, keep_ratio: float) -> float:
    """(rH - R)/(H - R): share of its tokens that a compressed head of weight 1 keeps on the device.

    Raises HeteroError when `keep_ratio` is not in (R/H, 1]; with no compressed heads only 1 is legal."""
    heads, resident = profile.num_heads, profile.num_resident
    if heads == resident and keep_ratio == 1.0:
        return 1.0
    if not profile.floor < keep_ratio <= 1.0:
        allowed = "it can only be 1" if heads == resident else f"it must be above {profile.floor:.4f} and at most 1"
        raise HeteroError(
            f"a keep ratio of {keep_ratio:g} is not possible: {resident} of {heads} heads stay resident, "
            f"so {allowed}; choose such a ratio, or profile again with `--target-keep-ratio`."
        )
    return (keep_ratio * heads - resident) / (heads - resident)


def cap_fractions(profile: HeadProfile, keep_ratio: float) -> tuple[tuple[float, ...], ...]:
    """Per layer, per compressed head (ascending): share of its tokens kept on the device, at most 1.

    base * weight; what full heads cannot use goes to the others in proportion to weight, so that the sum is
    rH - R. Raises HeteroError as `base_fraction` does."""
    base = base_fraction(profile, keep_ratio)
    weights = [layer.weights[h] for layer in profile.layers for h in layer.compressed]
    shares = iter(fill(weights, base * len(weights)))
    return tuple(tuple(next(shares) for _ in layer.compressed) for layer in profile.layers)


def fill(weights: list[float], total: float) -> list[float]:
    """Shares proportional to weight, none above 1, that sum to `total` <= len(weights)."""
    if total >= len(weights):
        return [1.0] * len(weights)
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    below = list(accumulate(weights[i] for i in order))  # weight of this head and all lighter ones
    shares = [0.0] * len(weights)
    left = total
    for place in reversed(range(len(order))):
        if weights[order[place]] * left < below[place]:
            # No lighter head can be full either.
            for i in order[: place + 1]:
                shares[i] = left * weights[i] / below[place]
            break
        shares[order[place]] = 1.0
        left -= 1.0
    return shares
