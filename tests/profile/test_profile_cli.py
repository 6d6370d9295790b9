"""The `hetero-sglang profile` command from end to end on a tiny model, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from profile_builders import edit_json, profile_of
from tiny_models import write_checkpoint

from hetero_sglang.calibration import calibrate as calibration
from hetero_sglang.cli import main
from hetero_sglang.profile.files import fingerprint, load_profile, save_profile
from hetero_sglang.profile.reference import encode_reference

FAST = ["--documents", "2", "--length", "300", "400", "--steps", "4", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, recall_model) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "tiny", "llama", recall_model)


@pytest.fixture(scope="module")
def made(model) -> Path:
    path = model.parent / "made.json"
    assert main(["profile", str(model), "--out", str(path), *FAST]) == 0
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one sentence on stderr of a command that must exit with 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    sentence = captured.err.strip().splitlines()[-1]
    assert sentence.startswith("hetero-sglang: ") and "Traceback" not in captured.err
    return sentence


def test_a_profile_records_what_it_was_made_from(made, model):
    profile = load_profile(made)
    profile.check_model(2, 4, 2, 16)
    about = profile.provenance
    assert about["fingerprint"] == fingerprint(model) and about["tokenizer"].startswith("sha256:")
    assert [text["tokens"] for text in about["texts"]] == [300, 400]
    assert [text["topk"] for text in about["texts"]] == [59, 79]
    assert all(len(text["sha256"]) == 64 for text in about["texts"])
    assert (about["steps"], about["gqa_reduction"], about["tau_stable"], about["tau_sim"]) == (
        4,
        "mean",
        0.5,
        0.5,
    )
    assert {"torch", "transformers", "hetero-sglang"} <= set(about["versions"])
    assert profile.measurements.overlap.shape == (2, 2, 4)


def test_the_same_command_makes_the_same_bytes_and_another_seed_does_not(made, model, tmp_path):
    for name, more in (("again", []), ("other", ["--seed", "50"])):
        assert main(["profile", str(model), "--out", str(tmp_path / name), *FAST, *more]) == 0
    assert (tmp_path / "again").read_bytes() == made.read_bytes()
    assert (tmp_path / "other").read_bytes() != made.read_bytes()


def test_own_text_is_used_without_a_warning(model, tmp_path, capsys):
    text = tmp_path / "own.txt"
    text.write_text(" The quiet river follows the garden." * 80)
    out = tmp_path / "own.json"
    assert main(["profile", str(model), "--text", str(text), "--out", str(out), *FAST]) == 0
    assert "warning" not in capsys.readouterr().err
    assert [t["source"] for t in load_profile(out).provenance["texts"]] == ["own.txt", "own.txt"]


def test_a_target_keep_ratio_is_possible_with_the_profile_made_for_it(made, tmp_path, capsys):
    out = tmp_path / "half.json"
    assert main(["profile", "assign", str(made), "--target-keep-ratio", "0.5", "--out", str(out)]) == 0
    assert "<- taken" in capsys.readouterr().out
    profile = load_profile(out)
    assert profile.floor < 0.5 and profile.provenance["target_keep_ratio"] == 0.5
    assert main(["profile", "show", str(out), "--keep-ratio", "0.5"]) == 0


def test_clusters_of_a_per_rank_profile_stay_on_their_rank(made, tmp_path):
    out = tmp_path / "ranks.json"
    assert main(["profile", "assign", str(made), "--tau-sim", "0.01", "--per-rank", "2", "--out", str(out)]) == 0
    assert all(pivot in (-1, head) for layer in load_profile(out).layers for head, pivot in enumerate(layer.pivots))
    assert main(["profile", "assign", str(made), "--tau-sim", "0.01", "--out", str(out)]) == 0
    assert any(pivot not in (-1, head) for layer in load_profile(out).layers for head, pivot in enumerate(layer.pivots))


def test_show_diff_and_validate_say_what_a_person_needs(made, model, tmp_path, capsys):
    save_profile(profile_of("Ps", "Va"), tmp_path / "a.json")
    save_profile(profile_of("Ps", "aa"), tmp_path / "b.json")
    assert main(["profile", "show", str(tmp_path / "a.json"), "--keep-ratio", "0.75"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "2 layers, 2 KV heads",
        "2 of 4 heads resident",
        "floor is 0.5000",
        "Ps",
        "Va",
        "0 <- 1",
        "0.5000",
    ):
        assert part in shown
    assert main(["profile", "diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 heads (75.0%)" in shown and "layer 1 head 0: volatile -> anchor" in shown
    assert main(["profile", "validate", str(made), "--model", str(model)]) == 0
    assert "is valid" in capsys.readouterr().out


def test_import_and_export_are_inverse_and_import_says_what_is_lacking(tmp_path, capsys):
    theirs = tmp_path / "Head_Analysis_x_topk1024_th0.5_sim0.4_step50.json"
    theirs.write_text(json.dumps(encode_reference(profile_of("Psaa", "VVaa"))))
    ours, back = tmp_path / "ours.json", tmp_path / "back.json"
    assert main(["profile", "import", str(theirs), "--out", str(ours)]) == 0
    assert "lacks the number of query heads, the head dimension" in capsys.readouterr().err
    assert load_profile(ours).provenance["tau_sim"] == 0.4
    assert main(["profile", "export", str(ours), "--out", str(back)]) == 0
    assert json.loads(back.read_text()) == json.loads(theirs.read_text())
    assert "nothing to import" in refused(capsys, "profile", "import", str(ours))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tau-stable", "0"], "`--tau-stable` is 0"),
        (["--tau-sim", "1.5"], "`--tau-sim` is 1.5"),
        (["--target-keep-ratio", "1.5"], "`--target-keep-ratio` is 1.5"),
        (["--target-keep-ratio", "0.5", "--tau-sim", "0.4"], "leave `--tau-stable` and `--tau-sim` out"),
        (["--per-rank", "3"], "2 KV heads cannot be divided over 3"),
        (["--length", "5000"], "`--length` 5000 does not fit"),
        (["--length", "40"], "the built-in text needs more than 40 tokens"),
        (["--topk", "400"], "has 300 tokens, too few for sets of the top 400"),
        (["--documents", "0"], "`--documents` is 0"),
        (["--gqa", "sum"], "`--gqa` is 'sum'"),
        (["--device", "quantum"], "`--device quantum` cannot be used here"),
        (["--steps", "many"], "invalid int value"),
        (["--unheard-of"], "unrecognized arguments"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(model, tmp_path, capsys, options, message):
    out = tmp_path / "out.json"
    assert message in refused(capsys, "profile", str(model), "--out", str(out), *FAST, *options)
    assert not list(tmp_path.iterdir())


def test_a_target_below_every_clustering_is_refused_with_the_least_ratio(made, tmp_path, capsys):
    out = tmp_path / "out.json"
    sentence = refused(capsys, "profile", "assign", str(made), "--target-keep-ratio", "0.001", "--out", str(out))
    assert "allows keep ratio 0.001; choose at least" in sentence and not out.exists()


def test_unusable_checkpoints_are_refused(model, tmp_path, capsys):
    assert "there is no checkpoint" in refused(capsys, "profile", str(tmp_path / "absent"))
    folder = tmp_path / "bare"
    folder.mkdir()
    config = folder / "config.json"
    config.write_text((model / "config.json").read_text())
    out = str(tmp_path / "out.json")
    assert "cannot be loaded" in refused(capsys, "profile", str(folder), "--out", out, *FAST)
    edit_json(config, model_type="gpt2")
    assert "is a 'gpt2' model" in refused(capsys, "profile", str(folder), "--out", out)
    edit_json(config, model_type="mistral", sliding_window=4096)
    assert "sliding-window layers" in refused(capsys, "profile", str(folder), "--out", out)
    config.write_text("{")
    assert "config.json is not JSON" in refused(capsys, "profile", str(folder), "--out", out)
    assert not Path(out).exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "measure", None)
    sentence = refused(capsys, "profile", str(model), "--out", str(tmp_path / "absent" / "p.json"), *FAST)
    assert "p.json cannot be written: No such file or directory" in sentence


def test_an_interrupt_writes_nothing_and_says_so(model, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "measure", interrupted)
    assert main(["profile", str(model), "--out", str(tmp_path / "p.json"), *FAST]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_models_profile_is_refused(made, recall_model, tmp_path, capsys):
    assert "2 layers, this model has 8" in refused(
        capsys, "profile", "validate", str(made), "--model", str(recall_model)
    )
    save_profile(profile_of("Psaa"), tmp_path / "other.json")
    assert "compare profiles of the same model" in refused(
        capsys, "profile", "diff", str(made), str(tmp_path / "other.json")
    )


def test_the_profiles_that_servers_made_are_listed(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["profile", "list"]) == 0
    assert "made at a start" not in (said := capsys.readouterr().out) and "shipped" in said
    folder = tmp_path / "hetero_sglang" / "profiles"
    folder.mkdir(parents=True)
    (folder / "one.json").write_bytes(made.read_bytes())
    (folder / "two.json").write_text("{")
    assert main(["profile", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{folder / 'one.json'}: tiny, made at a start, " in lines[0] and "4 heads resident" in lines[0]
    assert lines[1].startswith(f"{folder / 'two.json'}: not to be read: ") and str(folder) in lines[-1]


def test_unknown_commands_are_refused_with_the_known_ones(capsys):
    assert "no sub-command 'profil'; choose one of profile" in refused(capsys, "profil")
    assert main([]) == 2 and main(["--help"]) == 0
    assert "usage: hetero-sglang" in capsys.readouterr().out


def test_looking_at_a_profile_imports_neither_torch_nor_transformers(tmp_path):
    save_profile(profile_of("Ps"), tmp_path / "p.json")
    code = (
        "import sys; from hetero_sglang.cli import main; import hetero_sglang.profile.budget; "
        f"code = main(['profile', 'show', {str(tmp_path / 'p.json')!r}]); "
        "sys.exit(code or sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
