"""GET /hetero shows what the server does, in a real browser too, and never what it is asked."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, tab
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language
from hetero_sglang.cli import main
from hetero_sglang.sglang.page.content import read

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian: apt install chromium)")
MARKER = "marker-that-nobody-should-read"


def events(server: Server, count: int) -> list[dict[str, Any]]:
    """So many of the stream, from its beginning."""
    told: list[dict[str, Any]] = []
    with urllib.request.urlopen(server.url + "/hetero/events", timeout=30) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        for line in reply:
            if line.startswith(b"data: "):
                told.append(json.loads(line.removeprefix(b"data: ")))
                if len(told) == count:
                    break
    return told


@contextmanager
def busy(server: Server, language: Language) -> Iterator[list[int]]:
    """Two requests run meanwhile, a compressed and an exact one; their tokens."""
    document = language.document(7, 3000, 30).ids
    bodies = [(document, f"{MARKER}-one"), (document[-400:], f"{MARKER}-two")]
    with ThreadPoolExecutor(len(bodies)) as pool:
        done = [
            pool.submit(server.post, "/generate", {"input_ids": ids, "rid": rid, "sampling_params": {
                "temperature": 0, "max_new_tokens": 4000, "ignore_eos": True,
            }})
            for ids, rid in bodies
        ]  # fmt: skip
        try:
            wait_for(lambda: both_write(events(server, 1)[0]), "no two requests write")
            yield document
        finally:
            server.post("/abort_request", {"rid": "", "abort_all": True})
            for each in done:
                each.exception(120)


def both_write(event: dict[str, Any]) -> bool:
    """Two requests have read their prompts, and each has some tokens of its own."""
    requests = event["ranks"][0]["running_requests"]
    return len(requests) == 2 and all(one["tokens"] > one["prompt"] + 5 for one in requests)


@pytest.mark.server("usual")
def test_events_say_what_statistics_say_and_what_runs(server: Server, language: Language) -> None:
    with busy(server, language) as document:
        time.sleep(1)
        told, stats = events(server, 3), server.stats()
        requests = told[-1]["ranks"][0]["running_requests"]
    assert [("history" in event) for event in told] == [True, False, False]
    assert all(0.5 < later["at"] - event["at"] < 15 for event, later in zip(told, told[1:], strict=False))
    rank = told[-1]["ranks"][0]
    assert (
        set(stats) <= set(rank) and rank["requests"] == stats["requests"] and rank["keep_ratio"] == stats["keep_ratio"]
    )
    assert told[-1]["rates"]["decoded_tokens"] > 1 and rank["running"] == 2 and told[-1]["waiting"] == 0
    long, short = sorted(requests, key=lambda one: -one["prompt"])
    assert long["prompt"] == len(document) and short["prompt"] == 400
    assert not long["exact"] and 0 < long["kept_rows"] < 0.5 * long["all_rows"] and long["tokens"] > long["prompt"]
    assert short["exact"] and short["kept_rows"] == short["all_rows"] == 18 * short["tokens"]
    shares, profile = rank["head_shares"], server.get("/hetero/profile")
    assert [len(layer) for layer in shares] == [profile["kv_heads"]] * profile["layers"]
    for layer, letters in zip(shares, profile["matrix"], strict=True):
        assert all((share == 1) == letter.isupper() for share, letter in zip(layer, letters, strict=True))
    assert sum(rank["hot_page_states"].values()) == rank["hot_pages"]


@pytest.mark.server("usual")
def test_nothing_of_a_prompt_is_told(server: Server, language: Language) -> None:
    idle = json.dumps(events(server, 1))
    with busy(server, language) as document:
        assert server.get("/hetero") == read("status.html"), "all that moves comes by events"
        told = json.dumps(events(server, 2))
    words = {word for word in re.findall(r"[a-z]+", language.decode(document)) if len(word) > 3 and word not in idle}
    assert len(words) > 20 and not [word for word in words if word in told]
    assert MARKER not in told and str(document[:3])[1:-1] not in told


@pytest.mark.server("usual")
def test_the_page_asks_nobody_but_its_server(server: Server) -> None:
    with urllib.request.urlopen(server.url + "/hetero", timeout=30) as reply:
        policy, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert not re.findall(r"(?:src|href)=", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"


@needs_chromium
@pytest.mark.server("usual")
def test_a_browser_shows_live_numbers(server: Server, language: Language, tmp_path: Path) -> None:
    with tab(tmp_path) as page, busy(server, language):
        page.open(server.url + "/hetero")
        page.until("document.getElementById('running')?.textContent === '2'")
        page.until("parseFloat(document.querySelector('.chart b').textContent) > 1")
        text, before = page.text(), page.value("document.getElementById('requests').innerText")
        assert "compressed" in before and "exact" in before and "#" in before
        page.until(f"document.getElementById('requests').innerText !== {json.dumps(before)}")
        assert page.value("document.querySelectorAll('#heads [data-kind]').length") == 32
        assert "…" not in text and "undefined" not in text and "NaN" not in text and MARKER not in text
        assert "kept whole" in text and "hot pages of running requests" in text and "live" in text
        assert page.value("document.getElementById('errors').hidden") and not page.errors


@pytest.mark.server("indexed")
def test_heads_with_an_index_are_shown_as_such(server: Server, tmp_path: Path) -> None:
    rank = events(server, 1)[0]["ranks"][0]
    assert rank["tiers"]["index"]["nbytes"] > 0 and rank["head_shares"] is None
    shares = [share for layer in server.get("/hetero/profile")["shares"] for share in layer]
    assert len(shares) == 32 and all(0 < share < 1 for share in shares)
    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with tab(tmp_path) as page:
        page.open(server.url + "/hetero")
        page.until("document.getElementById('link')?.textContent === 'live'")
        kinds = page.value("[...document.querySelectorAll('#heads [data-kind]')].map(cell => cell.dataset.kind)")
        assert len(kinds) == 32 and set(kinds) <= {"i", "n"} and "i" in kinds and "Nothing runs" in page.text()
        assert page.value("document.getElementById('errors').hidden") and not page.errors


@pytest.mark.server("usual")
def test_top_prints_a_frame(server: Server, language: Language, capsys: pytest.CaptureFixture[str]) -> None:
    with busy(server, language):
        assert main(["top", server.url, "--once"]) == 0
    shown = capsys.readouterr().out
    assert "2 requests run" in shown and "hot pages" in shown and "compressed" in shown and "integrity: " in shown
    assert re.search(r"[1-9][\d,]* tokens/s generated", shown) and MARKER not in shown


@pytest.mark.server("plain")
def test_a_server_without_a_policy_has_no_page(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/hetero")
    assert main(["top", server.url, "--once"]) == 2
    assert "has no status page" in capsys.readouterr().err
