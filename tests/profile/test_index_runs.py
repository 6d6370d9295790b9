"""The run of a key index is found by playing the lazy rule on decode steps of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_checkpoint

from hetero_sglang.calibration import runs
from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.reading import Reading, read
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first
from hetero_sglang.ops.reference.index import attention_guess, encode_keys, run_scores, unpack
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan
from hetero_sglang.selection.scores import attention_scores

Ways = Sequence[Sequence[runs.Way]]


def document(length: int) -> Document:
    return Document("text", "", tuple(np.random.default_rng(length).integers(3, 2900, length).tolist()))


def texts(*lengths: int) -> list[Reading]:
    """As if read."""
    return [Reading(document(length), []) for length in lengths]


@pytest.fixture(scope="module")
def model(tmp_path_factory, recall_model: Path) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("runs") / "tiny", "llama", recall_model), "cpu")


@pytest.fixture(scope="module")
def reading(model) -> Reading:
    return read(model, document(400), 32 + 100)


@pytest.fixture(scope="module")
def plan(model) -> IndexPlan:
    moments = Moments(2)
    read(model, document(400), 1, moments)
    return plan_index(moments.all(), ((8, 4), (8, 2)))


def step_by_step(reading: Reading, rows: int, plan: IndexPlan, ways: Ways) -> torch.Tensor:
    """What `play` finds, a step of a layer at a time, as a server's reference operations go."""
    begin, found = reading.length - min(runs.STEPS, reading.length // 4), []
    for layer, a in enumerate(reading):
        encode, offset, decode = (torch.from_numpy(t[layer]) for t in (plan.encode, plan.offset, plan.decode))
        codes = unpack(encode_keys(a.key.transpose(0, 1), encode, offset, plan.fields), plan.fields)
        heads, groups = len(codes), len(a.query) // len(codes)
        query, key = a.upto(begin, 32)
        first = attention_scores(
            query.unflatten(0, (heads, groups)).permute(2, 0, 1, 3), key.transpose(0, 1), a.scaling
        )
        held, used = [], []
        for run, _, size in ways[layer]:
            best, low, high = run_scores(first, run), 8 // run, (begin - 64) // run
            held.append(best[:, low:high].topk(min(int(size * rows) // run, high - low)).indices.int() + low)
            used.append(used_at_first(best).gather(1, held[-1].long()))
        errors = []
        for length in range(begin + 1, reading.length + 1):
            query, key = a.upto(length, 1)
            query = query.unflatten(0, (heads, groups))[:, :, 0]  # [H, G, D]
            guess = attention_guess(query, codes[:, : length - 1], decode, a.scaling)
            weights = (query @ key.transpose(1, 2) * a.scaling).softmax(-1)  # [H, G, L]
            value = a.value[:, :length]
            now = []
            for (run, every, _), mine, times in zip(ways[layer], held, used, strict=True):
                if every and length % every == 0:
                    want, high = max(1, mine.shape[1] // PART), (length - 64) // run
                    swaps = lazy(run_scores(guess, run), mine, times, length, 8 // run, high, want, 2048)
                    mine[swaps.head, swaps.place] = swaps.run.int()
            for mine, (run, *_) in zip(held, ways[layer], strict=True):
                kept = torch.zeros(heads, length, dtype=torch.bool)
                kept[:, :8] = kept[:, (length - 64) // run * run :] = True
                for head in range(heads):
                    for start in (mine[head] * run).tolist():
                        kept[head, start : start + run] = True
                part = weights * kept[:, None]
                change = part @ value / part.sum(-1, keepdim=True) - weights @ value
                now.append((change.square().sum(-1) / (weights @ value).square().sum(-1)).mean(1))
            errors.append(torch.stack(now))
        found.append(torch.stack(errors).mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("rows", [40, 200])
def test_what_is_played_at_once_is_what_is_found_step_by_step(reading, plan, rows, monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 40)
    ways = [[(1, 1, 1.0), (4, 2, 1.0), (8, 1, 2.0), (1, 0, 0.5)], [(4, 1, 0.5), (4, 4, 1.0), (1, 2, 1.0), (4, 1, 0.5)]]
    found = runs.play(runs.ask(reading, plan), rows, ways)
    torch.testing.assert_close(found, step_by_step(reading, rows, plan, ways), atol=1e-6, rtol=1e-3)


def test_who_keeps_more_rows_loses_less_and_who_keeps_all_nothing(reading, plan, monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 40)
    layers, heads = plan.encode.shape[:2]
    ways = tuple(product(RUNS, (*EVERY, 0), (1.0, 4.0, 7.2)))
    lost = runs.play(runs.ask(reading, plan), 40, [ways] * layers)
    assert lost.shape == (layers, len(ways), heads)
    lost = lost.mean((0, 2)).view(-1, 3).T  # [sizes, ways]
    assert (lost[0] > lost[1]).all() and (lost[1] > lost[2]).all()
    assert (lost[2] < 0.05 * lost[0]).all()  # but for tokens that leave the window


def played(plan: IndexPlan, losses: list[float], ways: Ways) -> torch.Tensor:
    """The same for every head: by runs, in every second step little worse, and without finding rows; less the more."""
    *by_run, never = losses

    def lost(run: int, every: int, size: float) -> float:
        return (by_run[RUNS.index(run)] + {1: 0, 2: 0.001, 4: 0.05}[every] if every else never) / size

    return torch.tensor([[lost(*way) for way in some] for some in ways])[..., None].repeat(1, 1, plan.encode.shape[1])


@pytest.mark.parametrize(("run", "heads"), [(None, "all"), (None, "auto"), (8, "auto"), (1, "auto")])
def test_the_least_loss_over_all_texts_decides(plan, run, heads, monkeypatch):
    losses = {4000: [0.2, 0.1, 0.3, 0.5], 3000: [0.2, 0.25, 0.4, 0.5]}
    seen = []

    def play(text: Reading, rows: int, ways: Ways) -> torch.Tensor:
        seen.append((text.length, rows))
        found = played(plan, losses[text.length], ways)
        if ways[0][0][2] != 1:  # how many rows
            return found
        if ways[0][1][1] == 1:  # which runs
            assert [list(some) for some in ways] == [[*((each, 1, 1.0) for each in RUNS), (1, 0, 1.0)]] * len(ways)
            found[1, 0] -= 0.2  # a layer that wants single rows
        else:
            assert [list(some) for some in ways] == [[(each, n, 1.0) for n in (*EVERY, 0)] for each in played_run]
            found[0, 1:-1, 1] += 0.1  # a head for whose sake its layer does in every step
            found[1, -1, 0] = found[1, 0, 0] + 0.0015  # a head whose output gains little
        return found

    monkeypatch.setattr(runs, "play", play)
    monkeypatch.setattr(runs, "ask", lambda reading, plan: reading)
    options = IndexOptions(plan.fields, run, 4000, heads)
    played_run = [run or 4, run or 1]
    given = plan if run is None else replace(plan, run=run)
    made = runs.fitted(texts(1000, 3000, 4000), given, options)
    # The index takes 0.094 of the ratio, sinks and recent tokens 72 rows.
    assert seen == [(3000, 96), (4000, 152)] * ((run is None) + (heads == "auto") + 1)
    assert made.run.tolist() == played_run
    wanted = np.full(plan.encode.shape[:2], 2 if heads == "auto" else 1)
    if heads != "all":
        wanted[0], wanted[1, 0] = 1, 0
    assert np.array_equal(made.every, wanted)
    assert made.weight.mean() == pytest.approx(1)
    if heads == "auto":  # the head without an index loses most
        assert made.weight[1, 0] == made.weight.max() > made.weight[0, 0]


@pytest.mark.parametrize(("more", "taken"), [(0.0015, 8), (0.003, 4)])
def test_a_longer_run_that_loses_little_more_is_taken(plan, more, taken, monkeypatch):
    monkeypatch.setattr(runs, "ask", lambda reading, plan: reading)
    monkeypatch.setattr(runs, "play", lambda *given: played(plan, [0.2, 0.1, 0.1 + more, 0.5], given[-1]))
    made = runs.fitted(texts(4000), plan, IndexOptions(plan.fields, None, 4000, "all"))
    assert (made.run == taken).all()


@pytest.mark.parametrize(("single", "taken"), [(0.102, 1), (0.3, 8)])
def test_a_layer_where_no_head_gains_has_single_rows_unless_these_lose(plan, single, taken, monkeypatch):
    """From the prompt's end on."""

    def play(asked: Reading, rows: int, ways: Ways) -> torch.Tensor:
        first_stage = len({run for run, *_ in ways[0]}) > 1
        return played(plan, [0.1, 0.1, 0.1, single if first_stage else 0.101], ways)

    monkeypatch.setattr(runs, "ask", lambda reading, plan: reading)
    monkeypatch.setattr(runs, "play", play)
    made = runs.fitted(texts(4000), plan, IndexOptions(plan.fields, None, 4000, "auto"))
    assert (made.run == taken).all() and not made.every.any()


def test_where_runs_and_turns_are_given_rows_alone_are_found(plan, monkeypatch):
    plan, asked = replace(plan, run=4), []

    def play(text: Reading, rows: int, ways: Ways) -> torch.Tensor:
        asked.append(ways)
        return torch.rand(2, 4, 2)

    monkeypatch.setattr(runs, "ask", lambda reading, plan: reading)
    monkeypatch.setattr(runs, "play", play)
    made = runs.fitted(texts(4000), plan, IndexOptions(plan.fields, 4, 4000, "all"))
    assert asked == [[[(4, 1, size) for size in runs.SIZES] * 2] * 2]
    assert (made.run == 4).all() and (made.every == 1).all() and len(set(made.weight.ravel())) > 1


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_no_other_sharing_of_rows_loses_less(seed, heads):
    rng = np.random.default_rng(seed)
    at_mean, power = 10 ** rng.uniform(-6, 0, (1, heads)), rng.uniform(0.05, 3, (1, heads))
    few, many = (at_mean / size**power for size in runs.SIZES)
    found = runs.weights(few, many)
    assert found.mean() == pytest.approx(1) and (found >= runs.FEWEST - 1e-9).all()
    assert (found <= runs.MOST_ROWS + 1e-9).all()
    least = (at_mean / found**power).sum()
    for _ in range(20):  # some rows from one head to another
        giver, taker = rng.choice(heads, 2, replace=False)
        other, amount = found.copy(), rng.uniform(0, 0.2)
        amount = min(amount, other[0, giver] - runs.FEWEST, runs.MOST_ROWS - other[0, taker])
        other[0, giver], other[0, taker] = other[0, giver] - amount, other[0, taker] + amount
        assert (at_mean / other**power).sum() >= least * (1 - 1e-9)


def test_heads_that_lose_nothing_share_alike():
    assert runs.weights(np.zeros((2, 3)), np.zeros((2, 3))) == pytest.approx(np.ones((2, 3)))
    more = runs.weights(np.full((1, 2), 0.1), np.full((1, 2), 0.2))  # noise: fewer rows lose less
    assert more == pytest.approx(np.ones((1, 2)))


def test_texts_too_short_to_tell_give_rows_one_by_one_to_all(plan, monkeypatch):
    monkeypatch.setattr(runs, "ask", lambda *given: pytest.fail("nothing to learn here"))
    made = runs.fitted(texts(30, 400), plan, IndexOptions(plan.fields, None, 4000))
    assert (made.run == 1).all() and (made.every == 1).all()


def test_the_longest_texts_are_played_and_all_are_read(model, monkeypatch):
    played_on, seen = [], []
    monkeypatch.setattr(runs, "fitted", lambda readings, plan, options: played_on.extend(readings) or plan)
    monkeypatch.setattr(runs, "DOCUMENTS", 2)
    options = IndexOptions(((8, 4),), None, 4000)
    made = runs.index_of(model, [document(n) for n in (200, 90, 300, 100)], options, lambda n: None, 10, seen.append)
    assert [text.length for text in seen] == [200, 90, 300, 100]
    assert [text.length for text in played_on] == [200, 300]
    assert made.encode.shape == (2, 2, 16, 8)
