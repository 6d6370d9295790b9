"""The retrieval worker may die at any moment: requests go on, it comes back, and it never outlives its server."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_conservation import settled
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language, Question, score


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def seconds_without(server: Server, language: Language, seed: int) -> float:
    """From the worker's death to the next one's first sign of life. AssertionError unless the requests that run
    meanwhile are answered."""
    document = language.document(seed, 4096, 60)
    questions = [language.ask(document, number, 8) for number in range(6)]
    wait_for(lambda: server.stats()["worker_up"], "the worker is not up")
    before = server.stats()

    def ask(question: Question) -> str:
        return server.generate(document.ids + question.ids, question.max_answer_tokens + 2, stop=["\n"])["text"]

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, question) for question in questions]
        wait_for(lambda: server.stats()["drift_checks"] > before["drift_checks"], "no request decodes")
        os.kill(before["worker_pid"], signal.SIGKILL)
        killed = time.monotonic()

        def back() -> bool:
            stats = server.stats()
            return stats["worker_up"] and stats["worker_pid"] != before["worker_pid"]

        wait_for(back, "the worker is not back")
        took = time.monotonic() - killed
        answers = [job.result() for job in running]
    results = [score(text, document, q.names) for text, q in zip(answers, questions, strict=True)]
    assert sum(r.right for r in results) >= 0.9 * sum(r.total for r in results)
    stats = settled(server)
    assert stats["worker_restarts"] == before["worker_restarts"] + 1 and stats["integrity"] == "ok"
    return took


@pytest.mark.server("usual")
def test_requests_survive_the_workers_death_and_it_is_back_within_five_seconds(
    server: Server, language: Language
) -> None:
    took: list[float] = []
    while len(took) < 3 and min(took, default=5.0) >= 5:  # the best of three, for machines that are busy
        took.append(seconds_without(server, language, 11 + len(took)))
    assert min(took) < 5, f"the worker needed {took} s to come back"
    assert "worker" in server.log.read_text(errors="replace").split("The server is fired up")[-1]


def named_sockets() -> dict[str, str]:
    """Names of Unix sockets by inode."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {fields[6]: fields[7] for fields in lines if len(fields) > 7}


def sockets_of(pid: int) -> set[str]:
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


@pytest.mark.server("roles", ends=True)
def test_no_worker_socket_or_shared_memory_outlives_a_killed_server(server: Server) -> None:
    worker = server.stats()["worker_pid"]
    assert alive(worker) and sockets_of(worker)
    assert not sockets_of(worker) & set(named_sockets()), "it has a name that could be left over"
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: not alive(worker), "the worker outlives its server")
    assert not [name for name in os.listdir("/dev/shm") if "hetero" in name]
