"""`hetero-sglang exits train` and `show` from end to end on a tiny model, and their refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_checkpoint

from benchmarks.weights.quantise import quantise
from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.exits import distil
from hetero_sglang.calibration.exits.training import Training
from hetero_sglang.cli import main
from hetero_sglang.exits.calibrate import GRID
from hetero_sglang.exits.confidence import leaves
from hetero_sglang.exits.files import load, tensors_path

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "docs" / "design.md"
FAST = ["--tokens", "2048", "--length", "256", "--steps", "12", "--batch", "64", "--words", "300", "--rank", "4",
        "--device", "cpu", "--quiet"]  # fmt: skip


def train(model: Path, out: Path, *other: str) -> int:
    return main(["exits", "train", str(model), "--text", str(TEXT), "--out", str(out), *FAST, *other])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence on stderr of a command that must exit with 2."""
    assert main(["exits", *arguments]) == 2
    captured = capsys.readouterr()
    sentence = captured.err.strip().splitlines()[-1]
    assert sentence.startswith("hetero-sglang: ") and "Traceback" not in captured.err
    return sentence


@pytest.fixture(scope="module")
def made(tiny: Path) -> Path:
    path = tiny.parent / "made.json"
    assert train(tiny, path, "--layers", "1", "3", "--plot", str(path.with_suffix(".svg"))) == 0
    return path


@pytest.mark.parametrize(("kind", "confidence"), [("adapter", "margin"), ("head", "entropy"), ("frequent", "margin")])
def test_every_kind_can_be_trained(tiny: Path, tmp_path: Path, kind: str, confidence: str) -> None:
    out = tmp_path / "exits.json"
    assert train(tiny, out, "--layers", "2", "--branch", kind, "--confidence", confidence) == 0
    exits = load(out, tiny)
    assert exits.confidence == confidence
    assert [(b.layer, b.kind, b.size) for b in exits.branches] == [
        (2, kind, {"adapter": 4, "head": 2944, "frequent": 300}[kind])
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["exits.json", "exits.safetensors"]


def test_chats_train_what_is_said_in_them(tiny: Path, tmp_path: Path) -> None:
    """A part of the tokens, of which all would be 1920."""
    words, path = TEXT.read_text().split(), tmp_path / "chats.jsonl"
    sides = [(" ".join(words[at : at + 140]), " ".join(words[at + 140 : at + 160])) for at in range(0, 6000, 160)]
    path.write_text("\n".join(
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]})
        for asked, said in sides
    ))  # fmt: skip
    out = tmp_path / "exits.json"
    assert main(["exits", "train", str(tiny), "--text", str(path), "--out", str(out), *FAST]) == 0
    about = load(out, tiny).provenance
    assert about["texts"][0]["source"] == "chats.jsonl" and 100 < about["tokens_trained"] < 900


def test_the_file_says_what_it_was_made_from(made: Path, tiny: Path) -> None:
    exits = load(made, tiny)
    about = exits.provenance
    assert [row.agreement for row in exits.calibration] == [*GRID, 1.0]
    assert exits.depths == (1, 3, 4)
    assert [text["source"] for text in about["texts"]] == ["design.md"] and about["held_out"] == []
    assert about["tokens_trained"] == 8 * (256 - 16)
    assert about["tokens_calibrated"] == 1 * (256 - 16) == about["tokens_checked"]
    assert about["tokenizer"].startswith("sha256:") and about["steps"] == 12
    assert len(about["alone"]) == 2 and len(about["checked"]) == len(exits.calibration)
    assert about["checked"][-1] == {"agreement": 1.0, "depth": 4.0, "loss": 0.0}


