"""The hashes of the files that patches touch; run as a script after a patch was changed, it writes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

from hetero_sglang.patching import series
from hetero_sglang.patching.hashes import Pair, encode
from hetero_sglang.sglang.version import TESTED

sys.path.append(str(Path(__file__).parents[1]))  # as pytest has it
from released import source  # noqa: E402


def render(release: str) -> str:
    """From a release's source, which must be as released."""
    root, made = source(release), series.patched(source(release), release)
    pairs = {}
    for path in sorted(made, key=lambda path: ((root / path).exists(), path)):
        before = series.digest((root / path).read_bytes()) if (root / path).exists() else None
        pairs[path] = Pair(before, series.digest(made[path]))
    return encode(pairs)


if __name__ == "__main__":
    for each in TESTED:
        (series.folder(each) / series.HASHES).write_text(render(each))
