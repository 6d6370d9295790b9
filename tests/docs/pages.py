"""Pages as the tests see them: prose, headings' anchors, links."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AT_ROOT = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES = [*(ROOT / name for name in AT_ROOT), *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The text without blocks of code."""
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")).lower()
        name = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))
        found.add(name if name not in found else f"{name}_1")
    return found


def links(page: Path) -> list[str]:
    """Targets of all links and pictures that stay in the repository."""
    inline = re.sub(r"`[^`\n]*`", "", prose(page))  # code of its own; a link's text may hold some
    both = _LINK.findall(prose(page)) + _LINK.findall(inline)
    return sorted({target for target in both if not re.match(r"[a-z]+:", target)})
