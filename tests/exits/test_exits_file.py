"""A file of branches comes back as it was written, or is refused in one sentence that names it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exits_builders import CONFIG, HIDDEN, LAYERS, NEVER, ROW, VOCABULARY, branch, exits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.files import EXITS_NAME, load, save, tensors_path
from hetero_sglang.profile.fingerprint import fingerprint

LONGEST_SENTENCE = 300  # characters beside the path
sizes = {"adapter": st.integers(1, HIDDEN), "head": st.just(VOCABULARY), "frequent": st.integers(2, VOCABULARY - 1)}
some_branches = st.lists(
    st.tuples(st.integers(1, LAYERS - 1), st.sampled_from(sorted(sizes))), min_size=1, unique_by=lambda each: each[0]
)


def same(one: Exits, other: Exits) -> None:
    for name in ("layers", "hidden", "vocabulary", "confidence", "calibration", "provenance"):
        assert getattr(one, name) == getattr(other, name)
    for mine, theirs in zip(one.branches, other.branches, strict=True):
        assert (mine.layer, mine.kind, mine.eps) == (theirs.layer, theirs.kind, theirs.eps)
        assert mine.tensors().keys() == theirs.tensors().keys()
        for name, tensor in mine.tensors().items():
            found = theirs.tensors()[name]
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_branches, st.data(), st.sampled_from(["probability", "margin", "entropy"]))
def test_it_comes_back_as_it_was_written(
    tmp_path: Path, described: list[tuple[int, str]], data: st.DataObject, confidence: str
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    made = [branch(layer, kind, data.draw(sizes[kind]), seed=layer, dtype=dtype) for layer, kind in sorted(described)]
    count = len(made)
    half = replace(ROW, thresholds=(0.5,) * count, share=(1.0, *[0.0] * count))
    never = replace(NEVER, thresholds=(1.0,) * count, share=(*[0.0] * count, 1.0))
    written = exits(*made, confidence=confidence, calibration=(half, never))
    save(written, tmp_path / EXITS_NAME)
    same(written, load(tmp_path / EXITS_NAME, CONFIG))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "some.json"
    save(exits(), path)
    return path


def refused(path: Path, model: Any = CONFIG) -> str:
    """The sentence of the refusal."""
    with pytest.raises(HeteroError) as caught:
        load(path, model)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and said.endswith(".")
    assert len(said) - len(str(path)) < LONGEST_SENTENCE
    return said


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Other tensors, with the digest in the file made to fit."""
    tensors = load_file(tensors_path(path))
    change(tensors)
    save_file(tensors, tensors_path(path))
    return trusted(path)


