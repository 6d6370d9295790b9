from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest

from hetero_sglang.cpu import speculation
from hetero_sglang.cpu.sgl_kernel_stub import NAMES, SINCE_0_5_23, SPECULATIVE, build
from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.version import release

# Where SGLang's CPU path takes names from sgl_kernel, as a dense model imports them.
TAKERS = """
import sys
from hetero_sglang.cpu import sgl_kernel_stub
sys.modules["sgl_kernel"] = stub = sgl_kernel_stub.build()
import sglang.srt.models.llama, sglang.srt.models.qwen3, sglang.srt.mem_cache.allocation
import sglang.kernels.ops.kvcache.cache_move
import sglang.srt.speculative.eagle_utils, sglang.srt.speculative.spec_utils
sys.modules["sgl_kernel.speculative"] = sgl_kernel_stub.speculative()
import sglang.srt.speculative.ngram_worker
functions = {id(getattr(stub, name)): name for name in sgl_kernel_stub.NAMES}
more = sys.modules["sgl_kernel.speculative"]
functions |= {id(getattr(more, name)): name for name in sgl_kernel_stub.SPECULATIVE}
for module in list(sys.modules.values()):
    if getattr(module, "__name__", "").startswith("sglang."):
        for value in list(vars(module).values()):
            if id(value) in functions:
                print(functions[id(value)])
"""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> object:
    module = build()
    monkeypatch.setitem(sys.modules, "sgl_kernel", module)
    return module


@pytest.mark.parametrize("name", [name for name in NAMES if not hasattr(speculation, name)])
def test_every_name_without_a_function_imports_and_raises_one_sentence_when_called(stub: object, name: str) -> None:
    function = getattr(importlib.import_module("sgl_kernel"), name)
    with pytest.raises(HeteroError) as error:
        function(1, key=2)
    text = str(error.value)
    assert name in text and text.endswith(".") and "\n" not in text


def test_nothing_else_is_there(stub: object) -> None:
    assert {name for name in vars(stub) if not name.startswith("__")} == set(NAMES)
    with pytest.raises(ImportError):
        from sgl_kernel import rmsnorm  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sgl_kernel.kvcacheio")


def test_find_spec_sees_it(stub: object) -> None:
    assert importlib.util.find_spec("sgl_kernel") is not None


def test_sglang_takes_every_name_and_needs_no_other() -> None:
    """A name we lack is an ImportError of the child; one nobody takes any more is missing from its output."""
    env = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}
    out = subprocess.run([sys.executable, "-c", TAKERS], env=env, capture_output=True, text=True, timeout=180)
    assert out.returncode == 0, out.stderr[-2000:]
    older = SINCE_0_5_23 if release() == "0.5.17" else ()
    assert set(out.stdout.split()) == {*NAMES, *SPECULATIVE} - set(older)
