"""What admission costs a pass over a long queue, in microseconds of the scheduler's thread.

Counts alone: no model, no server. The queue's requests all fit, so that every one is asked about; `first`: nothing
is known of them yet, `again`: they were asked about at an earlier pass.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import results
from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.sizes import Shape, Sizes
from hetero_sglang.config.settings import resolve
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.profile.files import load_profile

SHAPE = Shape(128, 128, 2)


def passes(profile: Path, ranks: int, waiting: int, rounds: int) -> dict[str, object]:
    """Milliseconds of the first pass and the median of later ones, over `waiting` requests of 200 to 9,700 tokens."""
    options: dict[str, Any] = {
        "policy": HeteroCache(),
        "window": 64,
        "sink": 4,
        "dense_below": None,
        "drift_threshold": 0.9,
        "monitor_interval": 4,
    }
    settings = resolve(load_profile(profile), keep_ratio=0.25, size=ranks, **options)
    pages = [Sizes(SHAPE, layout, settings.rule.page_size, 4_000_000).hot_pages for layout in settings.ranks]
    books = Admission(settings.rule, [layout.fractions for layout in settings.ranks], pages)
    took = []
    for _ in range(rounds):
        begin, promised = time.perf_counter(), np.zeros_like(books.free)
        for index in range(waiting):
            grant = books.grant(200 + 37 * index, 128)
            books.exact(grant, grant.prompt)  # as prefix matching asks
            if books.fits(grant, promised):
                promised = promised + books.demand(grant)
        took.append(1e3 * (time.perf_counter() - begin))
    return {"ranks": ranks, "waiting": waiting, "first_ms": took[0], "again_ms": median(took[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admission", description=__doc__)
    parser.add_argument("--profile", type=Path, required=True, help="a head profile")
    parser.add_argument("--waiting", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    rows = [passes(given.profile, ranks, given.waiting, given.rounds) for ranks in (1, 2, 8)]
    for row in rows:
        print(f"{row['ranks']} ranks: first pass {row['first_ms']:.1f} ms, later ones {row['again_ms']:.1f} ms")
    print("saved", results.save("admission", {"rows": rows}))


if __name__ == "__main__":
    main()
