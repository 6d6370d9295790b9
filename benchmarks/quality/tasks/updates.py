"""Updated entries: names that are stated again with new numbers; the latest count."""

from __future__ import annotations

from benchmarks.recall import Language, ask_updated, default_entries, updated_document

from ..questions import ask_names
from ..script import Script
from .task import Task


def build(language: Language, length: int, seed: int, names: int) -> Script:
    """One question of `names` names, each stated twice among entries that are stated once."""
    statements = max(3 * names, default_entries(length))
    updated = statements // 3
    document = updated_document(language, seed, length, updated, entries=statements - 2 * updated)
    asked = ask_updated(language, document, seed, names).names
    return Script([[ask_names(language, document, asked, document.ids)]], language.token["\n"])


TASK = Task("updates", build, points=({"names": 8},), reduced=({"names": 8},))
