"""A matrix runs every sample once, whenever it is stopped, and tells samples and cells apart by their keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from fake_quality_server import FakePolicyServer, serving

from benchmarks.quality.cell import Cell, parse_cells
from benchmarks.quality.client import Client
from benchmarks.quality.host import Host, Running
from benchmarks.quality.matrix import Matrix, model_digest
from benchmarks.quality.sample import Sample
from benchmarks.quality.store import Store
from benchmarks.quality.tasks import TASKS
from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError

CELLS = parse_cells(["full", "heterocache"], [0.5, 0.3])


def samples(language: Language, seed: int = 0) -> list[Sample]:
    return [
        Sample(TASKS["needle"], 2048, seed, {"depth": 0.5}, language),
        Sample(TASKS["names"], 2048, seed, {"names": [1, 4]}, language),
    ]


def measured(store: Store) -> dict[str, dict]:
    """Records without what differs from run to run."""
    return {key: {**r, "seconds": 0, "begun": ""} for key, r in store.records.items()}


def test_a_stopped_run_goes_on_where_it_stopped_and_ends_alike(language: Language, tmp_path: Path) -> None:
    with serving(FakePolicyServer(language)) as fake:
        whole = Store(tmp_path / "whole")
        Matrix(CELLS, samples(language), whole, "m").run(Running(fake.url), "abc")
        sent = len(fake.prompts)

        parts = Store(tmp_path / "parts")
        with pytest.raises(KeyboardInterrupt):
            Matrix(CELLS, samples(language), parts, "m").run(stopping(fake.url, 3), "abc")
        assert len(parts.records) == 3
        parts.close()
        with (tmp_path / "parts" / "samples.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')  # as a kill in the middle of a write leaves it
        parts = Store(tmp_path / "parts")
        assert len(parts.records) == 3
        Matrix(CELLS, samples(language), parts, "m").run(Running(fake.url), "abc")
    assert measured(parts) == measured(whole)
    assert len(fake.prompts) == 2 * sent
    lines = (tmp_path / "parts" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == list(whole.records)


def stopping(url: str, after: int) -> Host:
    """A host whose user presses Ctrl-C when `after` samples are done, in whichever cell that is."""
    left = [None] * after

    class Stopped(Client):
        def flush(self) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            super().flush()

    class Stopping(Host):
        def serve(self, cell: Cell) -> AbstractContextManager[Client]:
            return nullcontext(Stopped(url))

    return Stopping()


def test_keys_tell_everything_apart_that_may_change_a_result(language: Language, tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    plain = Matrix(CELLS, samples(language), store, "m")
    others = [
        Matrix(CELLS, samples(language), store, "other"),
        Matrix(CELLS, samples(language), store, "m", {"hetero_window": "32"}),
        Matrix(CELLS, samples(language, seed=1), store, "m"),
        Matrix(parse_cells(["heterocache:retrieval=off", "snapkv"], [0.5]), samples(language), store, "m"),
    ]
    keys = [m.key(cell, item) for m in (plain, *others) for cell in m.cells for item in m.items]
    assert len(set(keys)) == len(keys)
    again = Matrix(CELLS, samples(language), store, "m")
    assert again.key(CELLS[1], again.items[0]) == plain.key(CELLS[1], plain.items[0])


def test_a_models_files_are_its_identity(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = model_digest(str(tmp_path))
    (tmp_path / "hetero_profile.json").write_text("{}")
    assert model_digest(str(tmp_path)) != first
    assert model_digest("a/name") != model_digest("b/name")


def test_a_cell_that_fails_is_noted_and_the_others_run(language: Language, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(FakePolicyServer(language)) as fake:

        class Failing(Host):
            @contextmanager
            def serve(self, cell: Cell) -> Iterator[Client]:
                if cell.ratio == 0.5:
                    raise HeteroError("it does not start")
                yield Client(fake.url)

        matrix = Matrix(CELLS, samples(language), store, "m")
        matrix.run(Failing(), "abc")
    assert matrix.failures == {"heterocache at 0.5": "it does not start"}
    assert {(r["policy"], r["ratio"]) for r in matrix.finished()} == {("full", None), ("heterocache", 0.3)}


def test_a_server_that_dies_keeps_what_it_finished(language: Language, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(FakePolicyServer(language, fail_after=1)) as fake:
        matrix = Matrix(CELLS[:1], samples(language), store, "m")
        matrix.run(Running(fake.url), "abc")
    assert "refused the prompt (500)" in matrix.failures["full"]
    assert len(store.records) == 1


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(HeteroError, match="Another run"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(HeteroError, match="Line 2 of .* is no sample"):
        Store(tmp_path)
