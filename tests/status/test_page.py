"""The page says when it lost its server, comes back by itself, and shows a replica at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import PROGRAM, tab
from status_world import Scheduler, serving

from benchmarks.launch import free_port

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian: apt install chromium)")
LIVE = "document.getElementById('link')?.textContent === 'live'"


def test_the_page_reconnects_when_the_server_comes_back(tmp_path: Path) -> None:
    port = free_port()
    with tab(tmp_path) as page:
        with serving(Scheduler(), port) as url:
            page.open(url + "/hetero")
            page.until(LIVE)
            assert page.value("document.getElementById('lost').hidden") and "#7" in page.text()
        page.until("!document.getElementById('lost').hidden")
        assert "lost at" in page.text() and "not connected" in page.text() and "#7" in page.text(), "the latest stays"
        with serving(Scheduler(replicas=2), port):
            page.until(LIVE)
            assert page.value("document.getElementById('lost').hidden && document.getElementById('errors').hidden")
            assert "replica" in page.text() and "#8" not in page.text()
            choose = "const r = document.getElementById('replica'); r.selectedIndex = 1;"
            page.value(f"(() => {{ {choose} r.dispatchEvent(new Event('change')); return true }})()")
            assert "#8" in page.text() and "resumed" in page.text()
            kinds = page.value("[...document.querySelectorAll('#heads [data-kind]')].map(cell => cell.dataset.kind)")
            assert kinds == ["R", "p", "o", "R"]
            colours = "[...document.querySelectorAll('#heads [data-kind]')].map(cell => cell.style.background)"
            held = page.value(colours)
            choose = "const s = document.getElementById('shown'); s.value = 'fetched';"
            page.value(f"(() => {{ {choose} s.dispatchEvent(new Event('change')); return true }})()")
            assert page.value(colours) != held and "12.5 rows a token" in page.text() and "1,234" in page.text()
            assert page.value("document.getElementById('errors').hidden")


def test_a_fault_of_the_page_is_seen_on_it(tmp_path: Path) -> None:
    with serving(Scheduler()) as url, tab(tmp_path) as page:
        page.open(url + "/hetero")
        page.until(LIVE)
        page.value("setTimeout(() => { throw new Error('on purpose') }) > 0")
        page.until("!document.getElementById('errors').hidden")
        assert "on purpose" in page.text()


def test_dark_and_light_follow_the_reader(tmp_path: Path) -> None:
    with serving(Scheduler()) as url, tab(tmp_path) as page:
        colours = []
        for scheme in ("light", "dark"):
            page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            page.open(url + "/hetero")
            page.until(LIVE)
            colours.append(page.value("getComputedStyle(document.body).backgroundColor"))
        assert len(set(colours)) == 2
