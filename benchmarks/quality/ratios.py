"""Keep ratios from the command line; `floor+0.02` counts from the model's own floor."""

from __future__ import annotations

from collections.abc import Sequence

from hetero_sglang.errors import HeteroError


def parse_ratios(words: Sequence[str], model: str) -> list[float]:
    """Ratios in the order given, each once. Raises HeteroError for one outside 0 to 1, or without a profile."""
    return list(dict.fromkeys(_ratio(word, model) for word in words))


def _ratio(word: str, model: str) -> float:
    base, plus, rest = word.partition("+")
    try:
        ratio = round(_floor(model) + float(rest or 0), 4) if base == "floor" else float(word)
    except HeteroError:
        raise
    except ValueError:
        raise HeteroError(f"Keep ratio {word!r}: write a fraction such as 0.5, or floor+0.02.") from None
    if not 0 < ratio <= 1 or (plus and base != "floor"):
        raise HeteroError(f"Keep ratio {word!r}: pass more than 0 and at most 1.")
    return ratio


def _floor(model: str) -> float:
    from hetero_sglang.profile.files import find_profile, load_profile

    found = find_profile(model)
    if found is None:
        raise HeteroError(
            f"{model} has no head profile, so its floor is unknown; make one with `hetero-sglang profile {model}`, or "
            "write ratios such as 0.5."
        )
    return load_profile(found).floor
