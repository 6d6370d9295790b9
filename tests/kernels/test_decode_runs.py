"""Runs of tokens: ring rows that a selected run holds again count once, wherever a row is cut into items."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from test_device_engine import DEVICE

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.config.layout import HeadLayout, LayerLayout
from hetero_sglang.ops import reference, triton
from hetero_sglang.ops.base import LayerBuffers, passed
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.ops.triton.attend import AttendStep
from hetero_sglang.ops.triton.decode import BESIDE

WINDOW, GROUP, DIM, PAGE, SLOTS = 64, 4, 16, 16, 2048
LAYOUT = HeadLayout((LayerLayout((), (0,), (0.5,), (), 0),))


def attended(
    ops, device: torch.device | str, make, cap: int, length: int, run: int, longest: int | None = None,
    dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
) -> torch.Tensor:  # fmt: skip
    """By one compressed head of `cap` rows, [1, GROUP, DIM]; what the rows hold follows from `cap` and `length`.

    `longest`: run of any layer; `dtypes`: of queries and of rows."""
    g = torch.Generator().manual_seed(cap * 10_000 + length)
    k, v = torch.randn(2, -(-cap // PAGE) + 1, PAGE, DIM, generator=g).to(dtypes[1]).to(device)
    q = torch.randn(1, GROUP, DIM, generator=g).to(dtypes[0]).to(device)
    ints = {"dtype": torch.int32, "device": device}
    nothing = torch.zeros(SLOTS, 0, DIM, device=device)
    role, position = torch.tensor([-1], **ints), torch.zeros(k.shape[:2], **ints)
    buffers = LayerBuffers(role, nothing, nothing, nothing[None], k, v, position, position.float(), 0)
    rule = SimpleNamespace(sink=longest or run, ring=WINDOW + (longest or run) - 1)
    tables = DeviceTables(1, 1, len(k), device)
    tables.page_list[: len(k)] = torch.arange(len(k), **ints)
    tables.cap[0] = cap
    step = DecodeStep(
        ops, SimpleNamespace(layout=LAYOUT, rule=rule, runs=[run]), tables, 1, SLOTS, GROUP, DIM, q.dtype, make
    )
    step.fill([[length], *[[0]] * 5], 1, torch.zeros(1, SLOTS, **ints))
    return step.kernel.attend(0, q, buffers, step.plan(1), DIM**-0.5)


def items_that_count_nothing(cap: int, length: int, run: int) -> bool:
    """Whether the rows of the last, partial block of 64 are all passed by the window and held by a run, too."""
    oldest = length - (WINDOW + run - 1)
    rows = ring_row(torch.arange(oldest, oldest + passed(length, WINDOW + run - 1, run)), cap, run, WINDOW + run - 1)
    return set(range(cap // 64 * 64, cap)) <= set(rows.tolist())


@pytest.mark.parametrize(
    ("run", "cap", "length"), [(4, 131, 396), (4, 1027, 1292), (4, 1027, 1560), (8, 519, 1080), (4, 131, 397)]
)
def test_an_item_of_passed_rows_alone_adds_nothing(run: int, cap: int, length: int) -> None:
    assert items_that_count_nothing(cap, length, run) == (length != 397)
    wanted = attended(reference, "cpu", None, cap, length, run)
    got = attended(triton, DEVICE, lambda step: AttendStep(step, BESIDE), cap, length, run).cpu()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("run", "longest", "every"), [(4, 4, 3), (8, 8, 3), (1, 8, 13), (4, 8, 13)])
def test_no_length_of_many_loses_a_row(run: int, longest: int, every: int) -> None:
    cap = 128 + longest - 1
    for length in range(cap + 1, cap + 2 * WINDOW + 3 * longest, every):
        wanted = attended(reference, "cpu", None, cap, length, run, longest)
        got = attended(triton, DEVICE, lambda step: AttendStep(step, BESIDE), cap, length, run, longest).cpu()
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_rows_of_8_bits_are_multiplied_in_half_precision(stored: torch.dtype) -> None:
    """Of a model in bfloat16, whose queries and outputs keep their 8 bits."""
    for cap, length, run in ((131, 396, 4), (1027, 1292, 4), (300, 280, 1)):
        wanted = attended(reference, "cpu", None, cap, length, run, None, (torch.bfloat16, stored))
        got = attended(
            triton, DEVICE, lambda step: AttendStep(step, BESIDE), cap, length, run, None, (torch.bfloat16, stored)
        )
        assert got.dtype is torch.bfloat16
        torch.testing.assert_close(got.cpu().float(), wanted.float(), rtol=2**-7, atol=2**-9)
