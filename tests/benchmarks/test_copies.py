"""The transfer measurements move what they say they move; small, and where no GPU is, on the CPU."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import copies, transfer
from benchmarks.copies import RUN, Rate
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.prefix_loader import slot_runs

CPU = torch.device("cpu")


def test_patterns_are_all_slots_once() -> None:
    found = copies.patterns(64 * RUN)
    assert all(torch.equal(slots.sort().values, torch.arange(64 * RUN)) for slots in found.values())
    runs = [len(slot_runs(slots)) for slots in found.values()]
    assert runs[0] == 1 and 32 < runs[1] <= 64 and runs[2] > 60 * RUN


def test_write_back_stores_every_compressed_head() -> None:
    host = HostStore(64, [3, 0, 8], 16, 16, torch.float32)
    slots = torch.randperm(64)[:20]
    rate = copies.write_back(host, CPU, slots, "some")
    assert rate.nbytes == 20 * host.bytes_per_row
    for view in (view for view in host.blocks if view.numel()):
        rows = view.transpose(1, 2).flatten(0, 1)  # [slots, C, D + Dv]
        assert rows.flatten(1).ne(0).all(1).nonzero()[:, 0].tolist() == slots.sort().values.tolist()
    host.close()


def test_a_whole_small_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    given = argparse.Namespace(host_gb=0.0, tokens=2 * RUN, heads=2, chunk=32, plain_mb=1)
    rows = list(transfer.measure(CPU, given))
    assert [row["what"] for row in rows] == [
        "plain copy to the device", "plain copy to the host",
        *(f"prefix, {slots}, read" for slots in ("one run", "runs of 256", "scattered")),
        *(f"write-back, 32 tokens, {slots}" for slots in ("one run", "runs of 256", "scattered")),
    ]  # fmt: skip
    assert [row["bytes"] for row in rows] == [1 << 20] * 2 + [2 * RUN * 2 * 512] * 3 + [32 * 2 * 512] * 3
    assert capsys.readouterr().out.count("GB/s") == len(rows)


def test_a_machine_without_a_gpu_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["transfer"])
    with pytest.raises(SystemExit, match="finds no GPU here"):
        transfer.main()


def test_rates() -> None:
    assert Rate("x", 54_000_000_000, 2).gb_per_s == 27
