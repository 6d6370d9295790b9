"""Chains: each entry names the next one, so no token of the prompt tells which rows the answer will need."""

from __future__ import annotations

from benchmarks.recall import Language, default_entries, mixed_document

from ..questions import ask_links
from ..script import Script
from .task import Task

_RING = 16  # links of a chain, the longest that can be asked for
_PER_RING = 24  # statements of the document per chain; the others are plain entries


def build(language: Language, length: int, seed: int, counts: list[int]) -> Script:
    """`counts` are the entries that the questions ask for, 2 to 16 each; each is asked on its own."""
    statements = max(_PER_RING, default_entries(length))
    chains = statements // _PER_RING
    document = mixed_document(
        language, seed, length, chains=chains, chain_length=_RING, entries=statements - _RING * chains
    )
    steps = [ask_links(language, document, seed + at, count, document.ids) for at, count in enumerate(counts)]
    return Script([[step] for step in steps], language.token["\n"])


TASK = Task("chains", build, points=({"counts": [2, 4, 8, 12, 16]},), reduced=({"counts": [4, 12]},))