def test_what_the_file_promises_holds_on_its_held_out_tokens(tiny: Path, tmp_path: Path) -> None:
    """Played anew by hand, from the model's own states of the text that was held out."""
    from hetero_sglang.calibration.documents import from_file
    from hetero_sglang.calibration.exits.windows import SKIPPED, cut

    out = tmp_path / "exits.json"
    assert train(tiny, out, "--layers", "1", "3", "--words", "100", "--steps", "60", "--rate", "0.01") == 0
    exits, checkpoint = load(out, tiny), open_checkpoint(tiny, "cpu")
    windows = cut(from_file(TEXT, [10**9], checkpoint.encode, []), [], checkpoint.start, 256, 2048)
    first, said = [], [[], []]
    with torch.no_grad():
        for window in windows.calibrate:
            read = checkpoint.model(torch.tensor([window.tokens]), output_hidden_states=True)
            first.append(read.logits[0, SKIPPED:].argmax(-1))
            for number, branch in enumerate(exits.branches):
                x = read.hidden_states[branch.layer][0, SKIPPED:]
                logits, sure = branch.ask(x, checkpoint.model.lm_head, exits.confidence)
                said[number].append((logits.argmax(-1), sure))
    full = torch.cat(first)
    chosen, sure = ([torch.cat([each[i] for each in branch]) for branch in said] for i in (0, 1))
    for agreement in (0.9, 0.99, 1.0):
        row = exits.point(agreement)
        token, depth = full.clone(), torch.full(full.shape, 4.0)
        for number in (1, 0):
            gone = leaves(sure[number], row.thresholds[number])
            token[gone], depth[gone] = chosen[number][gone], float(exits.branches[number].layer)
        assert (token == full).float().mean() >= agreement - 1e-6
        assert depth.mean().item() == pytest.approx(row.depth, abs=1e-3)
    assert exits.point(0.9).depth < 4


