"""Servers take turns, and rows of idle and prefill come out of what they took."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import dummy, exit_speed, idle, prefill, shapes
from benchmarks.alternation import groups, turns, up
from benchmarks.blind_branches import write_branches
from benchmarks.idle import Size
from benchmarks.launch import RECALL
from benchmarks.streams import Stream
from hetero_sglang.config.settings import HOT_PAGE
from hetero_sglang.exits.files import load

PROFILE = str(RECALL / "hetero_profile.json")


class Fake:
    """A server whose steps take `step` seconds."""

    def __init__(self, step: float, events: list[str] | None = None, fails: bool = False) -> None:
        self.url, self.step, self.events, self.fails = "", step, events if events is not None else [], fails
        self.flushed = self.compressed = 0

    def __enter__(self) -> Fake:
        if self.fails:
            raise RuntimeError("no memory")
        self.events.append(f"start {self.step}")
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append(f"stop {self.step}")

    def flush(self) -> None:
        self.flushed += 1

    def stats(self) -> dict[str, int]:
        return {"compressed_requests": self.compressed}


def test_turns_alternate() -> None:
    order: list[str] = []
    found = turns({"a": "x", "b": "y"}, 2, lambda server: order.append(server) or len(order))
    assert order == ["x", "y", "x", "y"] and found == {"a": [1, 3], "b": [2, 4]}


def test_all_up_or_one_at_a_time() -> None:
    servers = {"full": Fake(1), "0.5": Fake(2)}
    assert groups(servers, alone=False) == [servers]
    assert groups(servers, alone=True) == [{"full": servers["full"]}, {"0.5": servers["0.5"]}]


def test_a_server_that_does_not_start_leaves_none_up() -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="no memory"), up({"a": Fake(1, events), "b": Fake(2, fails=True)}):
        pytest.fail("not all are up")
    assert events == ["start 1", "stop 1"]


def test_prefill_leaves_the_first_prompt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def stream(server: Fake, prompts: list[list[int]], steps: int) -> list[Stream]:
        asked.append(prompts[0])
        return [Stream("", prompts[0], steps, times=[server.step * (10 if len(asked) <= 2 else 1)])]

    monkeypatch.setattr(prefill, "stream", stream)
    servers = {"full": Fake(1.0), "0.25": Fake(1.25)}
    dense, ours = prefill.measure(servers, 50, 3, random.Random(0))
    assert len({tuple(prompt) for prompt in asked}) == 8, "every prompt is a new one"
    assert all(server.flushed == 4 for server in servers.values())
    assert dense["first_token_seconds_all"] == [1, 1, 1] and dense["warm_up_seconds"] == 10
    assert prefill.beside(dense, []) == {} and prefill.beside(ours, []) == {}
    ours |= prefill.beside(ours, [dense])
    assert ours["ratio"] == pytest.approx(0.8)
    assert prefill.line(ours) == "0.25            50 tokens: first token   1.250 s (1.250, 1.250, 1.250)  0.800x"


def batches(server: Fake, prompts: list[list[int]], steps: int, every: int) -> list[Stream]:
    counts = list(range(1, steps + 1, every))
    return [Stream("", p, steps, every, times=[server.step * n for n in counts], counts=counts) for p in prompts]


def test_idle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "stream", batches)
    servers = {"full": Fake(0.0097), "1": Fake(0.01)}
    dense, ours = ({"part": "whole", **row} for row in idle.measure(servers, Size(16, 30, 71), 41, 2))
    assert dense["step_seconds"] == pytest.approx(0.0097) and len(dense["step_seconds_all"]) == 2
    ours |= idle.beside(ours, [dense])
    assert ours["ratio"] == pytest.approx(0.97) and ours["ratio_p50"] == pytest.approx(0.97)
    assert idle.beside(ours, [dense | {"part": "short"}]) == {}
    assert idle.line(ours) == "whole  1      16 x    30: step  10.000 ms, P50  10.000 ms  0.970x, P50 0.970x"


def test_rows_of_early_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth is of the tokens of a share alone."""
    told, shares = [(10, 320), (110, 3320), (115, 3480), (215, 5480)], []
    monkeypatch.setattr(exit_speed, "stream", batches)
    monkeypatch.setattr(exit_speed, "told", lambda server: told.pop(0))
    servers = {"": Fake(0.01), "deferred": Fake(0.0125)}
    rows = list(exit_speed.measure(servers, 2, 30, 41, 3, [0.0, 0.5], shares.append))
    assert shares == [0.0, 0.5] and [row["depth"] for row in rows] == [30, 20]
    assert rows[0]["ratio"] == pytest.approx(0.8) and rows[0]["kv"] == "deferred"
    assert all(server.flushed == 1 for server in servers.values())
    assert exit_speed.bound(32) == 1 and 1.7 < exit_speed.bound(16) < 2
    assert exit_speed.line({"policy": "full", **rows[1]}) == (
        "full  deferred  leave 0.5    2 x    30: step  12.500 ms, without  10.000 ms  0.800x of 1.536x, 20.00 layers"
    )


def test_branches_that_know_nothing_are_of_the_shape(tmp_path: Path) -> None:
    config = shapes.LLAMA_8B | {"hidden_size": 16, "num_hidden_layers": 4, "vocab_size": 50}
    exits = load(write_branches(tmp_path / "exits" / "a.json", config, [2, 3], range(10)), config)
    assert exits.depths == (2, 3, 4) and exits.thresholds(0.9) == (0.9, 0.9)


def test_idle_refuses_requests_that_were_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Fake(1.0)

    def stream(*words: Any) -> list[Stream]:
        server.compressed += 1
        return batches(*words)

    monkeypatch.setattr(idle, "stream", stream)
    with pytest.raises(RuntimeError, match="requests of 2 x 30 were compressed"):
        list(idle.measure({"0.5": server}, Size(2, 30, 71), 41, 2))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (8, 1), (64, 8)])
def test_messages_stay_few(batch: int, tokens: int) -> None:
    assert idle.every(batch) == tokens


def test_idle_parts() -> None:
    given = argparse.Namespace(short=["8x1024"], short_keep_ratio="0.5", whole=[], steps=256, profile=PROFILE)
    (part,) = idle.parts(given)
    assert part.sizes == [Size(8, 1024, 1281)] and part.flags == {"hetero_dense_below": 2048}
    assert part.slots("full", part.sizes) < part.slots("0.5", part.sizes)


def test_slots_hold_whole_requests() -> None:
    assert dummy.whole_slots(None, 4, 84) == 420
    layout = dummy.layout_of("0.5", PROFILE)
    slots = dummy.whole_slots(layout, 4, 84)
    assert slots * sum(layout.fractions) >= 4 * layout.num_compressed * -(-84 // HOT_PAGE) * HOT_PAGE
    assert dummy.whole_slots(dummy.layout_of("1", PROFILE), 4, 84) == 420


def test_dummy_heads_have_pivots_unless_an_index_is_asked_for() -> None:
    made = (
        dummy.dummy_server(RECALL, "0.25", PROFILE),
        dummy.dummy_server(RECALL, "0.25", "p", hetero_index="directions"),
    )
    found = [server.command[server.command.index("--hetero-index") + 1] for server in made]
    assert found == ["none", "directions"]
    assert "--hetero-index" not in dummy.dummy_server(RECALL, "full", None).command
