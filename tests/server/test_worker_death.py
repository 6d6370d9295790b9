"""The retrieval worker may die at any moment: requests go on, it comes back, and it never outlives its server."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.launch import Server
from benchmarks.recall import Language, score


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.server("usual")
def test_requests_survive_the_workers_death_and_it_is_back_within_five_seconds(
    server: Server, language: Language
) -> None:
    document = language.document(11, 4096, 60)
    questions = [language.ask(document, seed, 8) for seed in range(6)]
    before = server.stats()
    assert before["worker_up"]

    def ask(question) -> str:
        return server.generate(document.ids + question.ids, question.max_answer_tokens + 2, stop=["\n"])["text"]

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, question) for question in questions]
        while server.stats()["drift_checks"] == before["drift_checks"]:
            time.sleep(0.05)
        os.kill(before["worker_pid"], signal.SIGKILL)
        killed = time.monotonic()
        back = None
        while time.monotonic() - killed < 30:
            stats = server.stats()
            if stats["worker_up"] and stats["worker_pid"] != before["worker_pid"]:
                back = time.monotonic() - killed
                break
            time.sleep(0.05)
        answers = [job.result() for job in running]
    assert back is not None and back < 5, f"the worker needed {back} s to come back"
    results = [score(text, document, q.names) for text, q in zip(answers, questions, strict=True)]
    assert sum(r.right for r in results) >= 0.9 * sum(r.total for r in results)
    stats = server.stats()
    assert stats["worker_restarts"] == before["worker_restarts"] + 1 and stats["integrity"] == "ok"
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
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.05)
    assert not alive(worker)
    assert not [name for name in os.listdir("/dev/shm") if "hetero" in name]
