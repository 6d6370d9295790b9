"""Cells side by side: the same samples, begun in order, and nothing left when it is stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_quality_server import FakePolicyServer, serving
from waiting import PATIENCE_S, wait_for

from benchmarks.launch import Server
from benchmarks.quality import cores, servers
from benchmarks.quality.__main__ import main
from benchmarks.quality.cell import Cell, parse_cells
from benchmarks.quality.client import Client
from benchmarks.quality.host import Host
from benchmarks.quality.matrix import Matrix
from benchmarks.quality.sample import Sample
from benchmarks.quality.servers import Servers
from benchmarks.quality.store import Store
from benchmarks.quality.tasks import TASKS
from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


CELLS = parse_cells(["full", "heterocache", "snapkv", "quest"], [0.5, 0.3])
SMALL = ["--reduced", "--tasks", "needle", "names", "--lengths", "2048", "--no-plots"]


def samples(language: Language) -> list[Sample]:
    return [
        Sample(TASKS["needle"], 2048, 0, {"depth": 0.5}, language),
        Sample(TASKS["names"], 2048, 0, {"names": [1, 4]}, language),
    ]


class Each(Host):
    """A stand-in of its own for each cell; `before` is called with every cell that begins."""

    def __init__(self, language: Language, before: Callable[[Cell], None] = lambda cell: None, **more: Any) -> None:
        self.language, self.before, self.more = language, before, more
        self.begun: list[str] = []
        self.up: list[str] = []
        self.most = 0

    @contextmanager
    def serve(self, cell: Cell) -> Iterator[Client]:
        self.begun.append(cell.label)
        self.up.append(cell.label)
        self.most = max(self.most, len(self.up))
        try:
            self.before(cell)
            with serving(FakePolicyServer(self.language, **self.more)) as fake:
                yield Client(fake.url)
        finally:
            self.up.remove(cell.label)


def measured(store: Store) -> dict[str, dict]:
    """Records without what differs from run to run."""
    return {key: {**r, "seconds": 0, "begun": ""} for key, r in store.records.items()}


def test_three_cells_at_once_give_what_one_at_a_time_gives(
    language: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Store(tmp_path / "alone")
    Matrix(CELLS, samples(language), alone, "m").run(Each(language), "abc")
    capsys.readouterr()
    together, host = Store(tmp_path / "together"), Each(language, Meeting(3))
    Matrix(CELLS, samples(language), together, "m").run(host, "abc", jobs=3)
    assert host.most == 3 and host.up == []
    assert host.begun == [cell.label for cell in CELLS]
    assert measured(together) == measured(alone)
    assert " 14/14 " in capsys.readouterr().err.splitlines()[-1]
    again = Each(language)
    Matrix(CELLS, samples(language), alone, "m").run(again, "abc", jobs=2)
    assert again.begun == []


class Meeting:
    """Lets the first `count` cells go on when all of them have begun, one after the other."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=PATIENCE_S)
        self.left = count

    def __call__(self, cell: Cell) -> None:
        if self.left:
            self.left -= 1
            self.barrier.wait()


