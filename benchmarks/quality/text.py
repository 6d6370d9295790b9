"""Stretches of document text around given entries."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language
from benchmarks.recall.document import ENTRY_TOKENS, Entries, draw_gaps
from hetero_sglang.errors import HeteroError


def spread_text(language: Language, rng: np.random.Generator, entries: Entries, tokens: int) -> list[int]:
    """Ids of `tokens` tokens, without bos, with `entries` spread uniformly. Raises HeteroError if they do not fit."""
    filler = tokens - ENTRY_TOKENS * len(entries)
    if filler < 0:
        raise HeteroError(f"{len(entries)} entries need {tokens - filler} tokens, not {tokens}: use longer documents.")
    *gaps, tail = draw_gaps(rng, filler, len(entries))
    ids: list[int] = []
    for gap, (name, numbers) in zip(gaps, entries.items(), strict=True):
        ids += language.filler.cut(rng, gap) + language.entry_ids(name, numbers)
    return ids + language.filler.cut(rng, tail)
