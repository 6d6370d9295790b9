"""Our routes are behind SGLang's keys: who reads needs the one, who changes the other. And what the profile's says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, tab

from benchmarks.launch import RECALL, Server
from hetero_sglang.cli import main
from hetero_sglang.profile.files import load_profile

pytestmark = pytest.mark.server

USER, ADMIN = "of-users", "of-admins"
LIVE = "document.getElementById('link')?.textContent === 'live'"
READ = ("/hetero/stats", "/hetero/profile", "/hetero/config")


@pytest.fixture(scope="module")
def keyed() -> Iterator[Server]:
    """Streams come in pieces."""
    server = Server(
        kv_policy="heterocache",
        hetero_index="none",
        api_key=USER,
        admin_api_key=ADMIN,
        max_total_tokens=8000,
        incremental_streaming_output=True,
    )
    server.start()
    yield server
    server.stop(at_once=True)


def asked(server: Server, path: str, key: str | None, body: Any = None) -> tuple[int, Any]:
    """Status and answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data, headers), timeout=300) as reply:
            text = reply.read()
            return reply.status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_reading_needs_the_api_key(keyed: Server) -> None:
    for path in READ:
        assert [asked(keyed, path, key)[0] for key in (None, "wrong", ADMIN, USER)] == [401, 401, 401, 200], path


def opened(server: Server, path: str, accept: str, key: str | None = None) -> tuple[int, str]:
    """Status and the first line of what comes."""
    headers = {"Accept": accept, **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=headers), timeout=300) as reply:
            return reply.status, reply.readline().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_and_its_events_need_the_api_key(keyed: Server) -> None:
    for path in ("/hetero", "/hetero/events"):
        told = [opened(keyed, path, "*/*", key) for key in (None, "wrong", ADMIN, USER)]
        assert [status for status, _ in told] == [401, 401, 401, 200], path
        assert all("Unauthorized" in said for _, said in told[:3])


def test_a_browser_is_asked_for_the_key(keyed: Server, tmp_path: Path) -> None:
    status, door = opened(keyed, "/hetero", "text/html,*/*")
    assert status == 401 and "API key" in door and "Integrity" not in door
    assert opened(keyed, "/hetero/stats", "text/html,*/*")[1] == '{"error":"Unauthorized"}'
    assert opened(keyed, "/hetero", "text/html", USER)[0] == 200
    if PROGRAM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    with tab(tmp_path) as page:
        page.open(keyed.url + "/hetero")
        give = "document.getElementById('key').value = {!r}; document.querySelector('#form button').click()"
        page.until("document.getElementById('form') !== null")
        page.value(give.format("wrong"))
        page.until("document.getElementById('said').textContent.includes('not the server')")
        page.value(give.format(USER))
        page.until(LIVE)
        assert "tokens" in page.text() and USER not in page.value("document.documentElement.outerHTML")
        page.call("Page.reload")
        page.until("document.getElementById('link') === null")
        page.until(LIVE)
        page.value("sessionStorage.setItem('hetero-key', 'an-older-one')")
        page.call("Page.reload")
        page.until("document.getElementById('said')?.textContent.includes('another key')")
        assert page.value("sessionStorage.getItem('hetero-key')") is None


def test_top_takes_the_key(keyed: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", keyed.url, "--once", "--api-key", USER]) == 0
    assert "hot pages" in capsys.readouterr().out
    for key, words in (([], "wants a key"), (["--api-key", "wrong"], "wants another key")):
        assert main(["top", keyed.url, "--once", *key]) == 2
        out, error = capsys.readouterr()
        assert not out and words in error and len(error.splitlines()) == 1


def test_changing_needs_the_admin_key(keyed: Server) -> None:
    before = asked(keyed, "/hetero/config", USER)[1]
    change = {"monitor_interval": 7}
    assert [asked(keyed, "/hetero/config", key, change)[0] for key in (None, "wrong", USER)] == [401] * 3
    assert asked(keyed, "/hetero/config", USER)[1] == before
    assert asked(keyed, "/hetero/config", ADMIN, change) == (200, {**before, **change})
    assert asked(keyed, "/hetero/config", ADMIN, {"monitor_interval": 0})[0] == 400


def test_the_profile_is_the_one_that_is_served(keyed: Server) -> None:
    _, told = asked(keyed, "/hetero/profile", USER)
    path = RECALL / "hetero_profile.json"
    profile = load_profile(path)
    assert told["source"] == str(path) and told["policy"] == "heterocache"
    assert told["fingerprint"] == profile.provenance["fingerprint"]
    assert told["thresholds"] == {"stable": profile.provenance["tau_stable"], "similar": profile.provenance["tau_sim"]}
    assert told["floor"] == profile.floor
    names = {letter: name for letter, name in told["letters"].items()}
    roles = [[names[letter] for letter in layer] for layer in told["matrix"]]
    assert roles == [[role.value for role in layer.roles] for layer in profile.layers]
    assert told["roles"] == {role.value: count for role, count in profile.counts.items()}
    assert [layer["pivot"] for layer in told["roles_by_layer"]] == [layer.count("pivot") for layer in roles]
    assert told["index"]["heads"] == profile.index.probed.sum() and told["index"]["row_bytes"] == 10
    assert len(json.dumps(told)) < 4000


def test_a_stream_in_pieces_says_it_in_its_last(keyed: Server) -> None:
    new = 64  # a busy machine sends several in a piece
    request = {"input_ids": [5] * 60, "stream": True, "sampling_params": {"max_new_tokens": new, "ignore_eos": True}}
    _, text = asked(keyed, "/generate", USER, request)
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    assert sum(len(chunk["output_ids"]) for chunk in chunks) == new and len(chunks) > 1
    told = [chunk["meta_info"].get("hetero") for chunk in chunks]
    assert told[:-1] == [None] * (len(chunks) - 1) and told[-1]["exact"] is True
