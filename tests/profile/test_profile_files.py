"""Writing whole or not at all, fingerprints, and finding a model's profile."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from profile_builders import edit_json, profile_of

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import files
from hetero_sglang.profile.files import PROFILE_NAME, find_profile, fingerprint, load_profile, save_profile


@pytest.fixture
def checkpoint(tmp_path: Path, recall_model: Path) -> Path:
    """The recall model without its profile."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(recall_model / name, folder / name)
        (folder / name).chmod(0o644)
    return folder


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "p.json"
    save_profile(profile_of("Psaa"), target)
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HeteroError, match="p.json cannot be written: No space left on device"):
        save_profile(profile_of("VVaa"), target)
    assert target.read_bytes() == before and os.listdir(tmp_path) == ["p.json"]


def test_a_device_or_folder_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(HeteroError, match=f"{name} is no regular file"):
            save_profile(profile_of("Psaa"), tmp_path / name)
    with pytest.raises(HeteroError, match="cannot be written"):
        save_profile(profile_of("Psaa"), tmp_path / "absent" / "p.json")


def test_the_fingerprint_follows_weights_and_shape_and_not_names(checkpoint):
    first = fingerprint(checkpoint)
    edit_json(checkpoint / "config.json", torch_dtype="float16", architectures=["Renamed"])
    os.rename(checkpoint / "model.safetensors", checkpoint / "weights.safetensors")
    assert fingerprint(checkpoint) == first
    edit_json(checkpoint / "config.json", rope_theta=1.0)
    assert fingerprint(checkpoint) != first


def test_the_fingerprint_sees_a_changed_tensor(checkpoint):
    first = fingerprint(checkpoint)
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle:] = bytes(len(content) - middle)
    weights.write_bytes(content)
    assert fingerprint(checkpoint) != first


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x04\0\0\0\0\0\0\0nope"])
def test_a_broken_weight_file_is_refused_by_name(checkpoint, content):
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(HeteroError, match="model.safetensors is not a whole safetensors file"):
        fingerprint(checkpoint)


def test_an_explicit_profile_goes_before_the_one_beside_the_checkpoint(checkpoint, tmp_path):
    own = tmp_path / "own.json"
    for path in (own, checkpoint / PROFILE_NAME):
        save_profile(profile_of("Psaa"), path)
    assert find_profile(checkpoint, str(own)) == own
    assert find_profile(checkpoint, None) == checkpoint / PROFILE_NAME
    with pytest.raises(HeteroError, match="absent.json does not exist"):
        find_profile(checkpoint, str(tmp_path / "absent.json"))


def test_a_shipped_profile_is_found_by_its_fingerprint_only(checkpoint, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(files, "SHIPPED", ((shipped, "*.json"),))
    other = replace(profile_of("Psaa"), provenance={"fingerprint": "sha256:other"})
    save_profile(other, shipped / "a.json")
    assert find_profile(checkpoint, None) is None
    save_profile(replace(other, provenance={"fingerprint": fingerprint(checkpoint)}), shipped / "b.json")
    assert find_profile(checkpoint, None) == shipped / "b.json"


def test_a_downloaded_model_is_found_by_its_name(tmp_path, monkeypatch):
    import huggingface_hub

    def cached(name: str, file: str, revision: str | None = None) -> str | None:
        return str(tmp_path / file) if (name, revision) == ("some/model", None) else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    save_profile(profile_of("Psaa"), tmp_path / PROFILE_NAME)
    assert find_profile("some/model") == tmp_path / PROFILE_NAME
    assert find_profile("other/model") is None


def test_the_recall_models_profile_is_its_own(recall_model, checkpoint):
    profile = load_profile(find_profile(recall_model))
    profile.check_model(8, 8, 4, 64)
    assert profile.provenance["fingerprint"] == fingerprint(recall_model)
    assert find_profile(checkpoint).parent == recall_model  # a copy finds it among the shipped ones
