"""A document that may hold plain entries, restated entries and chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import ENTRY_TOKENS, Document, Entries
from .language import Language
from .statements import Statements, lay_out, spread
from .token_table import TokenTable
from .vocabulary import NAMES, NUMBERS

Link = tuple[str, str]  # number, next name


@dataclass(frozen=True)
class MixedDocument(Document):
    """A document whose `entries` map each name to its latest two numbers, in order of first appearance.

    Names in `entries` can be asked for as in any document; `links` are asked for by chain questions.
    """

    links: Mapping[str, Link]  # in order of appearance; rings, so every next name is a key too
    updated: frozenset[str]  # names of `entries` that were stated more than once


def mixed_document(
    language: Language,
    seed: int,
    tokens: int,
    *,
    entries: int = 0,
    updated: int = 0,
    statements: int = 2,
    chains: int = 0,
    chain_length: int = 16,
    gap: int | None = None,
) -> MixedDocument:
    """Return a document of exactly `tokens` ids, bos included.

    It states `entries` names once, `updated` names `statements` times each with new numbers, and `chains` rings
    of `chain_length` links, shuffled and spread uniformly or, with `gap`, over one stretch with that many filler
    tokens per statement, at a random place (0: they touch). Raises HeteroError for sizes that cannot be.
    """
    if min(entries, updated, chains) < 0 or statements < 2 or chain_length < 2 or (gap is not None and gap < 0):
        raise HeteroError(
            "Entries, chains and gaps must be 0 or more, statements per name and chain lengths 2 or more."
        )
    if seed < 0:
        raise HeteroError(f"Seed {seed} is negative: pass 0 or more.")
    rng = np.random.default_rng(seed)
    told = Statements.draw(rng, entries, [chain_length] * chains, [statements] * updated)
    filler = tokens - 1 - ENTRY_TOKENS * len(told)
    if filler < 0:
        raise HeteroError(
            f"{len(told)} entries need {tokens - filler} tokens, not {tokens}: ask for a longer document."
        )
    gaps = spread(rng, filler, len(told), None if gap is None else gap * len(told))
    body, _ = lay_out(gaps, TokenTable.build(language).rows(told), language.filler.cuts(rng, gaps))
    ids = body.tolist()
    return MixedDocument(language.decode(ids), [language.bos, *ids], *_read(told))


def chain_document(
    language: Language, seed: int, tokens: int, chains: int = 1, length: int = 16, entries: int = 0
) -> MixedDocument:
    """Return a document with `chains` rings of `length` links each, and `entries` plain entries among them."""
    return mixed_document(language, seed, tokens, chains=chains, chain_length=length, entries=entries)


def updated_document(
    language: Language, seed: int, tokens: int, updated: int, statements: int = 2, entries: int = 0
) -> MixedDocument:
    """Return a document with `updated` names stated `statements` times, and `entries` plain entries among them."""
    return mixed_document(language, seed, tokens, updated=updated, statements=statements, entries=entries)


def _read(told: Statements) -> tuple[Entries, dict[str, Link], frozenset[str]]:
    """Entries, links and the names that were stated again."""
    entries: Entries = {}
    links: dict[str, Link] = {}
    updated: set[str] = set()
    for index, first, second, link in zip(told.names, told.first, told.second, told.links, strict=True):
        name = NAMES[index]
        if link:
            links[name] = (NUMBERS[first], NAMES[second])
            continue
        if name in entries:
            updated.add(name)
        entries[name] = (NUMBERS[first], NUMBERS[second])
    return entries, links, frozenset(updated)
