"""Text that is on every machine, by kind: what built-in calibration documents are made of."""

import sysconfig
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

from hetero_sglang.calibration.text import Text

# None of these is scored by benchmarks.real_text (a test holds it).
TOPICS = ("formatstrings", "string-methods", "typesseq", "attribute-access", "typesmapping", "assignment", "strings")
MODULES = ("tarfile.py", "datetime.py", "typing.py", "pathlib.py", "ssl.py", "zipfile.py", "shutil.py", "os.py")
_LANGUAGES = Path(__file__).with_name("languages.txt")


def prose(seed: int) -> Iterator[str]:
    """English: the Python language reference."""
    return _paragraphs(topics[name] for name in _from(TOPICS, seed) if name in topics)


def code(seed: int) -> Iterator[str]:
    """Modules of the standard library."""
    paths = (Path(sysconfig.get_paths()["stdlib"], name) for name in _from(MODULES, seed))
    return _paragraphs(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def languages(seed: int) -> Iterator[str]:
    """A paragraph each in twelve languages."""
    paragraphs = _LANGUAGES.read_text(encoding="utf-8").strip().split("\n\n")
    return (f"{each}\n\n" for each in _from(paragraphs, seed))


def sentences(seed: int) -> Iterator[str]:
    """Generated, without end, in the words of the recall model."""
    text = Text(seed)
    while True:
        yield "".join(text.sentence() for _ in range(8))


KINDS: tuple[Callable[[int], Iterator[str]], ...] = (prose, code, languages, sentences)


def sample(seed: int) -> Iterator[str]:
    """Pieces of one kind after the other by seed, followed by sentences without end."""
    turn, kind = divmod(seed, len(KINDS))
    return chain(KINDS[kind](turn), sentences(seed))


def _from(items: Sequence[str], start: int) -> list[str]:
    at = start % len(items)
    return [*items[at:], *items[:at]]


def _paragraphs(texts: Iterator[str]) -> Iterator[str]:
    return (f"{paragraph}\n\n" for text in texts for paragraph in text.split("\n\n"))
