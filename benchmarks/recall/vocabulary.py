"""The words of the recall language. Lists and seeds are data: the trained model knows exactly these."""

from __future__ import annotations

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    quiet green broken heavy golden narrow silent bright ancient hollow gentle bitter frozen distant
    crooked patient humble rusty velvet copper amber crimson pale dusty sacred clever noble tired
    secret wooden
    """
)
NOUNS = _words(
    """
    river garden lantern harbor mountain window bridge engine forest market tower valley island mirror
    candle castle meadow ladder letter basket anchor blanket hammer orchard kettle saddle needle
    cradle barrel feather
    """
)
VERBS = _words(
    """
    carries follows watches crosses gathers covers answers guards measures borrows paints repairs
    forgets shelters describes surrounds lifts mends teaches visits
    """
)
ADVERBS = _words("slowly often quietly gladly rarely always twice again softly early")
PREPOSITIONS = _words("over under beside behind across near beyond toward")

SYLLABLES = tuple(consonant + vowel for consonant in "bdfghklmnprstvz" for vowel in "aeiou")
NAME_SEED = 7
FILLER_SEED = 3
FILLER_SENTENCES = 60_000


def _names(draws: int = 1400, keep: int = 1024) -> tuple[str, ...]:
    pairs = np.random.default_rng(NAME_SEED).integers(0, len(SYLLABLES), (draws, 2))
    return tuple(sorted({(SYLLABLES[a] + SYLLABLES[b]).capitalize() for a, b in pairs})[:keep])


NAMES = _names()
NUMBERS = tuple(str(number) for number in range(100, 1000))
