"""Cells from the command line: policies, variants, ratios and the flags of their servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality.cell import Cell, parse_cells
from benchmarks.quality.host import parse_flags
from benchmarks.quality.preset import VARIANTS
from benchmarks.quality.ratios import parse_ratios
from benchmarks.quality.servers import last_word
from hetero_sglang.config.choices import POLICIES
from hetero_sglang.errors import HeteroError

MODEL = str(Path(__file__).parents[2] / "assets" / "recall-8m")


def test_full_has_no_ratio_and_comes_first() -> None:
    cells = parse_cells(["snapkv", "full", "heterocache"], [0.5, 0.3])
    assert [cell.label for cell in cells] == [
        "full",
        "snapkv at 0.5",
        "snapkv at 0.3",
        "heterocache at 0.5",
        "heterocache at 0.3",
    ]
    assert cells[0].flags == {"kv_policy": "full"}
    assert cells[1].flags == {"kv_policy": "snapkv", "hetero_keep_ratio": 0.5}


@pytest.mark.parametrize(
    "variant, flags",
    [
        ("heterocache:retrieval=off", {"hetero_retrieval": "off"}),
        ("heterocache:reassign", {"hetero_reassign": True}),
        (
            "heterocache:retrieval=replace:ablation=no-clusters",
            {"hetero_retrieval": "replace", "hetero_ablation": "no-clusters"},
        ),
    ],
)
def test_variants_become_flags(variant: str, flags: dict[str, object]) -> None:
    [cell] = parse_cells([variant], [0.5])
    assert cell.flags == {"kv_policy": "heterocache", "hetero_keep_ratio": 0.5, **flags}


def test_the_matrix_has_every_policy_and_heterocache_twice() -> None:
    cells = parse_cells(VARIANTS, [0.5])
    assert sorted({cell.policy for cell in cells}) == sorted(POLICIES) and len(cells) == len(POLICIES) + 1
    by_pivots, by_index = (cell.flags for cell in cells if cell.policy == "heterocache")
    assert (by_pivots["hetero_index"], by_pivots["hetero_roles"]) == ("none", "ratio")
    assert by_index["hetero_index"] == "directions" and "hetero_roles" not in by_index


def test_the_order_of_options_makes_no_other_cell() -> None:
    assert len(parse_cells(["heterocache:retrieval=off:reassign", "heterocache:reassign:retrieval=off"], [0.5])) == 1


@pytest.mark.parametrize(
    "variant, said",
    [
        ("h2o", "not one of full, heterocache"),
        ("snapkv:retrieval=off", "only heterocache"),
        ("heterocache:fast", "option 'fast'"),
        ("heterocache:retrieval=sometimes", "retrieval=accumulate|replace|off"),
        ("heterocache:reassign=yes", "reassign without a value"),
        ("heterocache:ablation", "ablation=uniform"),
    ],
)
def test_unknown_variants_are_refused_in_one_sentence(variant: str, said: str) -> None:
    with pytest.raises(HeteroError) as refused:
        parse_cells([variant], [0.5])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_ratios_count_from_the_models_floor() -> None:
    low, half = parse_ratios(["floor+0.02", "0.5", "0.5"], MODEL)
    assert half == 0.5
    assert parse_ratios(["floor"], MODEL) == [round(low - 0.02, 4)]


@pytest.mark.parametrize("word", ["0", "1.5", "-0.1", "half", "0.3+0.1", "floor+x", "nan"])
def test_other_ratios_are_refused(word: str) -> None:
    with pytest.raises(HeteroError, match="Keep ratio"):
        parse_ratios([word], MODEL)


def test_a_server_of_another_cell_is_refused() -> None:
    cell = Cell("snapkv", 0.5)
    cell.check({"kv_policy": "snapkv", "hetero_keep_ratio": 0.5})
    cell.check({})
    with pytest.raises(HeteroError, match="0.3, not 0.5"):
        cell.check({"kv_policy": "snapkv", "hetero_keep_ratio": 0.3})


def test_server_flags_are_read_from_one_string() -> None:
    flags = parse_flags("--hetero-window 32 --disable-overlap-schedule --hetero-sink=4")
    assert flags == {"hetero_window": "32", "disable_overlap_schedule": True, "hetero_sink": "4"}
    with pytest.raises(HeteroError, match="follows no --flag"):
        parse_flags("--hetero-window 32 64")


def test_the_last_word_of_a_log_is_its_error() -> None:
    refused = "INFO starting\nlaunch_server.py: error: argument --kv-policy: invalid choice: 'x'\n\nbye\n"
    assert last_word(refused) == "argument --kv-policy: invalid choice: 'x'"
    assert last_word("Traceback:\n  here\nbuiltins.ValueError: no\nSIGQUIT received\n") == "builtins.ValueError: no"
    assert last_word("a\nb\n") == "b"
    assert last_word("") == "it said nothing"
