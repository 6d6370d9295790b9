"""The shipped patches of one SGLang release, and the hashes of every file they touch, before and after."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hetero_sglang.patching import unified_diff
from hetero_sglang.sglang.version import TESTED

HASHES = "sha256.json"
_PACKAGE = Path(__file__).resolve().parents[1]
# Inside a wheel, and in a source tree.
SHIPPED = (_PACKAGE / "patching" / "patches", _PACKAGE.parent / "patches")


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of a file as SGLang released it, None: it has no such file, and as the patches leave it."""

    before: str | None
    after: str


Files = dict[str, Hashes]  # by path below the folder that holds the package sglang; those that are created come first


def folder() -> Path:
    """Where the patches for the tested release lie."""
    return next(place / TESTED for place in SHIPPED if (place / TESTED).is_dir())


def patches() -> list[Path]:
    """In the order in which they apply."""
    return sorted(folder().glob("*.patch"))


def files() -> Files:
    """The files that the patches touch."""
    return decode(json.loads((folder() / HASHES).read_text()))


def encode(hashes: Files) -> str:
    """As JSON."""
    return json.dumps({path: [each.before, each.after] for path, each in hashes.items()}, indent=1) + "\n"


def decode(data: dict[str, list[str]]) -> Files:
    """From `encode`'s JSON. Raises ValueError, TypeError or AttributeError for any other."""
    return {path: Hashes(*map(str | None, pair)) for path, pair in data.items()}  # placeholder


def patched(root: Path) -> dict[str, bytes]:
    """The content, by path, that files below `root` have with every patch applied. Raises HeteroError where a
    patch does not fit."""
    content: dict[str, str | None] = {}
    for path in patches():
        for diff in unified_diff.parse(path.read_text()):
            before = content.get(diff.path) if diff.path in content else _read(root / diff.path)
            content[diff.path] = unified_diff.apply(diff, before)
    return {path: text.encode() for path, text in content.items() if text is not None}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
