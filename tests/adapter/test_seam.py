"""A seam of patched source: SGLang's own function until a hook is put in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.plugins.hook_registry import HookType

from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang import hooks, seam


class Pool:
    """Stands for a class of SGLang's."""

    def take(self, count: int) -> list[int]:
        """So many."""
        return list(range(count))


def twice(original: Callable[..., list[int]], pool: Pool, count: int) -> list[int]:
    return original(pool, 2 * count)


def last(result: list[int], pool: Pool, count: int) -> list[int]:
    return result[-1:]


def count_seen(pool: Pool, count: int) -> None:
    SEEN.append(count)


SEEN: list[int] = []
TARGET = f"{__name__}.Pool.take"


@pytest.fixture(autouse=True)
def _own_seams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(seam, "plain", {})
    monkeypatch.setattr(seam, "hooked", {})
    monkeypatch.setattr(seam, "_enter", lambda: None)
    monkeypatch.setattr(Pool, "take", seam.seam(Pool.take))
    yield
    SEEN.clear()


@pytest.mark.parametrize(
    ("hook", "kind", "taken"),
    [
        (twice, HookType.AROUND, [0, 1, 2, 3]),
        (last, HookType.AFTER, [1]),
        (count_seen, HookType.BEFORE, [0, 1]),
    ],
)
def test_a_hook_is_called_as_its_kind_says(hook: Callable[..., Any], kind: HookType, taken: list[int]) -> None:
    assert Pool().take(2) == [0, 1] and Pool.take.__doc__ == "So many."
    for _ in range(2):  # put in again, it is still called once
        hooks._fill([(TARGET, hook, kind)])
    assert Pool().take(2) == taken
    assert len(SEEN) == (hook is count_seen)


def test_a_function_without_its_patch_is_named() -> None:
    wanted = [(f"{__name__}.twice", last, HookType.AFTER), (f"{__name__}.Pool.give", last, HookType.AFTER)]
    with pytest.raises(HeteroError, match=r"2 of SGLang's functions lack their patch \(.*Pool\.give, .*twice\)"):
        hooks._fill([*wanted, (f"{__name__}.Pool", Pool, HookType.REPLACE), (TARGET, last, HookType.AFTER)])


def test_a_seam_may_be_where_a_function_was_imported() -> None:
    seam.seam(twice, "somewhere.else")
    assert "somewhere.else.twice" in seam.plain


@pytest.mark.parametrize("first", ["made_args", "made_sglang"])
def test_whichever_is_imported_first_there_is_one_class_of_arguments(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "from made_sglang import ServerArgs\nclass HeteroServerArgs(ServerArgs): ...\n"
    theirs = "from hetero_sglang.sglang.seam import arguments\n"
    theirs += "class ServerArgs: ...\nServerArgs = arguments(ServerArgs)\n"
    (tmp_path / "made_args.py").write_text(ours)
    (tmp_path / "made_sglang.py").write_text(theirs)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(seam, "ARGUMENTS", "made_args")
    for name in ("made_args", "made_sglang"):
        sys.modules.pop(name, None)
    importlib.import_module(first)
    found = importlib.import_module("made_args").HeteroServerArgs
    assert found is importlib.import_module("made_sglang").ServerArgs and len(found.__mro__) == 3
