from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hetero_sglang.cpu import platform
from hetero_sglang.cpu.sgl_kernel_stub import NAMES

VARIABLE = platform.ENGINE_VARIABLE


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA build of torch without a card, no sgl_kernel that loads, no variable set: a case for the CPU."""
    hidden = (VARIABLE, platform.CHOICE_VARIABLE, "CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(os, "environ", {name: os.environ[name] for name in os.environ if name not in hidden})
    monkeypatch.setattr(platform, "NVIDIA_NODES", tuple(str(tmp_path) + node for node in platform.NVIDIA_NODES))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    give_torch(monkeypatch, cuda="13.0")
    package(tmp_path, "sgl_kernel", "raise ImportError('libcuda.so.1')")
    return tmp_path


def give_torch(monkeypatch: pytest.MonkeyPatch, **build: str | None) -> None:
    version = SimpleNamespace(**{"cuda": None, "hip": None, "xpu": None, **build})
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=version))


def package(folder: Path, name: str, body: str = "", **submodules: str) -> None:
    (folder / name).mkdir()
    for file, text in {"__init__": body, **submodules}.items():
        (folder / name / f"{file}.py").write_text(text)


def node(machine: Path, path: str) -> None:
    file = machine / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def engine() -> str | None:
    assert platform.activate() is None
    return os.environ.get(VARIABLE)


def test_no_card_means_the_cpu_engine(machine: Path) -> None:
    assert engine() == "1" and platform.cpu_engine()


@pytest.mark.parametrize(
    "path",
    ["/dev/nvidia0", "/dev/nvidia13", "/dev/nvidiactl", "/dev/nvhost-gpu", "/usr/lib/wsl/lib/libcuda.so.1"],
)
def test_any_trace_of_an_nvidia_driver_leaves_sglang_alone(machine: Path, path: str) -> None:
    node(machine, path)
    assert engine() is None and "sgl_kernel" not in sys.modules


@pytest.mark.parametrize("visible, hidden", [("", True), ("-1", True), ("NoDevFiles", True), ("-1,0", True)])
@pytest.mark.parametrize("other, seen", [("0", False), ("3,-1", False), ("GPU-5f", False), ("MIG-7a", False)])
def test_hidden_cards_are_no_cards(machine: Path, visible: str, hidden: bool, other: str, seen: bool) -> None:
    node(machine, "/dev/nvidia0")
    os.environ["CUDA_VISIBLE_DEVICES"] = other
    assert (engine() == "1") is seen
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    assert (engine() == "1") is hidden


@pytest.mark.parametrize("build", [{"hip": "7.0"}, {"xpu": "20250300"}])
def test_another_vendors_torch_is_left_alone(
    machine: Path, monkeypatch: pytest.MonkeyPatch, build: dict[str, str]
) -> None:
    give_torch(monkeypatch, **build)
    assert engine() is None


@pytest.mark.parametrize("name", platform.OTHER_VENDORS)
def test_another_vendors_package_is_left_alone(machine: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    give_torch(monkeypatch, cuda=None)
    package(machine, name)
    assert engine() is None


def test_a_cpu_build_of_torch_means_the_cpu_engine_beside_any_card(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(machine, "/dev/nvidia0")
    give_torch(monkeypatch, cuda=None)
    assert engine() == "1"


@pytest.mark.parametrize("value", ["0", "", "1"])
@pytest.mark.parametrize("card", [False, True])
def test_what_the_user_set_stays(machine: Path, value: str, card: bool) -> None:
    os.environ[VARIABLE] = value
    if card:
        node(machine, "/dev/nvidia0")
    assert engine() == value
    assert ("sgl_kernel" in sys.modules) is (value == "1")  # the stand-in belongs to the CPU engine alone


def test_a_build_that_loads_wins_over_the_stand_in(machine: Path) -> None:
    (machine / "sgl_kernel" / "__init__.py").write_text("real = True")
    assert engine() == "1" and sys.modules["sgl_kernel"].real


def test_a_build_that_breaks_half_way_leaves_nothing_behind(machine: Path) -> None:
    (machine / "sgl_kernel" / "__init__.py").write_text("import sgl_kernel.half\nraise RuntimeError('no driver')")
    (machine / "sgl_kernel" / "half.py").touch()
    engine()
    left = [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]
    assert left == ["sgl_kernel", "sgl_kernel.speculative"] and set(NAMES) <= set(vars(sys.modules["sgl_kernel"]))


def test_a_child_that_gets_a_card_does_not_inherit_the_choice(machine: Path) -> None:
    assert engine() == "1"
    node(machine, "/dev/nvidia0")
    assert engine() is None and platform.CHOICE_VARIABLE not in os.environ


def test_a_users_refusal_outlives_an_inherited_choice(machine: Path) -> None:
    engine()
    os.environ[VARIABLE] = "0"
    assert engine() == "0"


def test_activation_twice_is_activation_once(machine: Path) -> None:
    engine()
    first: ModuleType = sys.modules["sgl_kernel"]
    assert engine() == "1" and sys.modules["sgl_kernel"] is first


def test_activation_imports_nothing_of_sglang_and_initialises_no_cuda() -> None:
    code = (
        "import sys; from hetero_sglang.cpu.platform import activate; activate(); import torch; "
        "print([m for m in sys.modules if m.partition('.')[0] == 'sglang'], torch.cuda.is_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.split() == ["[]", "False"]


def test_sglang_calls_it_before_it_looks_for_a_device() -> None:
    """Through the installed entry point; the variable is absent before and the engine is the CPU after."""
    code = "from sglang.srt.utils.common import is_cpu; import os, sys; print(is_cpu(), os.environ[sys.argv[1]])"
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    out = subprocess.run(
        [sys.executable, "-c", code, VARIABLE],
        env={**env, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert out.stdout.split() == ["True", "1"]
