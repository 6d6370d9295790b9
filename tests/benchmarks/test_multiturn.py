"""The load generator: the same seed is the same load, what is counted is what came, and a run keeps what it has."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from waiting import PATIENCE_S

from benchmarks import results
from benchmarks.launch import RECALL
from benchmarks.multiturn import compare
from benchmarks.multiturn.backends import Answer
from benchmarks.multiturn.command import main
from benchmarks.multiturn.content import RandomTokens, Recall
from benchmarks.multiturn.drive import Turn, gaps
from benchmarks.multiturn.load import Load, talks
from benchmarks.multiturn.summary import summary
from hetero_sglang.errors import HeteroError

SMALL = Load(num_clients=5, num_rounds=3, documents=3, document_length=40, request_length=4, output_length=6)


def test_one_seed_is_one_load() -> None:
    load = replace(SMALL, request_rate=2.0, output_spread=0.5, abort_rate=0.3)
    assert talks(load) == talks(load) != talks(replace(load, seed=1))
    content = RandomTokens(load)
    assert content.opening(1) == RandomTokens(load).opening(1) != content.opening(2)
    assert content.message(0, 3, 1) != content.message(0, 3, 2) and len(content.message(0, 3, 1)) == 4
    begins = [talk.begins for talk in talks(load)]
    assert begins == sorted(begins) and begins[-1] > 0


def test_popular_documents_are_talked_about_more() -> None:
    found = Counter(talk.document for talk in talks(replace(SMALL, num_clients=3000, documents=4, zipf=1.0)))
    assert [found[k] / found[0] for k in (1, 2, 3)] == pytest.approx([1 / 2, 1 / 3, 1 / 4], abs=0.06)
    rounds = [each for talk in talks(replace(SMALL, num_clients=1000, abort_rate=0.2)) for each in talk.rounds]
    assert sum(each.leaves is not None for each in rounds) / len(rounds) == pytest.approx(0.2, abs=0.04)
    assert all(each.leaves is None or each.leaves <= each.output for each in rounds)


def test_short_chats_share_nothing_and_are_told_apart() -> None:
    load = replace(SMALL, short_chats=4, short_lengths=(7, 9))
    short = [talk.document for talk in talks(load)][SMALL.num_clients :]
    assert len(set(short)) == 4 and all(document < 0 for document in short)
    assert [talk.document for talk in talks(load)][: SMALL.num_clients] == [t.document for t in talks(SMALL)]
    content = RandomTokens(load)
    assert [len(content.opening(document)) for document in short] == [7, 9, 7, 9]
    assert len({tuple(content.opening(document)) for document in short}) == 4
    made = [Turn(0, 0, document, 0.0, 10, 0, 3, ttft, 1.0, [], False) for document, ttft in ((0, 9.0), (-1, 0.5))]
    assert summary(made, 1.0, 2.0, 0.05)["p90_short_chat_ttft"] == 0.5


def test_a_recall_answer_is_checked_and_a_wrong_one_seen() -> None:
    content = Recall(replace(SMALL, document_length=600), Path(RECALL), names=2)
    names = content._question(0, 1, 2).names
    right = content.language.answer_ids(content._document(0), names)
    assert content.check(0, 1, 2, []) == (0, 2) and content.check(0, 1, 2, right) == (2, 2)
    assert content.check(0, 1, 2, content.language.answer_ids(content._document(0), names[:1])) == (1, 2)
    assert content.most(0, 1, 2, 999) >= len(right)


def test_tokens_that_come_together_share_what_passed() -> None:
    answer = Answer(0.0, times=[1.0, 1.5, 2.5], counts=[1, 2, 6])
    assert gaps(answer) == [0.5, 0.25, 0.25, 0.25, 0.25]
    assert gaps(Answer(0.0)) == []


def turn(**changes: Any) -> Turn:
    made = Turn(0, 0, 0, 0.0, 100, 60, 3, 0.5, 1.0, [0.1, 0.3], False, 2, 3)
    return replace(made, **changes)


def test_what_is_summed_up_is_what_came() -> None:
    turns = [turn(), turn(round=1, ttft=0.1, cached_tokens=100), turn(left=True), turn(error="no", ttft=None)]
    found = summary(turns, 10.0, 0.3, 0.25)
    assert (found["total_requests"], found["failed"], found["aborted"]) == (2, 1, 1)
    assert found["output_token_throughput"] == 0.6 and found["cache_hit_rate"] == 0.8
    assert found["goodput"] == 0.1, "the first token of the other came too late"
    assert found["median_first_turn_ttft"] == 0.5 and found["median_later_turn_ttft"] == 0.1
    assert found["median_itl"] == pytest.approx(0.2) and (found["right"], found["right_of"]) == (4, 6)
    assert summary([], 1.0, 1, 1)["median_ttft"] is None


# against a server that speaks both protocols


class Fake:
    """Answers with as many tokens as are asked for, one an event; of what it was asked, keeps all."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Any] = []
        self.hung_up = 0

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["input_ids"])
        response = web.StreamResponse()
        await response.prepare(request)
        ids: list[int] = []
        try:
            for number in range(body["sampling_params"]["max_new_tokens"]):
                ids.append(number)
                told = {"prompt_tokens": len(body["input_ids"]), "cached_tokens": 7, "completion_tokens": len(ids)}
                event = {"text": "", "output_ids": ids, "meta_info": told}
                await response.write(f"data: {json.dumps(event)}\n\n".encode())
                await asyncio.sleep(0.001)
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.hung_up += 1
            raise
        return response

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body["messages"])
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(body["max_tokens"]):
            event = {"choices": [{"delta": {"content": f"x{number} "}}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        usage = {"prompt_tokens": 50, "completion_tokens": body["max_tokens"]}
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return response

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/get_model_info", lambda request: _json({"model_path": "a model"}))
        app.router.add_get("/v1/models", lambda request: _json({"data": [{"id": "a model"}]}))
        app.router.add_get("/hetero/stats", lambda request: _json([{"hot_pages": 9, "token_slots": 5}]))
        return app


async def _json(value: Any) -> web.Response:
    return web.json_response(value)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A server in a thread, and results in a folder of their own."""
    import threading

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    made, loop, up = Fake(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(made.app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        made.url = f"http://{host}:{port}"
        up.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.run_forever()), daemon=True)
    thread.start()
    assert up.wait(PATIENCE_S)
    yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_S)


ARGUMENTS = "--num-clients 4 --num-rounds 3 --documents 2 --document-length 50 --request-length 5 --output-length 6 "
ARGUMENTS += "--think-time 0 0.01"


@pytest.mark.parametrize("backend", ["sglang", "openai"])
def test_a_conversation_goes_on_from_what_was_said(fake: Any, backend: str, tmp_path: Path) -> None:
    words = [*ARGUMENTS.split(), "--base-url", fake.url, "--backend", backend, "--log-file", str(tmp_path / "log")]
    main([*words, "--output-details", str(tmp_path / "turns"), "--max-parallel", "2"])
    assert len(fake.asked) == 12
    longest = max(fake.asked, key=len)
    if backend == "sglang":
        assert len(longest) == 50 + 3 * 5 + 2 * 6
        assert longest[55:61] == list(range(6)), "what was answered is part of the next prompt"
    else:
        roles = [message["role"] for message in longest]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
    made = json.loads((tmp_path / "multiturn.json").read_text())
    assert made["summary"]["total_requests"] == 12 and made["summary"]["output_token_throughput"] > 0
    assert made["samples"][0]["hot_pages"] == 9
    turns = [json.loads(line) for line in (tmp_path / "turns").read_text().splitlines()]
    assert len(turns) == 12 and all(each["output_tokens"] == 6 and len(each["itl"]) == 5 for each in turns)
    assert json.loads((tmp_path / "log").read_text())["total_requests"] == 12


def test_a_reader_who_leaves_ends_the_conversation(fake: Any, tmp_path: Path) -> None:
    main([*ARGUMENTS.split(), "--base-url", fake.url, "--abort-rate", "1"])
    made = json.loads((tmp_path / "multiturn.json").read_text())
    assert made["summary"]["aborted"] == 4 and made["summary"]["total_requests"] == 0 and len(fake.asked) == 4


def test_two_runs_of_one_load_are_compared(fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        main([*ARGUMENTS.split(), "--base-url", fake.url, "--name", name, "--tag", name])
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    made = json.loads(paths[1].read_text())
    made["summary"]["output_token_throughput"] = (
        2 * json.loads(paths[0].read_text())["summary"]["output_token_throughput"]
    )
    paths[1].write_text(json.dumps(made))
    found = compare.ratios(*map(compare.read, paths))
    assert found["output_token_throughput"] == pytest.approx(2)
    main(["--compare", *map(str, paths)])
    assert "| one | two | times better |" in capsys.readouterr().out and (tmp_path / "two.png").exists()
    made["load"]["seed"] = 5
    paths[1].write_text(json.dumps(made))
    with pytest.raises(HeteroError, match="different loads \\(seed\\)"):
        compare.ratios(*map(compare.read, paths))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--base-url http://127.0.0.1:9", "No server answers at http://127.0.0.1:9"),
        ("--num-clients 0", "--num-clients 0 and no --short-chats: pass 1 or more"),
        ("--abort-rate 2", "--abort-rate 2.0: pass 0 to 1"),
        ("--think-time 2 1", "pass the shorter one first"),
        ("--compare /none /none", "/none is no run of benchmarks.multiturn"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words.split())
    assert said in capsys.readouterr().err


def test_a_foreign_server_is_told_apart(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*ARGUMENTS.split(), "--base-url", fake.url + "/hetero"])
    assert "no server of --backend sglang" in capsys.readouterr().err
