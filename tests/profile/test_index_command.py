"""`hetero-sglang profile` makes a key index, and `profile index` gives one to a profile that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from profile_builders import edit_json, profile_of
from tiny_models import write_checkpoint

from hetero_sglang.cli import main
from hetero_sglang.profile.files import fingerprint, load_profile, save_profile

TEXT = ["--documents", "2", "--length", "300", "400", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, recall_model) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("index") / "tiny", "llama", recall_model)


@pytest.fixture(scope="module")
def made(model) -> Path:
    path = model.parent / "made.json"
    assert main(["profile", str(model), "--out", str(path), "--steps", "4", *TEXT]) == 0
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_every_profile_has_an_index_that_fits_its_heads(made, capsys):
    index = load_profile(made).index
    assert index.fields == ((8, 4), (8, 2)) and (index.run == 1).all()  # heads of 16 dimensions
    assert index.encode.shape == (2, 2, 16, 16) and np.abs(index.decode).max() > 0
    assert main(["profile", "show", str(made)]) == 0
    assert "key index of 8 directions in 4 bits, 8 directions in 2 bits: 48 bits, 6 bytes" in capsys.readouterr().out


def test_an_index_alone_is_the_same_and_leaves_the_rest(model, made, tmp_path):
    bare, out = tmp_path / "bare.json", tmp_path / "out.json"
    whole = load_profile(made)
    save_profile(profile_of("Ps", "VV", num_query_heads=None, head_dim=None), bare)
    assert main(["profile", "index", str(model), "--profile", str(bare), "--out", str(out), *TEXT]) == 0
    found = load_profile(out)
    assert load_profile(bare).index is None and found.layers == load_profile(bare).layers
    assert (found.num_query_heads, found.head_dim) == (4, 16)
    # Of the same tokens in chunks of other sizes; a direction's sign is free.
    for name in ("encode", "offset", "decode"):
        assert np.allclose(np.abs(getattr(found.index, name)), np.abs(getattr(whole.index, name)), rtol=0.02, atol=0.02)
    assert [text["tokens"] for text in found.provenance["index_texts"]] == [300, 400]


def test_a_smaller_context_gives_another_index_and_is_recorded(model, made, tmp_path):
    out, whole = tmp_path / "out.json", load_profile(made)
    options = ["--profile", str(made), "--out", str(out), "--index-context", "400"]
    assert main(["profile", "index", str(model), *options, *TEXT]) == 0
    found = load_profile(out)
    assert (found.provenance["index_context"], whole.provenance["index_context"]) == (400, 4096)
    assert not np.allclose(np.abs(found.index.offset), np.abs(whole.index.offset), rtol=0.02, atol=0.02)


def test_fields_and_runs_can_be_chosen_and_a_file_is_changed_in_place(model, made, tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_bytes(made.read_bytes())
    options = ["--index-fields", "8x2", "4x4", "--index-run", "4"]
    assert main(["profile", "index", str(model), "--profile", str(path), *options, *TEXT]) == 0
    assert "key index of 4 directions in 4 bits, 8 directions in 2 bits: 32 bits" in capsys.readouterr().out
    found, before = load_profile(path), load_profile(made)
    assert found.index.fields == ((4, 4), (8, 2)) and (found.index.run == 4).all()
    assert found == replace(before, provenance=found.provenance)
    assert np.array_equal(found.measurements.overlap, before.measurements.overlap)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--index-fields", "8"], "`--index-fields` has '8'; write directions and bits as in 24x2"),
        (["--index-fields", "4x4", "-3x4"], "unrecognized|expected|`--index-fields`"),
        (["--index-fields", "8x3"], "8 directions in 3 bits is not possible"),
        (["--index-fields", "3x4"], "3 directions in 4 bits is not possible"),
        (["--index-fields", "16x1", "8x2"], "lists 24 directions and this model's heads have 16"),
        (["--index-context", "0"], "`--index-context` is 0; choose between 1 and 4096, the model's own"),
        (["--index-context", "4097"], "`--index-context` is 4097; choose"),
        (["--index-run", "3"], "`--index-run` is 3; choose one of auto, 1, 4, 8"),
    ],
)
@pytest.mark.parametrize("verb", [[], ["index"]])
def test_impossible_options_are_refused(model, made, capsys, tmp_path, verb, options, words):
    place = ["--profile", str(made), "--out", str(tmp_path / "o.json")] if verb else ["--out", str(tmp_path / "o.json")]
    said = refused(capsys, "profile", *verb, str(model), *place, *options, *TEXT)
    assert any(word in said for word in words.split("|")), said
    assert not (tmp_path / "o.json").exists()


def test_a_profile_of_another_model_is_refused(model, made, capsys, tmp_path):
    save_profile(profile_of("Psa", "VVV", head_dim=16), tmp_path / "shape.json")
    said = refused(capsys, "profile", "index", str(model), "--profile", str(tmp_path / "shape.json"), *TEXT)
    assert "6 query heads, this model has 4" in said
    other = tmp_path / "weights.json"
    other.write_text(made.read_text().replace(fingerprint(model), "sha256:0"))
    said = refused(capsys, "profile", "index", str(model), "--profile", str(other), *TEXT)
    assert "made from other weights" in said


def test_a_model_of_too_many_heads_for_a_file_is_refused_before_it_is_loaded(model, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text((model / "config.json").read_text())
    edit_json(config, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=64, head_dim=128)
    said = refused(capsys, "profile", str(tmp_path), "--out", str(tmp_path / "o.json"), *TEXT)
    assert "an index of 32 directions of 5120 heads" in said and "`--index-fields`" in said
