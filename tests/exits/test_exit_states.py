"""A file of states gives back what was written, and goes on where a run was ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.exits.collect import collect, records
from hetero_sglang.calibration.exits.states import Batch, States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.calibration.exits.windows import Window
from hetero_sglang.errors import HeteroError

CPU = torch.device("cpu")
NAMES = ("states", "first", "divisor", "next")


def whole(tokens: tuple[int, ...]) -> Window:
    return Window(tokens, (True,) * len(tokens))


def batch(count: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(count, 3, 5, generator=rng).to(dtype)
    first, after = (torch.randint(-1, 99, (count,), generator=rng) for _ in range(2))
    return Batch(states, first, torch.randn(count, generator=rng), after)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_rows_are_those_that_were_written(tmp_path: Path, counts: list[int], data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    path = tmp_path / "states"
    path.unlink(missing_ok=True)
    written = [batch(count, dtype, seed) for seed, count in enumerate(counts)]
    whole = Batch(*(torch.cat([getattr(b, name) for b in written]) for name in NAMES))
    with States(path, 3, 5, dtype) as states:
        for each in written:
            states.append(each)
    with States(path, 3, 5, dtype) as states:
        assert len(states) == sum(counts)
        numbers = data.draw(st.lists(st.integers(0, len(states) - 1), max_size=12).filter(bool))
        chunks = list(states.chunks(1, len(states), 4, CPU))
        for found, at in [(states.rows(numbers, CPU), numbers), *((c, None) for c in chunks)]:
            begin = 1 + 4 * next((n for n, c in enumerate(chunks) if c is found), 0)
            at = at or list(range(begin, begin + len(found.first)))
            for name in NAMES:
                assert torch.equal(getattr(found, name), getattr(whole, name)[at])
        assert sum(len(chunk.first) for chunk in chunks) == len(states) - 1
        assert torch.equal(states.first_choices(len(states)), whole.first)


@pytest.mark.parametrize("cut", [0, 1, 700, 20000, 33333])
def test_reading_goes_on_where_it_was_ended(tiny: Path, tmp_path: Path, cut: int) -> None:
    """Wherever in the file; the states are the same, and what is there is not read again."""
    checkpoint = open_checkpoint(tiny, "cpu")
    teacher = Teacher.of(checkpoint)
    windows = [whole(tuple(range(2 + 100 * n, 70 + 101 * n))) for n in range(3)]
    read: list[int] = []
    checkpoint.model.base_model.register_forward_pre_hook(lambda *_: read.append(1))
    paths = [tmp_path / "undisturbed", tmp_path / "ended"]
    for path in paths:
        if path.name == "ended":
            path.write_bytes(paths[0].read_bytes()[:cut])
        read.clear()
        advanced: list[int] = []
        with States(path, 2, 64, torch.float32) as states:
            collect(checkpoint, teacher, windows, [2], states, advanced.append)
            assert len(states) == records(windows)
        assert sum(advanced) == sum(len(window.tokens) for window in windows)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    size = paths[0].stat().st_size // records(windows)
    assert len(read) == sum(cut < size * records(windows[: n + 1]) for n in range(3))


def test_states_that_the_disk_cannot_take_are_refused(tmp_path: Path) -> None:
    with States(tmp_path / "states", 3, 5, torch.float32) as states:
        states.check_room(1000)
        with pytest.raises(HeteroError, match="choose a smaller `--tokens`"):
            states.check_room(10**15)
