"""`hetero-sglang top` shows what a server says, and has one sentence for whatever is none of ours."""

from __future__ import annotations

import io
from typing import Any

import pytest
from local_http import QuietHandler, local_server
from rich.console import Console
from status_world import Scheduler, serving

from benchmarks.launch import free_port
from hetero_sglang.cli import main
from hetero_sglang.top.command import address
from hetero_sglang.top.view import size, view

OTHER = b'data: {"rates": {"decoded_tokens": 1}, "waiting": 0, "ranks": [{}]}\n\n'


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["top", "--once", *arguments]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("hetero-sglang: ") and len(error.splitlines()) == 1, error
    return error


def test_a_frame_says_what_the_server_does(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Scheduler(replicas=2)) as url:
        assert main(["top", url.removeprefix("http://") + "/hetero", "--once"]) == 0
    shown = capsys.readouterr().out
    assert "2 requests run, 1 wait" in shown and "#7" in shown and "#8" in shown and "resumed" in shown
    assert "80 tokens/s generated" in shown and "400 KB" in shown and "25.0%" in shown
    assert "integrity: ok" in shown and "4 free" in shown and "key index" not in shown


def test_a_dead_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no server answers" in refusal(capsys, f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("given", ["", "ftp://x", "http://", "http://x:99999", "http://[x", "://"])
def test_what_is_no_address_is_one_sentence(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no address" in refusal(capsys, given)


@pytest.mark.parametrize("key", ["with\nnewline", "\u00e9\u4e2d"])
def test_a_key_that_no_header_can_have_is_one_sentence(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Scheduler()) as url:
        assert "cannot be sent" in refusal(capsys, url, "--api-key", key)


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (200, {}, b"<html>hello</html>", "has no status page"),
        (200, {"Content-Type": "text/event-stream"}, b"data: no json\n\n", "has no status page"),
        (200, {"Content-Type": "text/event-stream"}, b"data: [1]\n\n", "has no status page"),
        (200, {"Content-Type": "text/event-stream"}, b'data: {"ranks": []}\n\n', "has no status page"),
        (200, {"Content-Type": "text/event-stream"}, OTHER, "than this version reads"),
        (200, {"Content-Type": "text/event-stream"}, b"", "went away"),
        (404, {}, b"", "has no status page"),
        (401, {}, b"", "wants a key"),
        (500, {}, b"", "status 500"),
    ],
)
def test_another_server_is_one_sentence(
    status: int, headers: dict[str, str], body: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with local_server(Other) as url:
        assert words in refusal(capsys, url)


def test_a_wrong_key_is_told_from_none(capsys: pytest.CaptureFixture[str]) -> None:
    class Keyed(QuietHandler):
        def do_GET(self) -> None:
            self.send(b"{}", 401)

    with local_server(Keyed) as url:
        assert "another key" in refusal(capsys, url, "--api-key", "wrong")


def test_an_address_needs_no_scheme() -> None:
    assert address("host:1") == address("http://host:1/") == address("http://host:1/hetero") == "http://host:1"
    assert address("https://host/behind/proxy") == "https://host/behind/proxy"


def test_sizes_have_one_to_three_digits() -> None:
    told = {0: "0 B", 999: "999 B", 1000: "1.0 KB", 123_456: "123 KB", 24e9: "24.0 GB", 3e15: "3000 TB"}
    assert {count: size(count) for count in told} == told


def test_names_from_the_server_are_text_and_no_markup() -> None:
    rank: dict[str, Any] = {}
    event = {"rates": dict.fromkeys(("decoded_tokens", "prefilled_tokens", "fetched_rows")), "waiting": 0, "ranks": []}
    state = Scheduler()._state(0)
    for part in state.values():
        rank |= part
    console = Console(file=io.StringIO(), width=120)
    console.print(view("url", {**event, "ranks": [{**rank, "policy": "[red]x[/red]", "profile_warning": "[bold]y"}]}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x[/red]" in shown and "[bold]y" in shown
