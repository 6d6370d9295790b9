"""Crashes in a row are answered ever more slowly, and a proven worker's crash at once."""

from __future__ import annotations

import random

import pytest

from hetero_sglang.transfer.supervisor import Supervisor


class FakeWorker:
    pid = 1

    def __init__(self) -> None:
        self.up = self.killed = self.closed = False
        self.reaped = False
        self.silent = False

    def stalled(self, now: float) -> str | None:
        return "did not answer" if self.silent else None

    def gone(self) -> bool:
        return self.reaped

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        self.closed = True

    def ending(self) -> str:
        return "exited with code 3"

    def wait(self, timeout_s: float) -> None:
        self.reaped = True


class World:
    """A supervisor on a clock of its own; `time_to_start` advances it until a worker is launched."""

    def __init__(self) -> None:
        self.now = 100.0
        self.workers: list[FakeWorker] = []
        self.launchable = True
        self.supervisor = Supervisor(self.launch)  # type: ignore[arg-type]

    def launch(self) -> FakeWorker:
        if not self.launchable:
            raise FileNotFoundError("no such file")
        self.workers.append(FakeWorker())
        return self.workers[-1]

    def time_to_start(self) -> float:
        since = self.now
        while self.supervisor.worker is None:
            assert self.now < since + 60
            self.supervisor.tend(self.now)
            self.now += 0.01
        return self.now - since

    def crash(self) -> None:
        self.workers[-1].reaped = True
        reason = self.supervisor.tend(self.now)
        assert reason == "exited with code 3"
        self.supervisor.condemn(reason, self.now)


def test_the_delay_doubles_up_to_five_seconds_and_is_forgotten() -> None:
    world = World()
    world.time_to_start()
    delays = []
    for _ in range(7):
        world.crash()
        delays.append(world.time_to_start())
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], abs=0.05)
    world.workers[-1].up = True
    world.now += 60
    world.crash()
    assert world.time_to_start() == pytest.approx(0.2, abs=0.05)
    assert world.supervisor.restarts == len(world.workers) - 1 == 8


def test_none_starts_before_the_killed_one_is_gone() -> None:
    world = World()
    world.time_to_start()
    stuck = world.workers[0]
    world.supervisor.condemn("did not answer", world.now)
    assert stuck.killed and stuck.closed and not world.supervisor.up
    for _ in range(random.randint(5, 50)):
        world.now += 1
        world.supervisor.tend(world.now)
    assert len(world.workers) == 1
    stuck.reaped = True
    world.time_to_start()
    assert len(world.workers) == 2


def test_a_worker_that_never_says_hello_is_given_up() -> None:
    world = World()
    world.time_to_start()
    world.now += 29
    assert world.supervisor.tend(world.now) is None
    world.now += 2
    assert "did not start" in (world.supervisor.tend(world.now) or "")
    world.workers[0].up = True
    assert world.supervisor.tend(world.now) is None


def test_a_worker_is_judged_by_its_signs_of_life_once_it_is_up() -> None:
    world = World()
    world.time_to_start()
    world.workers[0].silent = True
    assert world.supervisor.tend(world.now) is None, "it has time to start"
    world.workers[0].up = True
    assert world.supervisor.tend(world.now) == "did not answer"
    world.workers[0].silent = False
    assert world.supervisor.tend(world.now) is None and world.supervisor.up


def test_a_command_that_cannot_run_is_tried_again() -> None:
    world = World()
    world.launchable = False
    for _ in range(300):
        world.now += 0.1
        assert world.supervisor.tend(world.now) is None
    tries = world.supervisor.restarts + 1
    assert 6 <= tries <= 11, "0.2 + 0.4 + ... up to 5 s apart, in 30 s"
    world.launchable = True
    world.time_to_start()


def test_close_ends_whatever_runs() -> None:
    world = World()
    world.time_to_start()
    world.supervisor.condemn("did not answer", world.now)
    world.now += 1
    world.workers[0].reaped = True
    world.time_to_start()
    world.supervisor.close(1.0)
    assert all(worker.killed and worker.closed and worker.reaped for worker in world.workers)
