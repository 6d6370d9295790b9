"""Servers side by side on one CPU: their threads, and the cores that they are pinned to."""

from __future__ import annotations

import os

import pytest

from benchmarks.quality import cores
from benchmarks.quality.cores import core_shares


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, no accelerator, and a SGLang that pins nothing."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cores, "accelerator_present", lambda: False)
    monkeypatch.setattr(cores, "sglang_binds", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


@pytest.mark.parametrize("jobs, ranks, threads", [(2, 1, 4), (3, 1, 2), (2, 2, 2), (8, 1, 1), (20, 1, 1)])
def test_threads_are_shared_out(jobs: int, ranks: int, threads: int) -> None:
    shares = core_shares(jobs, ranks)
    assert shares == [{"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}] * jobs


def test_a_server_alone_has_what_it_always_had() -> None:
    assert core_shares(1) == [{}]


def test_many_cores_may_spin_and_a_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert core_shares(2)[0] == {"OMP_NUM_THREADS": "4"}
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert core_shares(2)[0] == {"OMP_NUM_THREADS": "8"}


def test_servers_beside_an_accelerator_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "accelerator_present", lambda: True)
    assert core_shares(2) == [{}, {}]
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert core_shares(2)[0]["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    "jobs, ranks, bound",
    [
        (2, 1, ["0,1,2,3", "4,5,6,7"]),
        (2, 2, ["0,1|2,3", "4,5|6,7"]),
        (3, 1, ["0,1", "2,3", "4,5"]),
        (10, 1, ["0", "1", "2", "3", "4", "5", "6", "7", "0", "1"]),
    ],
)
def test_where_sglang_pins_threads_no_two_servers_have_the_same_cores(
    jobs: int, ranks: int, bound: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "sglang_binds", lambda: True)
    assert [share["SGLANG_CPU_OMP_THREADS_BIND"] for share in core_shares(jobs, ranks)] == bound
