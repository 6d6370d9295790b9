"""The site's pages link to files of the repository: these are taken in, and README.md is the first page."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages at the root, and whatever file a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(), "")))
    for page in list(files.documentation_pages()):
        text = page.content_string
        for target in {_target(found[3], page.src_uri) for found in LINK.finditer(text)}:
            path = ROOT / target
            if path.is_file() and path.suffix != ".md" and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them."""
    return _moved(markdown, "docs") if page.file.src_uri not in PAGES.values() else markdown


def _target(link: str, page: str) -> str:
    """Where in the repository a link of a page leads; pages at the root have been moved already."""
    return posixpath.normpath(posixpath.join("docs" if page not in PAGES.values() else "", link))


def _moved(text: str, folder: str) -> str:
    """A page of a folder of the repository, with links to where the site has what they name; those to what it does not
    have are text."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[3]))
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target in PAGES:
            target = PAGES[target]
        elif not (ROOT / target).is_file() or target.endswith(".md"):
            return f"{found[1]}{found[2]}"
        return f"{found[1]}[{found[2]}]({target}{found[4] or ''})"

    return LINK.sub(link, text)
