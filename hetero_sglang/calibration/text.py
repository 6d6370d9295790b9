"""Generated prose, entries to be found in it, and questions that need them.

The words are those of the recall model, so that it answers; any other has to copy entries just the same."""

from collections.abc import Iterator

import numpy as np

_ADJECTIVES = """
    quiet green broken heavy golden narrow silent bright ancient hollow gentle bitter frozen distant crooked
    patient humble rusty velvet copper amber crimson pale dusty sacred clever noble tired secret wooden
""".split()  # noqa: SIM905
_NOUNS = """
    river garden lantern harbor mountain window bridge engine forest market tower valley island mirror
    candle castle meadow ladder letter basket anchor blanket hammer orchard kettle saddle needle cradle barrel
    feather
""".split()  # noqa: SIM905
_VERBS = """
    carries follows watches crosses gathers covers answers guards measures borrows paints repairs forgets
    shelters describes surrounds lifts mends teaches visits
""".split()  # noqa: SIM905
_ADVERBS = ["slowly", "often", "quietly", "gladly", "rarely", "always", "twice", "again", "softly", "early"]
_PREPOSITIONS = ["over", "under", "beside", "behind", "across", "near", "beyond", "toward"]
_SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]


def names() -> list[str]:
    """The 1024 two-syllable names that are one token each for the recall model."""
    pairs = np.random.default_rng(7).integers(0, len(_SYLLABLES), (1400, 2))
    return sorted({(_SYLLABLES[i] + _SYLLABLES[j]).capitalize() for i, j in pairs})[:1024]


class Text:
    """A seeded source of sentences, entries and questions."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._names: Iterator[str] = iter(self._rng.permutation(names()).tolist())

    def sentence(self) -> str:
        """One sentence of prose, with its leading space."""
        pick = self._pick
        words = f" The {pick(_ADJECTIVES)} {pick(_NOUNS)} {pick(_VERBS)} the {pick(_NOUNS)}"
        if self._rng.random() < 0.5:
            words += f" {pick(_PREPOSITIONS)} the {pick(_ADJECTIVES)} {pick(_NOUNS)}"
        if self._rng.random() < 0.4:
            words += f" {pick(_ADVERBS)}"
        return words + "."

    def entry(self) -> str:
        """`Name 123 456`: a name not used before in this text, and two numbers."""
        return f"{next(self._names)} {self._rng.integers(100, 1000)} {self._rng.integers(100, 1000)}"

    def question(self, entries: list[str], count: int) -> tuple[str, str]:
        """The names of `count` entries, and the entries."""
        chosen = self._rng.choice(len(entries), size=min(count, len(entries)), replace=False)
        asked = [entries[i] for i in chosen]
        return ", ".join(entry.split()[0] for entry in asked), ", ".join(asked)

    def _pick(self, words: list[str]) -> str:
        return words[self._rng.integers(0, len(words))]
