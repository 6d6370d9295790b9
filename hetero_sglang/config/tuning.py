"""What may change while a server runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hetero_sglang.errors import HeteroError

LONGEST = 1 << 20  # steps between two looks


@dataclass
class Tuning:
    """Read before every step by all who look for rows; owned by the thread that runs them."""

    drift_threshold: float  # the share of its pivot's attention below which a satellite is refilled
    monitor_interval: int  # decode steps between two looks
    retrieval: bool = True  # rows come while requests decode

    def changed(self, change: Any, fixed: Mapping[str, str]) -> "Tuning":
        """Another with the values of `change`, an object of some of these fields; `fixed`: why some may not change.

        Raises HeteroError for what is no such object, or what is out of range; nothing has changed then."""
        names = ", ".join(NAMES)
        if not isinstance(change, dict):
            raise HeteroError(f"the body is {_kind(change)}; give an object of one or more of {names}.")
        if not change:
            raise HeteroError(f"the body names no field; give one or more of {names}.")
        for name, value in change.items():
            if name not in NAMES:
                raise HeteroError(f"there is no field {_shown(name)}; give one or more of {names}.")
            if name in fixed:
                raise HeteroError(f"{name} cannot change while this server runs: {fixed[name]}.")
            _CHECKS[name](value)
        return replace(self, **{name: type(getattr(self, name))(value) for name, value in change.items()})

    def take(self, other: "Tuning") -> None:
        """Become the other."""
        vars(self).update(asdict(other))


NAMES = tuple(field.name for field in fields(Tuning))


def _check_threshold(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise HeteroError(f"drift_threshold is {_kind(value)}; give a number above 0, up to 1.")
    if not 0 < value <= 1:  # false for NaN too
        raise HeteroError(
            f"drift_threshold {_shown(value)} is not in (0, 1]; give one that is, or set retrieval to false."
        )


def _check_interval(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise HeteroError(f"monitor_interval is {_kind(value)}; give a whole number from 1 to {LONGEST}.")
    if not 1 <= value <= LONGEST:
        raise HeteroError(f"monitor_interval {_shown(value)} is not from 1 to {LONGEST}; give one that is.")


def _check_retrieval(value: Any) -> None:
    if not isinstance(value, bool):
        raise HeteroError(f"retrieval is {_kind(value)}; give true or false.")


_CHECKS = {
    "drift_threshold": _check_threshold,
    "monitor_interval": _check_interval,
    "retrieval": _check_retrieval,
}


def _kind(value: Any) -> str:
    """What a value of JSON is, for people."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _shown(value: Any) -> str:
    """A value in a few characters; of a whole number too long to write, its size."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"of {value.bit_length()} bits"
    return repr(value)[:40]