def trusted(path: Path) -> Path:
    digest = hashlib.sha256(tensors_path(path).read_bytes()).hexdigest()
    return changed(path, lambda data: data.update(tensors=f"sha256:{digest}"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format="other"), '`format` is not "hetero-sglang exits"'),
        (lambda d: d.update(version=2), "this release reads 1"),
        (lambda d: d.pop("model"), "`model` is or holds None"),
        (lambda d: d["model"].update(layers=0), "`model.layers` is 0"),
        (lambda d: d["model"].update(hidden=True), "`model.hidden` is True"),
        (lambda d: d["model"].update(layers=4), "branch 2: its layer is 4; it must lie between 1 and 3"),
        (lambda d: d.update(confidence="sure"), "the confidence is 'sure'"),
        (lambda d: d.update(branches=[]), "hold `branches.0.down`|hold `branches.0.head`"),
        (lambda d: d["branches"][0].update(layer=0), "`layer` is 0"),
        (lambda d: d["branches"][0].update(layer=5), "its layer is 5; it must lie between 1 and 4"),
        (lambda d: d["branches"][0].update(layer=2), "layer 2 comes before that at layer 2; they must ascend"),
        (lambda d: d["branches"][0].update(layer=3), "they must ascend"),
        (lambda d: d["branches"][0].update(kind="tree"), "branch 0: its kind is 'tree'"),
        (lambda d: d["branches"][1].update(size=9), "branch 1: its rank is 9; it must lie between 1 and 8"),
        (lambda d: d["branches"][1].update(size=2), "hold `branches.1.down` of shape"),
        (lambda d: d["branches"][0].update(eps="0"), "`eps` holds '0'"),
        (lambda d: d["branches"][0].update(eps=-1), "eps is -1"),
        (lambda d: d.update(tensors=None), "`tensors` is None"),
        (lambda d: d.update(tensors="sha256:00"), "are of another run"),
        (lambda d: d["calibration"][0]["thresholds"].__setitem__(1, 0), "threshold of branch 1 at agreement 0.99 is 0"),
        (lambda d: d["calibration"][0]["thresholds"].__setitem__(1, 1.5), "is 1.5; it must be above 0 and at most 1"),
        (lambda d: d["calibration"][0]["thresholds"].append(0.5), "4 thresholds and 4 shares"),
        (lambda d: d["calibration"][0].update(thresholds=[1], share=[0, 1]), "has 1 thresholds for 3 branches"),
        (lambda d: d["calibration"][0].update(agreement=1.5), "the agreement is 1.5"),
        (lambda d: d["calibration"][0].update(share=[1, 1, 1, 1]), "do not add up to 1"),
        (lambda d: d["calibration"][0].update(depth=-2), "the mean depth at agreement 0.99 is -2"),
        (lambda d: d["calibration"].reverse(), "must ascend by agreement"),
        (lambda d: d["calibration"].pop(), "must end with agreement 1"),
        (lambda d: d["calibration"].clear(), "must end with agreement 1"),
        (lambda d: d.update(calibration=7), "`calibration` is 7"),
        (lambda d: d.update(provenance=[]), "`provenance` is or holds"),
    ],
)
def test_a_wrong_place_in_the_file_is_named(written: Path, change: Any, said: str) -> None:
    assert re.search(said, refused(changed(written, change)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("branches.1.up"), "lack `branches.1.up`"),
        (lambda t: t.update(other=torch.ones(1)), "hold `other`, which no branch has"),
        (lambda t: t.update({"branches.0.norm": torch.ones(HIDDEN + 1)}), "`branches.0.norm` of shape"),
        (lambda t: t["branches.2.head"].__setitem__((3, 1), float("nan")), "branch 2: `head` holds a number that is"),
        (lambda t: t["branches.1.down"].__setitem__((0, 0), float("inf")), "branch 1: `down` holds a number that is"),
        (lambda t: t["branches.0.tokens"].__setitem__(0, 99), "branch 0: `tokens` must be ascending"),
    ],
)
def test_a_wrong_tensor_is_named(written: Path, change: Any, said: str) -> None:
    assert said in refused(rewritten(written, change))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cut.json"
    save(exits(), path)
    target = data.draw(st.sampled_from([path, tensors_path(path)]))
    content = target.read_bytes()
    target.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    if target != path and data.draw(st.booleans()):
        trusted(path)
    refused(path)


def test_a_lost_file_is_named(written: Path) -> None:
    tensors_path(written).unlink()
    assert "its tensors in some.safetensors do not exist" in refused(written)
    assert "does not exist" in refused(written.with_name("none.json"))
    os.mkfifo(tensors_path(written))
    assert "are no regular file" in refused(written)


def test_tensors_of_another_run_are_refused(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    save(exits(branch(1, "frequent", 5, seed=4), *exits().branches[1:]), other)
    tensors_path(other).replace(tensors_path(written))
    assert "are of another run" in refused(written)


@pytest.mark.parametrize(("field", "noun"), [
    ("num_hidden_layers", "layers"), ("hidden_size", "hidden dimensions"), ("vocab_size", "words"),
])  # fmt: skip
def test_branches_of_another_shape_are_refused(written: Path, field: str, noun: str) -> None:
    assert f"{noun} and this one has 77" in refused(written, CONFIG | {field: 77})
    assert f"{noun} and this one has 0" in refused(written, {k: v for k, v in CONFIG.items() if k != field})


def test_branches_of_other_weights_are_refused(tmp_path: Path) -> None:
    models = [tmp_path / name for name in ("one", "two")]
    for seed, model in enumerate(models):
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG))
        save_file({"weight": torch.full((4,), float(seed))}, model / "model.safetensors")
    path = tmp_path / EXITS_NAME
    save(exits(provenance={"fingerprint": fingerprint(models[0])}), path)
    assert load(path, models[0]).fingerprint == fingerprint(models[0])
    assert "was trained on other weights" in refused(path, models[1])


def test_a_place_that_cannot_hold_both_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeteroError, match="must end in .json"):
        save(exits(), tmp_path / "exits.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HeteroError, match="lies in a checkpoint's folder"):
        save(exits(), tmp_path / EXITS_NAME)
    with pytest.raises(HeteroError, match="cannot be written"):
        save(exits(), tmp_path / "nowhere" / EXITS_NAME)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json"]
