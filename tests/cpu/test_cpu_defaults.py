from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cpu import defaults
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.version import installed

OPEN = {
    "device": None,
    "attention_backend": None,
    "max_total_tokens": None,
    "mem_fraction_static": None,
    "context_length": None,
    "max_running_requests": None,
    "dp_size": 1,
    "tp_size": 1,
    "enable_torch_compile": False,
    "enable_lora": None,
    "lora_paths": None,
    "lora_backend": "csgmv",
}
CHOSEN = {
    **OPEN,
    "device": "cpu",
    "attention_backend": "intel_amx",
    "max_total_tokens": 77,
    "mem_fraction_static": 0.3,
    "max_running_requests": 5,
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine without a GPU, after `activate`."""
    environ = {"SGLANG_USE_CPU_ENGINE": "1"}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(defaults, "has_amx", lambda: False)
    return environ


def applied(**given: Any) -> dict[str, Any]:
    args = SimpleNamespace(**given)
    defaults.apply_cpu_defaults(args)
    return vars(args)


@pytest.mark.parametrize("lora", [{"enable_lora": True}, {"lora_paths": ["a=/a"]}])
def test_adapters_are_served_by_the_backend_that_needs_no_gpu(environ: dict[str, str], lora: dict[str, Any]) -> None:
    assert applied(**{**OPEN, **lora})["lora_backend"] == "torch_native"


def test_what_the_user_left_open_is_filled(environ: dict[str, str]) -> None:
    assert applied(**OPEN) == {
        **OPEN,
        "attention_backend": "torch_native",
        "max_total_tokens": defaults.MAX_TOTAL_TOKENS,
        "mem_fraction_static": defaults.MEM_FRACTION,
        "max_running_requests": defaults.MAX_RUNNING_REQUESTS,
    }
    assert environ["TORCH_COMPILE_DISABLE"] == "1"


def test_what_the_user_chose_stays(environ: dict[str, str]) -> None:
    environ["TORCH_COMPILE_DISABLE"] = "0"
    assert applied(**CHOSEN) == CHOSEN
    assert environ["TORCH_COMPILE_DISABLE"] == "0"


def test_a_memory_fraction_of_the_users_sizes_the_pool_alone(environ: dict[str, str]) -> None:
    assert applied(**{**OPEN, "mem_fraction_static": 0.3})["max_total_tokens"] is None


def test_one_request_of_the_context_length_fits(environ: dict[str, str]) -> None:
    longer = defaults.MAX_TOTAL_TOKENS + 1
    assert applied(**{**OPEN, "context_length": longer})["max_total_tokens"] == longer


def test_every_data_parallel_worker_gets_the_same_number_of_requests(environ: dict[str, str]) -> None:
    assert applied(**{**OPEN, "dp_size": 3})["max_running_requests"] == 3 * defaults.MAX_RUNNING_REQUESTS


def test_amx_keeps_sglangs_own_backend(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "has_amx", lambda: True)
    assert applied(**OPEN)["attention_backend"] is None


def test_compilation_asked_for_is_not_switched_off(environ: dict[str, str]) -> None:
    applied(**{**OPEN, "enable_torch_compile": True})
    assert "TORCH_COMPILE_DISABLE" not in environ


@pytest.mark.parametrize("engine, device", [("0", None), (None, None), (None, "cuda"), ("1", "cuda")])
def test_nothing_happens_off_the_cpu(environ: dict[str, str], engine: str | None, device: str | None) -> None:
    environ.pop("SGLANG_USE_CPU_ENGINE")
    if engine is not None:
        environ["SGLANG_USE_CPU_ENGINE"] = engine
    before = dict(environ)
    assert applied(**{**OPEN, "device": device, "tp_size": 2}) == {**OPEN, "device": device, "tp_size": 2}
    assert environ == before


def test_the_next_server_inherits_nothing_of_the_last_but_what_the_user_set(environ: dict[str, str]) -> None:
    environ["OMP_WAIT_POLICY"] = "ACTIVE"
    before = dict(environ)
    applied(**{**OPEN, "tp_size": 2})
    assert environ["SGLANG_CPU_OMP_THREADS_BIND"].count("|") == 1
    applied(**{**OPEN, "tp_size": 3})
    assert environ["SGLANG_CPU_OMP_THREADS_BIND"].count("|") == 2
    applied(**{**OPEN, "enable_torch_compile": True})
    environ.pop(defaults.EXPORTED)
    assert environ == before


@pytest.mark.parametrize(
    "odd",
    ["", "no", "[]", "5", '{"A": 5}', "[" * 100_000, "1" * 5000, "null", "x" * 100_000],
    ids=lambda text: text[:9],
)
def test_a_list_of_variables_that_is_none_of_ours_is_refused_in_a_sentence(environ: dict[str, str], odd: str) -> None:
    environ[defaults.EXPORTED] = odd
    with pytest.raises(HeteroError, match=f"^{defaults.EXPORTED} is set to .*; unset it.$") as refusal:
        applied(**OPEN)
    assert len(str(refusal.value)) < 200


def test_one_rank_on_many_cores_is_left_as_sglang_has_it() -> None:
    assert defaults.environment(list(range(defaults.FEW_CORES + 1)), 1, compiles=True) == {}


def test_threads_sleep_instead_of_spinning_where_cores_are_few() -> None:
    assert defaults.environment([0, 1], 1, compiles=True) == {"OMP_WAIT_POLICY": "PASSIVE"}


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True), st.integers(2, 9))
def test_threads_are_shared_out_evenly_and_disjointly_while_cores_suffice(cpus: list[int], ranks: int) -> None:
    bound = [[int(cpu) for cpu in rank.split(",")] for rank in defaults.thread_binding(cpus, ranks).split("|")]
    assert len(bound) == ranks and len({len(rank) for rank in bound}) == 1
    used = [cpu for rank in bound for cpu in rank]
    assert set(used) <= set(cpus)
    if ranks <= len(cpus):
        assert len(set(used)) == len(used) > len(cpus) - ranks  # fewer than one core per rank is left over
    else:
        assert set(used) == set(cpus)


def test_the_fields_exist_in_sglang() -> None:
    from sglang.srt.server_args import ServerArgs

    configuration: Configuration = installed("configuration")
    assert set(OPEN) <= set(configuration.names(ServerArgs))
