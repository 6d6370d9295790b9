"""SGLang with patches in its source, and no plugin loaded, serves what the plugin's server does."""

from __future__ import annotations

import shutil
import urllib.error
from pathlib import Path

import pytest
from servers import TABLE
from test_conservation import settled

from benchmarks.launch import ROOT, Server
from benchmarks.recall import Language
from hetero_sglang.cpu.platform import CHOICE_VARIABLE, ENGINE_VARIABLE
from hetero_sglang.patching.command import installed
from hetero_sglang.patching.tree import Tree

POLICY = "indexed"  # which waits for nobody's rankings: one server's tokens are another's


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed SGLang, patched, and one of ours, which has no plugin to load."""
    root = tmp_path_factory.mktemp("source")
    shutil.copytree(installed() / "sglang", root / "sglang", symlinks=True)
    shutil.copytree(ROOT / "hetero_sglang", root / "hetero_sglang", ignore=shutil.ignore_patterns("plugin.py"))
    Tree(root).apply()
    return root


def server_of(source: Path, **flags: object) -> Server:
    """From that source; no plugin has the name that alone is let in (an empty list would let in all)."""
    made = Server(**{**flags, "env": {"PYTHONPATH": str(source), "SGLANG_PLUGINS": "none"}})
    for name in (ENGINE_VARIABLE, CHOICE_VARIABLE):  # set here once this process has imported sglang
        made.env.pop(name, None)
    return made


def answers(server: Server, language: Language) -> list[list[int]]:
    """Tokens of three requests: one that is short, a first turn and a second."""
    server.flush()  # what a start leaves in the radix tree changes last bits
    document = language.document(5, 2600, 40)
    first, second = (language.ask(document, seed, 4) for seed in (1, 2))
    prompts = [document.ids[:300] + first.ids, document.ids + first.ids, document.ids + first.ids + second.ids]
    return [server.generate(prompt, first.max_answer_tokens, stop=["\n"])["output_ids"] for prompt in prompts]


@pytest.mark.server(POLICY)
def test_patched_source_serves_the_plugins_tokens(server: Server, language: Language, source: Path) -> None:
    wanted = answers(server, language)
    with server_of(source, **TABLE[POLICY]) as patched:
        assert answers(patched, language) == wanted
        stats = settled(patched)
        assert stats["compressed_requests"] == 2 and stats["fetched_rows"] > 0 and stats["integrity"] == "ok"
        log = patched.log.read_text(errors="replace")
    assert f"{source}/sglang/" in log and "Failed to load plugin" not in log


@pytest.mark.slow
@pytest.mark.server("plain")
def test_patched_source_serves_full_as_sglang_does(server: Server, language: Language, source: Path) -> None:
    wanted = answers(server, language)
    with server_of(source, **TABLE["plain"]) as patched:
        assert answers(patched, language) == wanted
        with pytest.raises(urllib.error.HTTPError, match="404"):
            patched.stats()
