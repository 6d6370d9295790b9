"""The run of a key index is found by playing the lazy rule on decode steps of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from profile_builders import write_checkpoint

from hetero_sglang.calibration import runs
from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.moments import prefill
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan


def document(length: int) -> Document:
    return Document("text", "", tuple(np.random.default_rng(length).integers(3, 2900, length).tolist()))


@pytest.fixture(scope="module")
def model(tmp_path_factory, recall_model: Path) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("runs") / "tiny", "llama", recall_model), "cpu")


@pytest.fixture(scope="module")
def plan(model) -> IndexPlan:
    return plan_index(prefill(model, [document(400)], lambda tokens: None).all(), ((8, 4), (8, 2)))


def test_who_keeps_more_rows_loses_less_and_who_keeps_all_nothing(model, plan, monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 40)
    layers, heads = plan.encode.shape[:2]
    ways = tuple(product(RUNS, EVERY))
    lost = torch.stack([runs._play(model, document(400), rows, plan, [ways] * layers) for rows in (40, 160, 288)])
    assert lost.shape == (3, layers, len(ways) + 1, heads)
    lost = lost.mean((1, 3))  # [sizes, ways and none]
    assert (lost[0] > lost[1]).all() and (lost[1] > lost[2]).all()
    assert (lost[2] < 0.05 * lost[0]).all()  # but for tokens that leave the window


Ways = Sequence[Sequence[tuple[int, int]]]


def played(plan: IndexPlan, losses: list[float], ways: Ways) -> torch.Tensor:
    """The same for every head: by runs, in every second step little worse, and without finding rows."""
    *by_run, never = losses
    each = [[by_run[RUNS.index(run)] + {1: 0, 2: 0.001, 4: 0.05}[every] for run, every in some] for some in ways]
    return torch.tensor([[*some, never] for some in each])[..., None].repeat(1, 1, plan.encode.shape[1])


@pytest.mark.parametrize(("run", "heads"), [(None, "all"), (None, "auto"), (8, "auto"), (1, "auto")])
def test_the_least_loss_decides_over_the_longest_texts(model, plan, run, heads, monkeypatch):
    losses = {4000: [0.2, 0.1, 0.3, 0.5], 3000: [0.2, 0.25, 0.4, 0.5]}
    seen = []

    def play(checkpoint: Checkpoint, text: Document, rows: int, made: IndexPlan, ways: Ways) -> torch.Tensor:
        seen.append((len(text.tokens), rows))
        found = played(plan, losses[len(text.tokens)], ways)
        if ways[0][1][1] == 1:  # which runs
            assert [list(some) for some in ways] == [[(each, 1) for each in RUNS]] * len(ways)
            found[1, 0] -= 0.2  # a layer that wants single rows
        else:
            assert [list(some) for some in ways] == [[(each, every) for every in EVERY] for each in played_run]
            found[0, 1:-1, 1] += 0.1  # a head for whose sake its layer does in every step
            found[1, -1, 0] = found[1, 0, 0] + 0.0015  # a head whose output gains little
        return found

    monkeypatch.setattr(runs, "_play", play)
    options = IndexOptions(plan.fields, run, 4000, heads)
    played_run = [run or 4, run or 1]
    given = plan if run is None else replace(plan, run=run)
    made = runs.fitted(model, [document(n) for n in (1000, 3000, 4000, 2000)], given, options)
    # The index takes 0.094 of the ratio, sinks and recent tokens 72 rows.
    assert seen == [(4000, 152), (3000, 96)] * ((run is None) + (heads == "auto"))
    assert made.run.tolist() == played_run
    wanted = np.full(plan.encode.shape[:2], 2 if heads == "auto" else 1)
    if heads != "all":
        wanted[0], wanted[1, 0] = 1, 0
    assert np.array_equal(made.every, wanted)


@pytest.mark.parametrize(("more", "taken"), [(0.0015, 8), (0.003, 4)])
def test_a_longer_run_that_loses_little_more_is_taken(model, plan, more, taken, monkeypatch):
    monkeypatch.setattr(runs, "_play", lambda *given: played(plan, [0.2, 0.1, 0.1 + more, 0.5], given[-1]))
    made = runs.fitted(model, [document(4000)], plan, IndexOptions(plan.fields, None, 4000, "all"))
    assert (made.run == taken).all()


@pytest.mark.parametrize(("single", "taken"), [(0.102, 1), (0.3, 8)])
def test_a_layer_where_no_head_gains_has_single_rows_unless_these_lose(model, plan, single, taken, monkeypatch):
    """From the prompt's end on."""
    never = {1: single, 8: 0.101}

    def play(*given) -> torch.Tensor:
        return played(plan, [0.1, 0.1, 0.1, never[given[-1][0][0][0]]], given[-1])

    monkeypatch.setattr(runs, "_play", play)
    made = runs.fitted(model, [document(4000)], plan, IndexOptions(plan.fields, None, 4000, "auto"))
    assert (made.run == taken).all() and not made.every.any()


def test_nothing_is_played_where_all_is_given(model, plan, monkeypatch):
    monkeypatch.setattr(runs, "_play", lambda *given: pytest.fail("nothing to learn"))
    assert runs.fitted(model, [document(4000)], plan, IndexOptions(plan.fields, 4, 4000, "all")) is plan


def test_texts_too_short_to_tell_give_rows_one_by_one_to_all(model, plan, monkeypatch):
    monkeypatch.setattr(runs, "_play", lambda *given: pytest.fail("nothing to learn here"))
    made = runs.fitted(model, [document(n) for n in (30, 400)], plan, IndexOptions(plan.fields, None, 4000))
    assert (made.run == 1).all() and (made.every == 1).all()
