"""What pages say is what the code says, links lead somewhere, and every page is in the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from generated import BLOCK, PARTS, rendered
from pages import AT_ROOT, PAGES, ROOT, anchors, links, prose

from hetero_sglang.sglang.refusals import FLAGS
from hetero_sglang.sglang.version import release

SIZED = "0.5.17"  # whose share of a GPU docs/sizing.md reckons with


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_and_anchor_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_a_broken_link_or_anchor_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `A` b: c\n[x](no.md) [`y`](page.md#a-b-c)\n```\n[z](not-a-link.md)\n# no heading\n```\n")
    assert links(page) == ["no.md", "page.md#a-b-c"] and anchors(page) == {"a-b-c"}


def test_every_page_is_in_the_site_once() -> None:
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    hook = (ROOT / "docs" / "hooks" / "repository.py").read_text()
    at_root = dict(re.findall(r'"(\w+\.md)": "([\w-]+\.md)"', hook))
    assert list(at_root) == AT_ROOT
    assert sorted(listed) == sorted([*at_root.values(), *(page.name for page in PAGES if page.parent != ROOT)])


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_what_is_taken_from_the_code_is_what_the_code_says(page: Path) -> None:
    if page.name == "sizing.md" and release() != SIZED:
        pytest.skip(f"the page has the shares of SGLang {SIZED}, and {release()} takes others")
    assert rendered(page.read_text()) == page.read_text(), "run `make pages`"


def test_every_part_is_on_one_page() -> None:
    assert sorted(found[2] for page in PAGES for found in BLOCK.finditer(page.read_text())) == sorted(PARTS)


def test_every_refused_flag_is_named() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert all(f"| `{reason.split(': ')[0]}` |" in page for _, _, reason in FLAGS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 800


THEIRS = ("unrecognized arguments", "Error: --model-path is required", "An attempt")  # said by SGLang and Python


def sentences() -> str:
    """All text that the code may say; what is filled in is left out."""
    found: list[str] = []
    for path in (ROOT / "hetero_sglang").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value.replace("%s", "\n"))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(each.value if isinstance(each, ast.Constant) else "\n" for each in node.values))
    return "\n".join(found)


def test_messages_of_the_troubleshooting_page_are_the_codes_own() -> None:
    said = sentences()
    quoted = re.findall(r"^\*\*`([^`]+)`\*\*|says `([^`]+)`", prose(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    messages = [one or other for one, other in quoted if not (one or other).startswith(THEIRS)]
    assert len(messages) > 8
    for message in messages:
        for part in re.split(r"\.\.\.|[:;]|\b[A-Z]{4,}\b|heterocache|[\d.]*\d|rank|layers", message):
            part = part.strip(" ,.;:()-]")
            assert len(part) < 12 or part in said, f"{message}: {part}"
