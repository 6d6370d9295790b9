"""SHA-256 of every file that the patches touch: as SGLang released it, and patched."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.json_file import read_object

SHA256 = re.compile(r"[0-9a-f]{64}")


class Pair(NamedTuple):
    """Of one file; `before` is None where the patches create it."""

    before: str | None
    after: str


Hashes = dict[str, Pair]  # by path below the folder that holds the package, those created first


def encode(hashes: Hashes) -> str:
    """As JSON."""
    return json.dumps(hashes, indent=1) + "\n"


def read(path: Path) -> Hashes:
    """Raises HeteroError for a file that `encode` did not write."""
    data = read_object(path, "the list of patched files")
    for name, pair in data.items():
        place = PurePosixPath(name)
        if place.parts[:1] != ("sglang",) or ".." in place.parts or not _is_pair(pair):
            raise HeteroError(f"{path} has no two SHA-256 for {name[:60]!r}; install SGLang anew.")
    return {name: Pair(*pair) for name, pair in data.items()}


def _is_pair(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    before, after = value
    return all(isinstance(x, str) and SHA256.fullmatch(x) for x in (before or after, after))
