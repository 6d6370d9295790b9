"""The hashes of the files that patches touch; run as a script after a patch was changed, it writes them anew."""

from __future__ import annotations

from hetero_sglang.patching import series
from hetero_sglang.patching.command import installed
from hetero_sglang.patching.hashes import Pair, encode


def render() -> str:
    """From the installed SGLang, which must be as released."""
    root, made = installed(), series.patched(installed())
    pairs = {}
    for path in sorted(made, key=lambda path: ((root / path).exists(), path)):
        before = series.digest((root / path).read_bytes()) if (root / path).exists() else None
        pairs[path] = Pair(before, series.digest(made[path]))
    return encode(pairs)


if __name__ == "__main__":
    (series.folder() / series.HASHES).write_text(render())
