"""What docs/faults.md promises of small limits, of a server that is asked to end, and of one with a killed process."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from waiting import PATIENCE_S, wait_for

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language, score
from hetero_sglang.sglang import present

# A container's 64 MB of shared memory, few open files, and hardly any memory that may be pinned (on a CPU none is).
ROUGH = 'mount -t tmpfs -o size=64m rough /dev/shm && ulimit -n 256 && ulimit -l 64 && exec "$0" "$@"'


def ask_all(server: Server, language: Language, pool: ThreadPoolExecutor, count: int) -> list[Future[tuple[int, int]]]:
    document = language.document(5, 1500, 30)

    def ask(number: int) -> tuple[int, int]:
        question = language.ask(document, number, 6)
        text = server.generate(document.ids + question.ids, question.max_answer_tokens + 2, stop=["\n"])["text"]
        result = score(text, document, question.names)
        return result.right, result.total

    return [pool.submit(ask, number) for number in range(count)]


def received(server: Server) -> int:
    """Requests that have begun, or wait in the queue."""
    state = server.get("/server_info")["internal_states"][0]
    return state["hetero"]["requests"] + state[present.KEY]["waiting"]


def test_a_server_in_a_small_container_serves_and_answers_all_before_it_ends(language: Language) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounts need a privilege that is not here")
    server = Server(kv_policy="heterocache", hetero_index="none", max_total_tokens=20000, hetero_window=16)
    server.command = ["unshare", "-m", "sh", "-c", ROUGH, *server.command]
    with server, ThreadPoolExecutor(12) as pool:
        begun = server.stats()["requests"]
        asked = ask_all(server, language, pool, 12)
        wait_for(lambda: received(server) == begun + 12, lambda: f"{received(server) - begun} of 12 requests came")
        assert server.process is not None
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        assert f"head profile: {RECALL / 'hetero_profile.json'}" in server.log.read_text()
        answers = [job.result(timeout=PATIENCE_S) for job in asked]
        right, total = (sum(numbers) for numbers in zip(*answers, strict=True))
        assert right >= 0.9 * total
        assert server.process.wait(PATIENCE_S) is not None
        assert not psutil.wait_procs(family, PATIENCE_S)[1], "a process outlives its server"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["sglang::scheduler", "sglang::detokenizer", ""])
def test_when_one_process_is_killed_the_others_leave_and_a_new_server_starts(victim: str, language: Language) -> None:
    """SGLang waits a minute for diagnostics when its detokenizer goes."""
    with Server(kv_policy="heterocache", hetero_index="none", max_total_tokens=20000) as server:
        assert server.process is not None
        main = psutil.Process(server.process.pid)
        family = [main, *main.children(recursive=True)]
        (pid,) = [each.pid for each in family if " ".join(each.cmdline()).strip() == victim] if victim else [main.pid]
        with ThreadPoolExecutor(6) as pool:
            begun = server.stats()["requests"]
            asked = ask_all(server, language, pool, 6)
            wait_for(lambda: received(server) == begun + 6, lambda: f"{received(server) - begun} of 6 requests came")
            os.kill(pid, signal.SIGKILL)
            server.process.wait(2 * PATIENCE_S)
            ends = [job.exception(timeout=PATIENCE_S) for job in asked]
        assert all(end is None or isinstance(end, urllib.error.URLError | OSError) for end in ends), ends
        assert not psutil.wait_procs(family, PATIENCE_S)[1]
        assert not [name for name in os.listdir("/dev/shm") if "hetero" in name]
        server.process = None
        server.start()
        assert server.generate([5, 6, 7], 4)["output_ids"]


def test_a_clock_that_jumps_is_not_asked() -> None:
    """Time is measured by clocks that cannot be set; that of the status page's points is told to people alone."""
    package = Path(__file__).resolve().parents[2] / "hetero_sglang"
    assert [path.name for path in package.rglob("*.py") if "time.time(" in path.read_text()] == ["feed.py"]
