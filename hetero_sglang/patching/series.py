"""The shipped patches for every release of SGLang that is served, and the hashes of the files they touch."""

import hashlib
from pathlib import Path

from hetero_sglang.patching import unified_diff
from hetero_sglang.patching.hashes import Hashes, read

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside a wheel, and in a source tree.
SHIPPED = (_PACKAGE / "patching" / "patches", _PACKAGE.parent / "patches")
HASHES = "sha256.json"


def folder(release: str) -> Path:
    """Where the patches for a release lie."""
    return next(place / release for place in SHIPPED if (place / release).is_dir())


def hashes(release: str) -> Hashes:
    """Of the files that a release's patches touch."""
    return read(folder(release) / HASHES)


def patched(root: Path, release: str) -> dict[str, bytes]:
    """What files below `root` hold once every patch for a release is applied, by path; nothing is written. Raises
    HeteroError where a patch does not fit."""
    texts: dict[str, str] = {}
    for patch in sorted(folder(release).glob("*.patch")):
        for diff in unified_diff.parse(patch.read_bytes().decode()):
            if not diff.creates and diff.path not in texts:
                texts[diff.path] = (root / diff.path).read_bytes().decode()
            texts[diff.path] = unified_diff.apply(diff, texts.get(diff.path))
    return {path: text.encode() for path, text in texts.items()}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
