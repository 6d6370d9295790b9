"""JSON objects from files that nobody vouches for: bounded before they are read, refused in one sentence."""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from hetero_sglang.errors import HeteroError

# Half of it is the profile of 40 layers of 40 KV heads of 128 dimensions with its key index and measurements.
MOST_BYTES = 80 << 20
MOST_PARTS = 2 << 20  # lists, objects and commas: twice those of that profile; each may cost a hundred bytes
MOST_DIGITS = 20  # those of a 64-bit number


def check_file(path: str | Path, noun: str) -> None:
    """Raises HeteroError unless `path`, called `noun`, is a regular file of a size that can be read."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise HeteroError(f"{noun} {path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise HeteroError(f"{noun} {str(path)!r} cannot be read: {_reason(error)}; check the path.") from None
    if stat.S_ISDIR(found.st_mode):
        raise HeteroError(f"{noun} {path} is a directory; give a file.")
    if not stat.S_ISREG(found.st_mode):
        raise HeteroError(f"{noun} {path} is no regular file; give one.")
    if found.st_size > MOST_BYTES:
        raise HeteroError(
            f"{noun} {path} holds {found.st_size} bytes and none has more than {MOST_BYTES}; give another file."
        )


def read_object(path: str | Path, noun: str = "the head profile", strict: bool = True) -> dict[str, Any]:
    """The JSON object in a file. Raises HeteroError naming the file and the place.

    strict: names given twice, NaN, Infinity and numbers beyond 64 bits are refused; others' files may hold them."""
    check_file(path, noun)
    with naming(f"{noun} {path}", mark=""):
        try:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)  # files of /proc grow as they are read
        except OSError as error:
            raise HeteroError(f"cannot be read: {_reason(error)}.") from None
        return _object_in(content, strict)


@contextmanager
def naming(place: str, mark: str = ":") -> Iterator[None]:
    """Inside, a HeteroError's sentence begins with the place that it speaks of."""
    try:
        yield
    except HeteroError as error:
        raise HeteroError(f"{place}{mark} {error}") from None


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; `true` is none."""
    return type(value) is int


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number; `true` is none."""
    return type(value) in (int, float)


def _object_in(content: bytes, strict: bool) -> dict[str, Any]:
    if len(content) > MOST_BYTES:
        raise HeteroError(f"does not end within {MOST_BYTES} bytes; give another file.")
    if (parts := sum(content.count(mark) for mark in b"[{,")) > MOST_PARTS:
        raise HeteroError(f"holds {parts} parts and none has more than {MOST_PARTS}; give another file.")
    try:
        data = json.loads(content.decode("utf-8"), **(_STRICT if strict else {}))
    except HeteroError:
        raise
    except UnicodeDecodeError:
        raise HeteroError("is not UTF-8 text; give a JSON file.") from None
    except json.JSONDecodeError as error:
        raise HeteroError(f"is not JSON: line {error.lineno}, {error.msg}.") from None
    except RecursionError:
        raise HeteroError("is nested too deeply to be one.") from None
    except ValueError:
        raise HeteroError("holds a number of too many digits.") from None
    if not isinstance(data, dict):
        raise HeteroError(f"holds a {type(data).__name__}; it must be a JSON object.")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise HeteroError(f"gives {name[:40]!r} twice in one object; one must go.")
        found[name] = value
    return found


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise HeteroError(f"holds a whole number of {len(text)} digits; {MOST_DIGITS} are the most.")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise HeteroError(f"holds {text[:40]}, which is too large for a number or is none in JSON.")
    return value


_STRICT: dict[str, Any] = {
    "object_pairs_hook": _object,
    "parse_int": _whole,
    "parse_float": _finite,
    "parse_constant": _finite,
}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