def test_a_cell_that_fails_beside_others_is_noted(
    language: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = threading.Event()

    def before(cell: Cell) -> None:
        if cell.label == "heterocache at 0.5":
            assert slow.wait(PATIENCE_S)
        if cell.policy == "quest":
            slow.set()
        if cell.ratio == 0.5:
            raise HeteroError(f"{cell.policy} does not start")

    matrix = Matrix(CELLS, samples(language), Store(tmp_path), "m")
    matrix.run(Each(language, before), "abc", jobs=2)
    # In the order of the cells: the first of them failed last.
    assert list(matrix.failures.items()) == [
        (f"{policy} at 0.5", f"{policy} does not start") for policy in ("heterocache", "snapkv", "quest")
    ]
    assert len(matrix.store.records) == 2 * 4
    assert " 14/14 " in capsys.readouterr().err.splitlines()[-1]


def test_an_error_that_is_none_of_ours_stops_everything(language: Language, tmp_path: Path) -> None:
    stopped = threading.Event()

    class Halting(Each):
        def halt(self) -> None:
            stopped.set()

    def before(cell: Cell) -> None:
        if cell.policy == "full":
            raise ZeroDivisionError
        assert stopped.wait(PATIENCE_S)

    host = Halting(language, before)
    matrix = Matrix(CELLS, samples(language), Store(tmp_path), "m")
    with pytest.raises(ZeroDivisionError):
        matrix.run(host, "abc", jobs=2)
    assert len(host.begun) <= 2 and host.up == []
    assert matrix.failures == {}


def test_what_a_server_says_while_it_is_ended_is_not_kept(language: Language, tmp_path: Path) -> None:
    asked, ended = threading.Semaphore(0), threading.Event()

    def half(answer: str) -> str:
        asked.release()
        assert ended.wait(PATIENCE_S)
        return answer[: len(answer) // 2]

    class Halting(Each):
        def halt(self) -> None:
            ended.set()

    def press() -> None:
        assert asked.acquire(timeout=PATIENCE_S) and asked.acquire(timeout=PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    store = Store(tmp_path)
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        Matrix(CELLS, samples(language), store, "m").run(Halting(language, distort=half), "abc", jobs=2)
    assert store.records == {} and (tmp_path / "samples.jsonl").read_text() == ""


class SmallServer(Server):
    """A process that is quickly there."""

    seen: list[SmallServer] = []

    def __init__(self, **flags: Any) -> None:
        super().__init__(**flags)
        self.command = [sys.executable, "-S", str(Path(__file__).parent / "small_server.py"), str(self.port)]
        self.seen.append(self)

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"child (\d+)", self.tail())]


@pytest.mark.timeout(300)  # what the servers begin takes ten minutes, unless Ctrl-C ends it
def test_ctrl_c_leaves_no_server_behind(
    language: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers, "Server", SmallServer)
    monkeypatch.setattr(SmallServer, "seen", [])
    monkeypatch.setattr(cores, "sglang_binds", lambda: False)  # it takes its time to tell

    def press() -> None:
        wait_for(lambda: sum("asked" in server.tail() for server in SmallServer.seen) == 2, "not both were asked")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert main([*SMALL, "--out", str(tmp_path), "--policies", "snapkv", "--jobs", "2"]) == 130
    assert len(SmallServer.seen) == 2 and all(server.process is None for server in SmallServer.seen)
    children = [pid for server in SmallServer.seen for pid in server.pids()]
    assert len(children) == 2
    for pid in children:  # one that was killed runs until the kernel has taken it off a busy core
        wait_for(lambda pid=pid: not alive(pid), f"process {pid} runs")
    assert (tmp_path / "samples.jsonl").read_text() == ""
    shown = capsys.readouterr()
    assert "stopped; finished samples are in" in shown.err
    assert "No answer" not in shown.out + shown.err  # of servers that were ended


def test_a_server_that_is_gone_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it is to be asked again"))
    with pytest.raises(HeteroError, match="No answer"):
        Client("http://127.0.0.1:9").flush()


def alive(pid: int) -> bool:
    """Whether a process runs; what waits for a parent to ask after it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between opening and reading
        return False


def test_servers_side_by_side_have_their_own_ports_shares_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([1, 2, 3])

    class Fake(Server):
        def __init__(self, **flags: Any) -> None:
            super().__init__(**flags)
            self.port = next(ports)

        def start(self, timeout: float = 0) -> None:
            assert timeout == 600

    monkeypatch.setattr(servers, "Server", Fake)
    monkeypatch.setattr(servers, "core_shares", lambda jobs, ranks: [{"SHARE": f"{at} of {ranks}"} for at in range(2)])
    host = Servers("m", {"tp": "3"}, tmp_path, jobs=2)

    def shares() -> list[tuple[int, str]]:
        return [(server.port, server.env["SHARE"]) for server in host._up]

    with ExitStack() as stack:
        with host.serve(CELLS[0]):
            stack.enter_context(host.serve(CELLS[1]))
            assert shares() == [(1, "0 of 3"), (2, "1 of 3")]
            assert len({server.log for server in host._up}) == 2
        stack.enter_context(host.serve(CELLS[2]))
        assert shares() == [(2, "1 of 3"), (3, "0 of 3")]


def test_a_store_takes_samples_from_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write

    def bit_by_bit(file: int, data: bytes) -> int:
        """As a disk may that is almost full, while other threads run."""
        time.sleep(0)
        return whole(file, data[:50])

    monkeypatch.setattr(os, "write", bit_by_bit)
    store = Store(tmp_path)

    def add(thread: int) -> None:
        for at in range(10):
            store.add(f"{thread} {at}", {"said": "x" * 100})

    threads = [threading.Thread(target=add, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {line["key"]: line for line in lines} == store.records
    assert len(lines) == 80


@pytest.mark.parametrize(
    "words, said",
    [
        (["--jobs", "2", "--url", "http://127.0.0.1:9"], "2 jobs for one server"),
        (["--jobs", "0"], "--jobs 0"),
    ],
)
def test_jobs_that_cannot_be_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--policies", "full", *words]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown) and said in shown


def test_a_list_counts_on_all_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--reduced", "--out", str(tmp_path), "--list", "--jobs"]
    assert main([*command, "1"]) == main([*command, "4"]) == 0
    alone, four = re.findall(r"(?:, 4 cells at once)?, about (\d+) minutes", capsys.readouterr().out)
    assert int(alone) / 4 - 1 <= int(four) <= int(alone) / 4 + 1