def test_show_prints_what_train_printed(made: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exits", "show", str(made), "--model", str(tiny)]) == 0
    shown = capsys.readouterr().out
    assert "tiny: 4 layers, 64 hidden dimensions, 2944 words; confidence by probability" in shown
    assert "trained on 1920 tokens, thresholds from 240, checked on 240 others" in shown
    assert re.search(r"^     1      3  frequent  300     0\.\d{4}$", shown, re.MULTILINE)
    exits = load(made)
    for row in exits.calibration:
        assert re.search(rf"^ +{row.agreement:.3f} +{row.depth:.2f} ", shown, re.MULTILINE)


def test_a_file_that_says_nothing_of_itself_is_shown(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    data = json.loads(made.read_text())
    for provenance in ({}, {"alone": [1], "sweep": [{"threshold": "?"}], "checked": 5, "tokens_trained": "many"}):
        path.write_text(json.dumps(data | {"provenance": provenance}))
        tensors_path(path).write_bytes(tensors_path(made).read_bytes())
        assert main(["exits", "show", str(path), "--plot", str(tmp_path / "bare.svg")]) == 0


def test_the_picture_has_the_calibrated_points(made: Path, tmp_path: Path) -> None:
    drawn = made.with_suffix(".svg").read_text()
    for label in ("calibrated", "on other text", "mean number of layers run", "threshold (probability)"):
        assert f">{label}</text>" in drawn
    again = tmp_path / "again.svg"
    assert main(["exits", "show", str(made), "--plot", str(again)]) == 0
    assert again.read_bytes() == made.with_suffix(".svg").read_bytes()


@pytest.mark.parametrize("ended", [1, 5, 12])
def test_ctrl_c_costs_nothing(
    tiny: Path, made: Path, tmp_path: Path, ended: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The same command goes on, and comes to the file of an undisturbed run."""
    out, learn = tmp_path / "made.json", Training._learn
    arguments = ("--layers", "1", "3")
    monkeypatch.setattr(distil, "SAVE_SECONDS", 0.0)
    taken: list[int] = []

    def interrupted(training: Training, *batch: object) -> float:
        taken.append(training.step)
        if len(taken) == ended:
            raise KeyboardInterrupt
        return learn(training, *batch)

    monkeypatch.setattr(Training, "_learn", interrupted)
    assert train(tiny, out, *arguments) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["made.work"]
    assert train(tiny, out, *arguments) == 0
    assert taken == [*range(ended), *range(ended - 1, 12)]
    assert out.read_bytes() == made.read_bytes()
    assert tensors_path(out).read_bytes() == tensors_path(made).read_bytes()


def test_a_killed_run_goes_on_to_the_same_file(tiny: Path, tmp_path: Path) -> None:
    """Killed while it trains: what it has read is not read again."""
    outs = [tmp_path / name for name in ("undisturbed.json", "killed.json")]
    command = [sys.executable, "-m", "hetero_sglang.cli", "exits", "train", str(tiny), "--text", str(TEXT), *FAST,
               "--steps", "150"]  # fmt: skip
    subprocess.run([*command, "--out", str(outs[0])], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(outs[1])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    states = tmp_path / "killed.work" / "states.bin"
    while not (states.exists() and states.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not outs[1].exists()
    subprocess.run([*command, "--out", str(outs[1])], check=True, capture_output=True)
    assert outs[1].read_bytes() == outs[0].read_bytes()
    assert tensors_path(outs[1]).read_bytes() == tensors_path(outs[0]).read_bytes()


def test_other_settings_take_the_states_but_not_the_branches(tiny: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    out = tmp_path / "exits.json"
    assert train(tiny, out, "--layers", "2", "--work", str(work)) == 0
    read = os.stat(work / "states.bin").st_mtime_ns
    assert train(tiny, out, "--layers", "2", "--work", str(work), "--rate", "0.01", "--branch", "adapter") == 0
    assert os.stat(work / "states.bin").st_mtime_ns == read and load(out).branches[0].kind == "adapter"
    assert train(tiny, out, "--layers", "3", "--work", str(work)) == 0
    assert load(out).branches[0].layer == 3


@pytest.mark.parametrize("weights", ["gptq", "nf4"])
def test_a_quantised_model_has_branches_of_its_own(
    weights: str, recall_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 3}
    plain = write_checkpoint(tmp_path / "plain", "llama", recall_model, **sizes)
    model = quantise(plain, weights, tmp_path / weights)
    out = tmp_path / "exits.json"
    assert train(model, out, "--layers", "2") == 0
    assert load(out, model).branches[0].hidden_size == 128
    assert "was trained on other weights" in refused(capsys, "show", str(out), "--model", str(plain))


def test_built_in_text_is_taken_where_there_is_none(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "exits.json"
    assert main(["exits", "train", str(tiny), "--out", str(out), *FAST]) == 0
    assert "text of your own fits your use better" in capsys.readouterr().err
    assert [branch.layer for branch in load(out).branches] == [2, 3]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--layers", "0"], "list numbers between 1 and 3"),
    (["--layers", "4"], "list numbers between 1 and 3"),
    (["--layers", "3", "1"], "ascending"),
    (["--rank", "65", "--branch", "adapter"], "`--rank` is 65; choose between 1 and 64"),
    (["--words", "1"], "`--words` is 1; choose between 2 and 2943"),
    (["--steps", "0"], "`--steps` is 0"),
    (["--batch", "0"], "`--batch` is 0"),
    (["--rate", "nan"], "`--rate` is nan"),
    (["--length", "5000"], "`--length` is 5000; choose between 64 and 4096"),
    (["--tokens", "5"], "`--tokens` is 5"),
    (["--confidence", "luck"], "invalid choice: 'luck'"),
    (["--text", "none.txt"], "the text none.txt cannot be read"),
    (["--held-out", "none.txt"], "the text none.txt cannot be read"),
    (["--device", "moon"], "`--device moon` cannot be used here"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(
    tiny: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.json"
    assert said in refused(capsys, "train", str(tiny), "--text", str(TEXT), "--out", str(out), "--quiet", *arguments)
    assert not list(tmp_path.iterdir())


def test_places_and_models_that_cannot_work_are_refused(
    tiny: Path, made: Path, tmp_path: Path, recall_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "must end in .json" in refused(capsys, "train", str(tiny), "--out", str(tmp_path / "exits"))
    assert "lies in a checkpoint's folder" in refused(capsys, "train", str(tiny), "--out", str(tiny / "exits.json"))
    assert "give texts to train on" in refused(
        capsys, "train", str(tiny), "--out", str(tmp_path / "e.json"), "--held-out", str(TEXT)
    )
    work = tmp_path / "mine"
    work.mkdir()
    (work / "letter.txt").write_text("dear")
    assert "holds letter.txt, which is not ours" in refused(
        capsys, "train", str(tiny), "--text", str(TEXT), "--out", str(tmp_path / "e.json"), "--work", str(work), *FAST
    )
    assert (work / "letter.txt").read_text() == "dear"
    assert "8 layers" not in refused(capsys, "show", str(made), "--model", str(recall_model))
    other = write_checkpoint(tmp_path / "other", "llama", recall_model, num_hidden_layers=4)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, other / "model.safetensors")
    assert "was trained on other weights" in refused(capsys, "show", str(made), "--model", str(other))
    assert "has no verb 'prune'; choose one of train, show" in refused(capsys, "prune")
    assert main(["exits", "--help"]) == 0 and main(["exits"]) == 2
