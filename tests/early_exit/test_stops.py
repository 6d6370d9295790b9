"""Where passes may end, how wide their parts are, and what a part waits for before it plans."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.sglang.early_exit import plans
from hetero_sglang.sglang.early_exit.check import MOST_BATCH
from hetero_sglang.sglang.early_exit.passes import stops_of
from hetero_sglang.sglang.early_exit.plans import DensePlan
from hetero_sglang.sglang.early_exit.recorded import widths_to


def exits(layers: int, *branches: int) -> Any:
    return SimpleNamespace(layers=layers, branches=[SimpleNamespace(layer=layer) for layer in branches])


def stops(model: Any, thresholds: list[float], ahead: int) -> list[tuple[int, int | None]]:
    return [(stop.layer, stop.branch) for stop in stops_of(model, thresholds, ahead)]


def test_a_pass_ends_behind_a_branch_or_while_it_goes_on() -> None:
    model = exits(32, 19, 26, 27, 30)
    assert stops(model, [0.5] * 4, 0) == [(19, 0), (26, 1), (27, 2), (30, 3)]
    assert stops(model, [0.5] * 4, 2) == [(19, 0), (21, None), (26, 1), (27, 2), (29, None)]
    assert stops(model, [1.0, 0.5, 1.0, 0.5], 2) == [(26, 1), (28, None)]
    assert stops(model, [1.0] * 4, 2) == stops(model, [1.0, 1.0, 1.0, 0.5], 2) == []


@given(
    st.lists(st.tuples(st.integers(1, 31), st.sampled_from([0.5, 1.0])), unique_by=lambda x: x[0]), st.integers(0, 5)
)
def test_every_answer_is_waited_for(branches: list[tuple[int, float]], ahead: int) -> None:
    branches = sorted(branches)
    found = stops(exits(32, *(layer for layer, _ in branches)), [least for _, least in branches], ahead)
    layers = [layer for layer, _ in found]
    assert layers == sorted(set(layers)) and all(layer < 32 for layer in layers)
    for at, (layer, number) in enumerate(found):
        if number is not None:
            assert branches[number] == (layer, 0.5)
            assert not ahead or layer < layers[at + 1] <= layer + ahead
    asked = {branches[number][0] for _, number in found if number is not None}
    assert asked == {layer for layer, least in branches if least < 1 and layer < 32 - ahead}


@pytest.mark.parametrize("most", [1, 3, 4, 24, MOST_BATCH])
def test_the_widest_parts_are_for_the_largest_batch(most: int) -> None:
    widths = widths_to(most)
    assert widths[-1] == most and list(widths) == sorted(set(widths)) and widths[0] == 1


def test_a_plan_is_not_written_over_while_the_device_may_copy_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()

    def planned(batch: Any, in_capture: bool) -> None:
        told.append(f"{batch.batch_size} planned{' in capture' * in_capture}")

    def marked(device: torch.device) -> Any:
        number = sum("planned" in each for each in told)
        return SimpleNamespace(wait=lambda: told.append(f"waits for plan {number}"))

    monkeypatch.setattr(plans, "mark", marked)
    plan = DensePlan(SimpleNamespace(init_cuda_graph_state=lambda *_: None, init_forward_metadata_out_graph=planned), 8)
    for size in (2, 4, 2, 2):
        plan.outside(SimpleNamespace(batch_size=size, seq_lens=torch.zeros(size)), [])
    first = ["2 planned in capture", "4 planned in capture"]
    assert told == [*first, "waits for plan 1", "2 planned", "waits for plan 3", "2 planned"]
