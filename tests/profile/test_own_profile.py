"""A checkpoint that has no head profile is calibrated when it is first served, once."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from profile_builders import profile_of
from settled_args import settled_args
from tiny_models import write_checkpoint

from hetero_sglang.calibration.checkpoint import check_profile
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import made_profiles
from hetero_sglang.profile.files import PROFILE_NAME, load_profile, save_profile
from hetero_sglang.sglang import own_profile


@pytest.fixture
def model(tmp_path: Path, recall_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_checkpoint(tmp_path / "tiny", "qwen2", recall_model)


def arguments(model: Path | str, **given: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"model_path": str(model), "hetero_profile": "auto", "nnodes": 1, "revision": None, "base_gpu_id": 0}
        | {"attention_backend": "torch_native"}
        | given
    )


def instead(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Path]:
    """Python code runs in place of calibration, with the path to write as its argument; the models, one a time."""
    asked: list[Path] = []

    def command(model: Path, out: Path, device: str) -> list[str]:
        asked.append(model)
        return [sys.executable, "-c", code, str(out)]

    monkeypatch.setattr(own_profile, "command", command)
    return asked


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """Code that puts a profile where it is wanted."""
    save_profile(profile_of("Ps", "Va"), tmp_path / "whole.json")
    return f"import sys, time, shutil; time.sleep(0.2); shutil.copy({str(tmp_path / 'whole.json')!r}, sys.argv[1])"


def test_a_checkpoint_never_seen_is_calibrated_once_and_then_served_by_the_same(model, monkeypatch):
    made = settled_args(model_path=str(model), kv_policy="heterocache")
    path = Path(made.hetero_profile)
    assert path == made_profiles.place(model) and made_profiles.made() == [path]
    check_profile(load_profile(path), str(path), model)
    assert load_profile(path).index is not None
    monkeypatch.setattr(own_profile, "command", lambda *given: pytest.fail("once"))
    assert settled_args(model_path=str(model), kv_policy="heterocache").hetero_profile == str(path)
    assert settled_args(model_path=str(model), kv_policy="snapkv").hetero_profile == "auto"


def test_what_is_given_or_found_goes_before_what_was_made(model, tmp_path, whole, monkeypatch):
    asked = instead(monkeypatch, whole)
    assert own_profile.profile_of(arguments(model)) == made_profiles.place(model)
    save_profile(profile_of("Ps"), model / PROFILE_NAME)
    assert own_profile.profile_of(arguments(model)) == model / PROFILE_NAME
    given = str(tmp_path / "whole.json")
    assert own_profile.profile_of(arguments(model, hetero_profile=given)) == Path(given)
    assert len(asked) == 1


def test_servers_that_start_together_calibrate_once(model, whole, monkeypatch):
    asked = instead(monkeypatch, whole)
    found: list[Path] = []
    starts = [threading.Thread(target=lambda: found.append(own_profile.profile_of(arguments(model)))) for _ in range(3)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    assert found == [made_profiles.place(model)] * 3 and len(asked) == 1


@pytest.mark.parametrize("left", ["", "{", '{"format": "hetero-profile"}'])
def test_a_damaged_one_is_made_anew(model, whole, left, monkeypatch, caplog):
    place = made_profiles.place(model)
    place.parent.mkdir(parents=True)
    place.write_text(left)
    instead(monkeypatch, whole)
    load_profile(own_profile.profile_of(arguments(model)))
    assert "it is made anew" in caplog.text and str(place) in caplog.text


def test_one_of_an_earlier_recipe_is_not_read(model, whole, monkeypatch):
    asked = instead(monkeypatch, whole)
    first = own_profile.profile_of(arguments(model))
    monkeypatch.setattr(made_profiles, "RECIPE", made_profiles.RECIPE + 1)
    second = own_profile.profile_of(arguments(model))
    assert first != second and len(asked) == 2 and made_profiles.made() == sorted([first, second])


@pytest.mark.parametrize(
    ("code", "ending"),
    [("raise SystemExit(2)", "exit code 2"), ("import os, signal; os.kill(os.getpid(), 9)", f"code {-signal.SIGKILL}")],
)
def test_a_calibration_that_fails_is_said_and_leaves_nothing(model, code, ending, monkeypatch):
    instead(monkeypatch, code)
    with pytest.raises(HeteroError, match=f"ended with .*{ending}, as said above; give a profile"):
        own_profile.profile_of(arguments(model))
    assert not made_profiles.made() and not own_memory()


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be put on a disk whole."""

    def sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)


