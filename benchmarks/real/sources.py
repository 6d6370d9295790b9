"""Long texts that come with Python and the locked packages, by kind."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

PACKAGES, STANDARD = (Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib"))
BOOK = "tvm_ffi/3rdparty/libbacktrace/Isaac.Newton-Opticks.txt"  # what libbacktrace tests its decompression with
CHAPTER = 30_000  # characters; the book is one text
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One document; `name` tells it from the others of its kind on every machine."""

    name: str
    text: str


def book() -> Iterator[Source]:
    """Newton's Opticks (English of 1730), cut at paragraphs."""
    path = PACKAGES / BOOK
    parts: list[str] = []
    for paragraph in _read(path).split("\n\n") if path.is_file() else []:
        if parts and len(parts[-1]) < CHAPTER:
            parts[-1] += "\n\n" + paragraph
        else:
            parts.append(paragraph)
    yield from (Source(f"Opticks {number}", part) for number, part in enumerate(parts))


def reference() -> Iterator[Source]:
    """The Python language reference."""
    yield from (Source(name, text) for name, text in topics.items())


def licences() -> Iterator[Source]:
    """Licences of the packages, and of the system's where it keeps them."""
    for path in PACKAGES.glob("*.dist-info/**/*"):
        if "licen" in path.name.lower() and path.is_file() and path.stat().st_size > 4000:
            yield Source(_package(path.relative_to(PACKAGES).parts[0]), _read(path))
    for path in Path("/usr/share/common-licenses").glob("*"):
        if not path.is_symlink() and path.stat().st_size > 4000:
            yield Source(path.name, _read(path))


def code() -> Iterator[Source]:
    """Modules of the standard library."""
    for path in STANDARD.rglob("*.py"):
        inside = path.relative_to(STANDARD)
        if not _LEFT_OUT & set(inside.parts) and path.stat().st_size > 8000:
            yield Source(inside.as_posix(), _read(path))


def documentation() -> Iterator[Source]:
    """Descriptions of the packages: what they do, how they are used, what changed."""
    for path in PACKAGES.glob("*.dist-info/METADATA"):
        name, text = _package(path.parent.name), _read(path).partition("\n\n")[2]
        if name != "hetero_sglang" and len(text) > 4000:
            yield Source(name, text)


KINDS: dict[str, Callable[[], Iterator[Source]]] = {
    "book": book,
    "reference": reference,
    "licences": licences,
    "code": code,
    "documentation": documentation,
}


def _package(folder: str) -> str:
    """Without its version, which may be another one elsewhere."""
    return folder.partition("-")[0]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").replace("\r\n", "\n")
