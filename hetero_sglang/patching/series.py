"""The shipped patches for one SGLang release, and the hashes of the files they touch."""

import hashlib
from pathlib import Path

from hetero_sglang.patching import unified_diff
from hetero_sglang.patching.hashes import Hashes, read

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside a wheel, and in a source tree.
SHIPPED = (_PACKAGE / "patching" / "patches", _PACKAGE.parent / "patches")
HASHES = "sha256.json"
RELEASE = "0.5.17"  # the one that has patches


def folder() -> Path:
    """Where the patches lie."""
    return next(place / RELEASE for place in SHIPPED if (place / RELEASE).is_dir())


def hashes() -> Hashes:
    """Of the files that the patches touch."""
    return read(folder() / HASHES)


def patched(root: Path) -> dict[str, bytes]:
    """What files below `root` hold once every patch is applied, by path; nothing is written. Raises HeteroError where
    a patch does not fit."""
    texts: dict[str, str] = {}
    for patch in sorted(folder().glob("*.patch")):
        for diff in unified_diff.parse(patch.read_bytes().decode()):
            if not diff.creates and diff.path not in texts:
                texts[diff.path] = (root / diff.path).read_bytes().decode()
            texts[diff.path] = unified_diff.apply(diff, texts.get(diff.path))
    return {path: text.encode() for path, text in texts.items()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
