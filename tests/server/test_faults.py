"""What docs/faults.md promises of a worker or of memory that misbehaves, on a server to which it is done."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_conservation import settled
from waiting import PATIENCE_S, wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language, score

REPEATS = 10  # questions under each fault, five at once


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server reads its faults from, at every pass and every message."""
    file = tmp_path_factory.mktemp("faults") / "fault"
    file.write_text("")
    return file


@pytest.fixture(scope="module")
def faulty(fault: Path) -> Iterator[Server]:
    env = {"HETERO_DEVELOPMENT": "1", "HETERO_CHECKSUMS": "1", "HETERO_FAULT": str(fault)}
    flags = {"kv_policy": "heterocache", "hetero_index": "none", "hetero_roles": "ratio", "hetero_monitor_interval": 1}
    flags |= {"max_total_tokens": 20000, "hetero_window": 16}
    with Server(env=env, **flags) as server:
        yield server


@pytest.fixture(autouse=True)
def _ends_well(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once the fault is over the worker is up within seconds, and nothing is lost."""
    yield
    if "faulty" in request.fixturenames:
        request.getfixturevalue("fault").write_text("")
        server = request.getfixturevalue("faulty")
        wait_for(lambda: server.stats()["worker_up"], "the worker is not up")
        server.flush()
        assert settled(server)["integrity"] == "ok"


def ask_all(server: Server, language: Language, seed: int, count: int = REPEATS) -> list[tuple[int, int]]:
    """Right answers, and of how many, of each question; TimeoutError where one has no answer."""
    document = language.document(seed, 1200, 30)

    def ask(number: int) -> tuple[int, int]:
        question = language.ask(document, seed + number, 4)
        text = server.generate(document.ids + question.ids, question.max_answer_tokens + 2, stop=["\n"])["text"]
        result = score(text, document, question.names)
        return result.right, result.total

    with ThreadPoolExecutor(5) as pool:
        return [job.result(timeout=PATIENCE_S) for job in [pool.submit(ask, number) for number in range(count)]]


@pytest.mark.parametrize("name", ["worker-dies", "worker-stalled", "worker-lies", "worker-slow", "worker-late"])
def test_questions_are_answered_from_what_is_held_while_the_worker_misbehaves(
    name: str, faulty: Server, fault: Path, language: Language
) -> None:
    before = faulty.stats()
    fault.write_text(name)
    answers = ask_all(faulty, language, seed=len(name))
    assert faulty.stats()["anchor_refreshes"] > before["anchor_refreshes"], "the worker was never asked"
    assert len(answers) == REPEATS
    assert sum(right for right, _ in answers) >= 0.9 * sum(total for _, total in answers)
    replaced = name in ("worker-dies", "worker-stalled", "worker-lies")
    if replaced:
        wait_for(lambda: faulty.stats()["worker_restarts"] > before["worker_restarts"], "the worker was not replaced")
    else:
        assert faulty.stats()["worker_restarts"] == before["worker_restarts"], "one that gives signs of life stays"


def test_a_flipped_bit_ends_the_request_with_that_as_the_reason(
    faulty: Server, fault: Path, language: Language
) -> None:
    fault.write_text("host-bit")
    for seed in range(REPEATS):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask_all(faulty, language, 100 + seed, count=1)
        assert refused.value.code == 500
        assert "host memory has changed" in refused.value.read().decode()
