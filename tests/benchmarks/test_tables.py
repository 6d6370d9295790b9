"""Plans and table lines of the speed commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import capacity, cases, decode, host_cost, transfer
from benchmarks.copies import Rate
from benchmarks.launch import RECALL
from benchmarks.quality.counters import EVENTS
from benchmarks.quality.trace import TRACED
from benchmarks.streams import Stream
from hetero_sglang.cache.counters import Counters
from hetero_sglang.profile.files import load_profile

ROW: dict[str, Any] = {
    "policy": "full", "fetch_rate": None, "batch": 1, "tokens": 131072, "first_token_seconds": 10.0,
    "first_token_seconds_prefix_hit": 0.25, "step_seconds": 0.009, "step_seconds_p50": 0.0089,
    "step_seconds_p99": 0.012,
}  # fmt: skip


def test_rates_share_a_prefill_and_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def run(streams: list[Stream]) -> None:
        asked.append([len(stream.ids) for stream in streams])
        for index, stream in enumerate(streams):
            stream.sent, stream.counts = 0.0, list(range(1, 61))
            stream.times = [1.0 + 0.1 * index + 0.01 * step for step in range(60)]

    class Told:
        url, flushed, rows = "", 0, 0

        def stats(self) -> dict[str, object]:
            self.rows += 5
            return {"fetched_rows": self.rows, "integrity": "ok", "host_bytes": 500, "token_slots": 5}

        def flush(self) -> None:
            self.flushed += 1

    monkeypatch.setattr(cases, "run_together", run)
    server, set_rates = Told(), []
    rows = list(cases.measure(server, 2, 100, 60, 2, [0.0, 0.05], set_rates.append, counters=True))
    assert set_rates == [r["fetch_rate"] for r in rows] == [0.0, 0.05] and server.flushed == 1
    assert asked == [[100, 100], *[[164, 164]] * 5], "one prefill, a prefix hit that does not count, then those that do"
    assert all(r["fetched_rows"] == 5 and r["integrity"] == "ok" and r["host_bytes_per_token"] == 100 for r in rows)
    assert all(r["step_seconds"] == pytest.approx(0.01, rel=0.05) for r in rows)


def test_steps_of_all_rounds() -> None:
    told = cases.spread([[1.0, 1.0, 4.0], [2.0]])
    assert told["step_seconds"] == 2 and told["step_seconds_p50"] == 1.5
    assert told["step_seconds_all"] == [2, 2] and told["step_seconds_p99"] >= 4


def test_decode_lines() -> None:
    dense = decode.line(ROW)
    assert "step mean    9.00 ms, P50 8.90, P99 12.00" in dense and "fetch" not in dense
    judged = {
        "ratio": 1.5, "ceiling": 1.633, "percent_of_ceiling": 91.9, "ratio_p50": 1.6, "percent_of_ceiling_p50": 98.0,
        "p50_of_rate_0": 1.031, "floor_seconds": 0.2, "hit_of_floor": 1.25,
    }  # fmt: skip
    came = {"fetched_rows": 70, "fetched_bytes": 350840, "late_rows": 3, "failed_rankings": 1, "refused_rankings": 2}
    text = decode.line({**ROW, "policy": "0.25", "fetch_rate": 0.05, **judged, **came})
    assert text.startswith("0.25   fetch 0.05 ")
    assert "1.50x of 1.63x (92%), P50 1.60x (98%), +3.1% of rate 0  prefix hit  0.250 s of 0.200 s copy (1.25x)" in text
    assert text.endswith("  0.4 MB, 70 rows, 3 late  3 rankings lost")


def test_counters_are_differences() -> None:
    before, after = {"late_rows": 3, "fetched_rows": 10, "requests": 1}, {"late_rows": 5, "fetched_rows": 10}
    assert cases.counted(before, {**after, "requests": 9}) == {"late_rows": 2, "fetched_rows": 0}


def test_what_is_counted_is_what_a_server_counts() -> None:
    assert set(cases.COUNTERS) | set(EVENTS) | set(TRACED) <= set(Counters().as_dict())


@pytest.mark.parametrize(("most", "sizes"), [(0, []), (1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 5])])
def test_batches_grow_to_what_fits(most: int, sizes: list[int]) -> None:
    assert capacity.batches(most) == sizes


def test_dense_slots_fill_the_bytes() -> None:
    assert capacity.token_slots("full", None, 24 * 10**9, False) == (183105, 0)
    with pytest.raises(SystemExit, match="--profile"):
        capacity.token_slots("0.25", None, 24 * 10**9, False)


def test_capacity_table_has_ratios_to_the_first() -> None:
    def row(policy: str, concurrent: int, rate: float) -> dict[str, Any]:
        best = capacity.best([{"batch": 1, "tokens_per_second": 1.0}, {"batch": 2, "tokens_per_second": rate}])
        return {"policy": policy, "token_slots": 9, "concurrent": concurrent, "best": best}

    lines = capacity.table([row("full", 1, 100), row("0.25", 5, 450)])
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert "5.00x" in lines[2] and "4.50x" in lines[2]


def test_capacity_table_of_a_run_that_was_stopped() -> None:
    lines = capacity.table([{"policy": "full", "token_slots": 9}, {"policy": "0.25", "token_slots": 40}])
    assert lines[2].split() == ["0.25", "40", "-", "-", "-"]


def test_capacity_is_told_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(server: object, prompts: list[list[int]], steps: int, temperature: float) -> list[Stream]:
        running = prompts[:2]  # no more fit
        late = [Stream("", [], 0, times=[9.0, 10.0], counts=[1, 2]) for _ in prompts[2:]]
        return [Stream("", [], 0, times=[0.0, 1.0, 2.0], counts=[1, 2, 3]) for _ in running] + late

    class Server:
        def generate(self, prompt: list[int], tokens: int) -> None:
            pass

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(capacity, "stream", stream)
    capacity.measure(Server(), 10, 3, 2, lambda more: told.append(dict(more)))
    assert [sorted(more) for more in told] == [["batches", "best"], ["batches", "best"], ["concurrent"]]
    assert told[1]["best"] == {
        "batch": 2, "step_seconds": 1.0, "step_seconds_p50": 1.0, "tokens_per_second": 2.0,
    }  # fmt: skip
    assert told[2]["concurrent"] == 2


def test_host_cost_of_one_more_layer() -> None:
    few = {"policy": "0.25", "layers": 16, "fetch_rate": 0.05, **dict.fromkeys(host_cost.COLUMNS, 4.0)}
    many = {**few, "layers": 32, "launches": 20.0}
    added = host_cost.per_layer(few, many)
    assert added["launches"] == 1 and added["syncs"] == 0
    lines = host_cost.table([many, few, {**few, "fetch_rate": 0.1}])
    assert [line.split()[1:3] for line in lines] == [
        ["rate", "layers"], ["0.05", "16"], ["0.05", "32"], ["0.05", "each"], ["0.1", "16"],
    ]  # fmt: skip


def test_a_profile_of_fewer_layers(tmp_path: Path) -> None:
    whole = load_profile(RECALL / "hetero_profile.json")
    cut = load_profile(host_cost.cut_profile(str(RECALL / "hetero_profile.json"), 2, tmp_path / "cut.json"))
    assert cut.num_layers == 2 and [x.roles for x in cut.layers] == [x.roles for x in whole.layers[:2]]
    with pytest.raises(SystemExit, match="--profile"):
        host_cost.cut_profile(None, 2, tmp_path / "cut.json")


def test_a_transfer_line() -> None:
    rate = Rate("prefix, one run", 12_000_000_000, 0.25)
    assert rate.gb_per_s == 48
    assert transfer.line(rate, 88.9).split() == ["prefix,", "one", "run", "250.00", "ms", "48.0", "GB/s", "89%"]


def test_layers_of_a_host_store() -> None:
    assert transfer.layers_within(16e9, 131072, 6) == 32
    assert transfer.layers_within(4e9, 131072, 6) == 9
    assert transfer.layers_within(1, 131072, 6) == 1