def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache folder cannot be made."""
    file = Path(os.environ["XDG_CACHE_HOME"])
    file.write_text("")


def own_memory() -> list[str]:
    """Memory of this process that holds profiles."""
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [link for link in links if "hetero-profile" in link]


@pytest.mark.parametrize("fault", [full, no_folder])
def test_a_profile_that_cannot_be_kept_is_used_and_leaves_nothing(fault, model, whole, tmp_path, monkeypatch, caplog):
    fault(monkeypatch)
    instead(monkeypatch, whole)
    path = own_profile.profile_of(arguments(model))
    read = f"from hetero_sglang.profile.files import load_profile; print(load_profile({str(path)!r}).num_layers)"
    told = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert told.stdout == f"{load_profile(tmp_path / 'whole.json').num_layers}\n", "as another rank reads it"
    assert "used and not kept" in caplog.text and "set XDG_CACHE_HOME" in caplog.text
    assert not made_profiles.made() and not list((tmp_path / "cache").rglob(".*"))
    os.close(int(path.name))
    assert not own_memory()


def test_one_that_was_kept_is_read_from_a_folder_that_cannot_be_written(model, whole, monkeypatch):
    asked = instead(monkeypatch, whole)
    kept = own_profile.profile_of(arguments(model))
    assert not own_memory(), "it is on disk"
    monkeypatch.setattr(Path, "mkdir", lambda *given, **named: pytest.fail("nothing is to be made"))
    assert own_profile.profile_of(arguments(model)) == kept and len(asked) == 1


@pytest.mark.parametrize(("backend", "device"), [("torch_native", "cpu"), ("flashinfer", "cuda:4")])
def test_it_is_made_on_the_first_device_that_serves(model, whole, backend, device, monkeypatch):
    asked = []

    def command(model: Path, out: Path, device: str) -> list[str]:
        asked.append((model, device))
        return [sys.executable, "-c", whole, str(out)]

    monkeypatch.setattr(own_profile, "command", command)
    own_profile.profile_of(arguments(model, attention_backend=backend, base_gpu_id=4))
    assert asked == [(model, device)]


def test_several_nodes_are_told_to_share_one(model):
    with pytest.raises(HeteroError, match="each of 2 nodes would make its own"):
        own_profile.profile_of(arguments(model, nnodes=2))


@pytest.mark.parametrize("here", ["another revision", "no weights", "all"])
def test_what_is_here_of_a_model_is_calibrated_if_it_is_what_is_asked_for(here, model, whole, tmp_path, monkeypatch):
    import huggingface_hub

    commit, other = "2" * 40, "1" * 40
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(other)
    for each in (other, commit)[: 1 if here == "another revision" else 2]:
        shutil.copytree(model, cache / "snapshots" / each)
    snapshot = cache / "snapshots" / commit
    if here != "another revision":
        (cache / "refs" / "v2").write_text(commit)
    if here == "no weights":
        for file in snapshot.glob("*.safetensors"):
            file.unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    fetched: list[str | None] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        fetched.append(revision)
        shutil.copytree(model, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    asked = instead(monkeypatch, whole)
    own_profile.profile_of(arguments("some/model", revision="v2"))
    assert asked == [snapshot] and fetched == ([] if here == "all" else ["v2"])


def test_a_model_that_is_not_here_is_downloaded_or_refused(model, whole, monkeypatch):
    import huggingface_hub

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if name != "some/model":
            raise OSError("no such repository.\nmore")
        assert revision == "v2" and "*.safetensors" in allow_patterns
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    asked = instead(monkeypatch, whole)
    assert own_profile.profile_of(arguments("some/model", revision="v2")) == made_profiles.place(model)
    assert asked == [model]
    with pytest.raises(
        HeteroError, match=r"other/model is no folder here .*\(no such repository\); check --model-path"
    ):
        own_profile.profile_of(arguments("other/model"))
