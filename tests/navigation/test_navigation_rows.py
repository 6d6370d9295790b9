"""What rows are served from: cut checkpoints, 4-bit numbers, adapters; the bound, the table and the picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("minigrid")

from safetensors.torch import save_file  # noqa: E402

from benchmarks.navigation.bound import Bound, Line, words  # noqa: E402
from benchmarks.navigation.exits import static_exit, truncate  # noqa: E402
from benchmarks.navigation.layout import LAYOUTS, Layout  # noqa: E402
from benchmarks.navigation.materials import Materials, plain_again, weight_bytes  # noqa: E402
from benchmarks.navigation.model import Navigator  # noqa: E402
from benchmarks.navigation.rows import Row, Skipped, rows  # noqa: E402
from benchmarks.navigation.table import table  # noqa: E402
from benchmarks.navigation.words import REPLY, WORDS, tokenizer_files  # noqa: E402
from benchmarks.recall.training.export import export  # noqa: E402
from benchmarks.recall.training.shape import Shape  # noqa: E402
from benchmarks.weights.quantise import quantise  # noqa: E402
from hetero_sglang.errors import HeteroError  # noqa: E402
from hetero_sglang.exits.branch import Branch  # noqa: E402

SHAPE = Shape(Shape.rows(len(WORDS)), width=64, layers=4, query_heads=2, kv_heads=1, ffn=128)
IDS = torch.arange(7, 57)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    made = Navigator(SHAPE)
    for weight in made.parameters():  # norms start at 1, which would hide one that is left out
        weight.data *= 1 + 0.2 * torch.randn_like(weight)
    made.lm_head.weight.data *= 8  # large enough that additions below it change what is likely
    folder = tmp_path_factory.mktemp("navigation") / "model"
    export(folder, made, tokenizer_files())
    return folder


def read(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def states(model: Any, layers: int) -> torch.Tensor:
    """Behind so many layers, without the norm: [1, L, H]."""
    caught: list[torch.Tensor] = []
    hook = model.model.layers[layers - 1].register_forward_hook(
        lambda _, __, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(IDS)
    hook.remove()
    return caught[0].reshape(1, IDS.shape[1], -1)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_cut_checkpoint_is_the_models_first_layers(model: Path, tmp_path: Path, layers: int) -> None:
    whole = read(model)
    cut = read(truncate(model, layers, tmp_path / "cut"))
    with torch.no_grad():
        torch.testing.assert_close(cut(IDS).logits, whole.lm_head(whole.model.norm(states(whole, layers))))
    assert cut.config.num_hidden_layers == layers
    with pytest.raises(HeteroError, match="it has 4; pass 1 to that"):
        truncate(model, 5, tmp_path / "more")


@pytest.mark.parametrize("kind", ["adapter", "head"])
def test_a_static_exit_has_the_branchs_logits(model: Path, tmp_path: Path, kind: str) -> None:
    whole, layer = read(model), 2
    norm = 1 + 0.1 * torch.randn(64)
    down, up = torch.randn(8, 64) / 8, torch.randn(64, 8) / 8
    head = torch.randn(SHAPE.vocabulary, 64) / 8
    branch = SimpleNamespace(layer=layer, eps=1e-5, norm=norm, down=down, up=up, head=None, tokens=None)
    if kind == "head":
        branch = SimpleNamespace(layer=layer, eps=1e-5, norm=norm, down=None, up=None, head=head, tokens=None)
    x = states(whole, layer)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm
    wanted = x @ head.T if kind == "head" else whole.lm_head(x + x @ down.T @ up.T)
    made = read(static_exit(model, branch, tmp_path / "static"))
    with torch.no_grad():
        # The head and the norm are kept in bfloat16.
        torch.testing.assert_close(made(IDS).logits, wanted, rtol=2e-2, atol=2e-2 * float(wanted.std()))


def test_a_branch_of_some_words_or_of_another_model_is_no_static_exit(model: Path, tmp_path: Path) -> None:
    branch = SimpleNamespace(layer=2, eps=1e-5, norm=torch.ones(64), head=torch.ones(5, 64), tokens=torch.arange(5))
    with pytest.raises(HeteroError, match="knows 5 of 128 words"):
        static_exit(model, branch, tmp_path / "some")
    branch = SimpleNamespace(layer=2, eps=1e-5, norm=torch.ones(32), head=torch.ones(128, 64), tokens=None)
    with pytest.raises(HeteroError, match="eps 1e-06 and the model's have 1e-05"):
        static_exit(model, SimpleNamespace(**{**vars(branch), "eps": 1e-6}), tmp_path / "eps")
    with pytest.raises(HeteroError, match=r"A tensor of \[32\] cannot stand"):
        static_exit(model, branch, tmp_path / "other")


def test_4_bit_numbers_are_near_the_models_and_far_smaller(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    packed = quantise(model, "nf4", tmp_path / "nf4")
    numbers = plain_again(packed, tmp_path / "numbers")
    one, other = (each.model.layers[1].mlp.up_proj.weight for each in (read(model), read(numbers)))
    off = float(((one - other).norm() / one.norm()).detach())
    assert 0.02 < off < 0.15  # nf4 of normal weights
    assert torch.equal(read(model).lm_head.weight, read(numbers).lm_head.weight)
    assert weight_bytes(packed) < 0.6 * weight_bytes(numbers)
    assert "quantization_config" not in json.loads((numbers / "config.json").read_text())


def test_qlora_trains_an_adapter_that_peft_and_the_player_read(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from benchmarks.navigation import qlora

    out = tmp_path / "adapter"
    given = f"{model} --out {out} --rooms 1 --steps 25 --rate 0.01 --batch-tokens 1024 --workers 0 --episodes 1"
    given += " --rank 4 --device cpu"
    record = qlora.run(qlora._parser().parse_args(given.split()))
    assert record["totals"]["loss"] < 0.9 * record["totals"]["first_loss"]
    assert set(record["played"]) == {"4-bit", "4-bit + QLoRA"}
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    plain, tuned = qlora.merged(model, None, "cpu"), qlora.merged(model, out, "cpu")
    assert not torch.allclose(plain(IDS), tuned(IDS))
    assert torch.equal(plain.lm_head.weight, tuned.lm_head.weight)


def test_what_rows_weigh_and_where_branches_lie(model: Path, tmp_path: Path) -> None:
    """Adapters and branches are served in 16 bits; another branch at the same layer is another checkpoint."""
    (adapter := tmp_path / "adapter").mkdir()
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.float64)}, adapter / "adapter_model.safetensors")
    save_file({"head": torch.zeros(10, 2)}, tmp_path / "exits.safetensors")
    flags = {"hetero_early_exit": tmp_path / "exits.json"}
    row = Row("all of it", model, 4, flags, adapter=adapter)
    assert row.weight_bytes == weight_bytes(model) + 2 * (15 + 7) + 2 * 20
    materials, norm = Materials(model, tmp_path / "made", LAYOUTS["corridor"]), torch.ones(64)
    made = [materials.checkpoint("plain", Branch(2, 128, 1e-5, norm, head=torch.randn(128, 64))) for _ in "ab"]
    assert made[0] != made[1] and all((each / "model.safetensors").exists() for each in made)


def made_rows(materials: Materials, gpu: bool) -> dict[str, Row | Skipped]:
    found: dict[str, Row | Skipped] = {}
    for name, make in rows(materials, gpu, 0.99, ["0.5"]):
        try:
            found[name] = make(name)
        except HeteroError as error:
            found[name] = Skipped(name, str(error))
    return found


def test_rows_on_a_gpu_and_on_a_small_machine(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    branches = tuple(Branch(layer, 128, 1e-5, norm=torch.ones(64), head=torch.randn(128, 64)) for layer in (1, 3))
    monkeypatch.setattr(Materials, "branches", lambda self, weights: branches)
    monkeypatch.setattr(Materials, "exits", lambda self, weights: Path(f"{weights}.json"))  # of what is served
    (profile := tmp_path / "hetero_profile.json").touch()
    monkeypatch.setattr(Materials, "profile", lambda self: profile)
    materials = Materials(model, tmp_path / "made", LAYOUTS["corridor"], adapter=tmp_path / "adapter")
    on_gpu = made_rows(materials, gpu=True)
    static = [row for name, row in on_gpu.items() if "exit at layer" in name]
    assert [row.layers for row in static if isinstance(row, Row)] == [1, 3]
    four = on_gpu["4-bit"]
    assert isinstance(four, Row) and four.server_flags() == {"kv_policy": "full", "load_format": "bitsandbytes"}
    all_of_it = on_gpu["4-bit, dynamic exit, HeteroCache at 0.5"]
    assert isinstance(all_of_it, Row)
    assert all_of_it.server_flags() == {
        "kv_policy": "heterocache", "hetero_keep_ratio": 0.5, "hetero_profile": profile,
        "load_format": "bitsandbytes", "hetero_early_exit": Path("nf4.json"), "hetero_exit_agreement": 0.99,
        "hetero_early_exit_max_batch": 4,
    }  # fmt: skip
    tuned = on_gpu["4-bit + QLoRA, mirrored worlds"]
    assert isinstance(tuned, Row) and tuned.request == {"lora_path": "navigation"} and tuned.layout.mirrored
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    small = made_rows(materials, gpu=False)
    assert isinstance(small["4-bit"], Skipped)
    numbers = small["4-bit numbers"]
    assert isinstance(numbers, Row) and numbers.stored is not None and "load_format" not in numbers.flags
    assert weight_bytes(numbers.stored) < weight_bytes(numbers.model)
    early = small["4-bit numbers, dynamic exit"]
    assert isinstance(early, Row) and early.flags["hetero_early_exit"] == Path("numbers.json")


def test_without_an_adapter_or_branches_the_other_rows_stay(model: Path, tmp_path: Path) -> None:
    materials = Materials(model, tmp_path, Layout(rooms=1, locked=1), exits_file=tmp_path / "none.json")
    found = made_rows(materials, gpu=True)
    assert isinstance(found["full precision"], Row)
    assert isinstance(found["4-bit, static exit"], Skipped)
    assert isinstance(found["4-bit + QLoRA, mirrored worlds"], Skipped)


def test_the_bound_is_what_depth_can_save() -> None:
    line = Line.through({4: 5.0, 8: 7.0, 16: 11.0})
    assert (line.fixed, line.layer) == pytest.approx((3.0, 0.5))
    bound = Bound(16, step=line, turn=Line(10.0, 1.0))
    assert bound.action(16) == pytest.approx(26 + (REPLY - 1) * 11)
    assert bound.saved(16) == 0
    assert bound.saved(2) == pytest.approx((REPLY - 1) * 7 / bound.action(16))
    assert "left behind layer 2, " in words(bound, [2])
    assert bound.to_json([2])["saved"]["2"] == bound.saved(2)


ROW = {
    "name": "full precision", "worlds": "corridor", "success": 0.5, "efficiency": 0.4, "hits_per_100_steps": 1.0,
    "bumps_per_100_steps": 2.0, "p50_ms": 10.0, "p99_ms": 20.0, "mean_ms": 11.0, "weight_bytes": 2_000_000,
    "kv_bytes": 4_000_000, "layers": 16, "counters": {}, "joules": {"gpu": 50.0, "processor": None}, "steps": 100,
}  # fmt: skip


def test_the_table_has_a_line_a_row_and_says_what_is_missing() -> None:
    text = table([ROW, {"name": "4-bit", "skipped": "a GPU is needed"}])
    cells = "0.500 | 0.400 | 1.00 | 2.00 | 10.0 | 20.0 | 11.0 | 16.0 | 2.00 | 4.00 | 0.50 J | not readable"
    assert f"| full precision | {cells} |" in text
    assert text.endswith("Not measured:\n\n- 4-bit: a GPU is needed\n")


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.navigation.picture import draw

    rows = [ROW, {**ROW, "name": "4-bit, exit at layer 2", "mean_ms": 6.0}, {"name": "4-bit", "skipped": "no"}]
    first, second = (draw(rows, tmp_path / f"{n}.svg").read_bytes() for n in "ab")
    assert first == second and b"exit at layer 2" in first


def test_the_command_says_where_a_model_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.navigation.run import main

    with pytest.raises(SystemExit) as ended:
        main(["--model", str(tmp_path)])
    assert ended.value.code == 2
    assert "benchmarks.navigation.train" in capsys.readouterr().err


def test_an_unreadable_counter_of_energy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.navigation import energy

    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("2000000")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    counted = energy.Energy()
    (zone / "energy_uj").write_text("5000000")
    assert counted.spent()["processor"] == 3.0
    (zone / "energy_uj").write_text("1000000")  # wrapped
    assert counted.spent()["processor"] is None
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nowhere")
    assert energy.words(energy.Energy().spent()["processor"], 10) == "not readable"


class Fake:
    """A server that never runs; the second one of all ends before it answers."""

    made: list[Fake] = []

    def __init__(self, model: Path, log: Path | None = None, **flags: Any) -> None:
        self.model, self.log, self.flags, self.started_in = model, log, flags, 1.0
        self.events: list[str] = []
        self.made.append(self)

    def launch(self) -> None:
        self.events.append(f"launched beside {sum('stopped' not in each.events for each in self.made) - 1}")

    def wait(self) -> None:
        running = [each for each in self.made if "stopped" not in each.events]
        assert not any("played" in each.events for each in running), "one is timed while another starts"
        if self.made.index(self) == 1:
            raise RuntimeError("ended")

    def stop(self, at_once: bool = False) -> None:
        self.events.append("stopped")

    def tail(self, count: int) -> str:
        return "no room"


@pytest.mark.parametrize("together", [1, 3])
def test_servers_start_together_and_are_played_with_in_turn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not start is a line, and the others go on."""
    from benchmarks import results
    from benchmarks.navigation import play, run

    own = ("name", "weight_bytes", "kv_bytes", "layers")
    played = {key: each for key, each in ROW.items() if key not in own} | {"counters": {}, "most_tokens": 10}
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(run, "Server", Fake)
    monkeypatch.setattr(play, "measure", lambda server, *_: server.events.append("played") or dict(played))
    monkeypatch.setattr(Materials, "branches", lambda *_: ())
    words = ["--model", str(model), "--together", str(together), "--no-bound", "--no-picture", "--name", "n"]
    run.main([*words, "--rows", "precision", "float32", "--without", "mirrored"])
    rows = json.loads((tmp_path / "n.json").read_text())["rows"]
    assert [each["name"] for each in rows] == ["full precision", "float32"]
    assert rows[1]["skipped"].startswith("no room") and rows[0]["weight_bytes"] == weight_bytes(model)
    beside = min(together - 1, 1)
    assert [each.events[0] for each in Fake.made] == ["launched beside 0", f"launched beside {beside}"]
    assert Fake.made[0].events[1:] == ["played", "stopped", "stopped"] and Fake.made[1].events[1:] == ["stopped"]
