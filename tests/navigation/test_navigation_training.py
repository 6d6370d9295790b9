"""Training at a tiny size: the loss falls, the checkpoint is the trained model, and a stopped training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("minigrid")

from benchmarks.navigation.batches import Batches, load  # noqa: E402
from benchmarks.navigation.demonstration import demonstrate  # noqa: E402
from benchmarks.navigation.episode import play  # noqa: E402
from benchmarks.navigation.layout import Layout  # noqa: E402
from benchmarks.navigation.model import ModelPlayer, Navigator  # noqa: E402
from benchmarks.navigation.train import parser, run  # noqa: E402
from benchmarks.navigation.trainer import Trainer  # noqa: E402
from benchmarks.navigation.words import REPLY, WORDS, tokenizer_files  # noqa: E402
from benchmarks.recall.training.export import export  # noqa: E402
from benchmarks.recall.training.settings import Settings  # noqa: E402
from benchmarks.recall.training.shape import Shape  # noqa: E402
from hetero_sglang.errors import HeteroError  # noqa: E402

LAYOUT = Layout(rooms=1, locked=1, hazards=1, limit=40)
TINY = {"width": 64, "layers": 2, "query_heads": 2, "kv_heads": 1, "ffn": 96}


def tiny(seed: int = 0) -> Navigator:
    torch.manual_seed(seed)
    return Navigator(Shape(Shape.rows(len(WORDS)), **TINY))


def test_sequences_in_a_row_do_not_see_each_other() -> None:
    model = tiny()
    lengths = [20, 20, 30, 40, 20]
    ids = torch.randint(0, len(WORDS), (sum(lengths),))
    together = model(ids, lengths)
    apart = torch.cat([model(part[None]) for part in ids.split(lengths)])
    torch.testing.assert_close(together, apart)


def test_a_batch_is_full_of_whole_episodes_but_for_its_last() -> None:
    (one, two), *_ = [[next(each) for each in [load(Batches(LAYOUT, 1, 2000, seed, 0.1), 0, torch.device("cpu"))
                                               for seed in (0, 1)]]]  # fmt: skip
    for batch in (one, two):
        assert sum(batch.lengths) == len(batch.ids) == 2000
        begins = [sum(batch.lengths[:n]) for n in range(len(batch.lengths))]
        assert all(WORDS[int(batch.ids[at])] == "<s>" for at in begins)
        assert int((batch.ids == 0).sum()) == len(begins)
    assert one.ids.tolist() != two.ids.tolist()


def test_without_memory_each_turn_stands_alone() -> None:
    batch = next(load(Batches(LAYOUT, 0, 2000, 0, 0.0), 0, torch.device("cpu")))
    assert max(batch.lengths) < 90 and len(batch.lengths) > 15


def test_the_loss_falls_and_the_checkpoint_is_the_model(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    lines: list[str] = []
    model = tiny()
    settings = Settings(steps=40, stages="1:100", batch_tokens=1024, rate=4e-3, warmup=5, workers=0)
    trainer = Trainer(model, LAYOUT, settings, log=lines.append)
    first = trainer.step(next(load(trainer._batches(1), 0, torch.device("cpu"))))[0]
    trainer.train()
    last = trainer.step(next(load(trainer._batches(1), 0, torch.device("cpu"))))[0]
    assert last < 0.75 * first
    assert trainer.totals()["tokens"] == 1024 * trainer.totals()["steps"]
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    export(tmp_path, model, tokenizer_files())
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    shown = demonstrate(LAYOUT, 1)
    ids = torch.from_numpy(shown.ids).long()
    with torch.no_grad():
        torch.testing.assert_close(
            model.lm_head(model(ids, [len(ids)])), loaded(ids[None]).logits[0], rtol=1e-4, atol=1e-4
        )
        again = Navigator.of(loaded)
        torch.testing.assert_close(again(ids, [len(ids)]), model(ids, [len(ids)]))
    assert AutoTokenizer.from_pretrained(tmp_path).encode("at x1") == [0, WORDS.index("at"), WORDS.index("x1")]


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    state, lines = tmp_path / "model.state", []
    settings = Settings(steps=3, stages="1:100", batch_tokens=256, workers=0)
    stopped = Trainer(tiny(), LAYOUT, settings, state, log=lines.append)
    stopped.train()
    stopped._save(state)
    longer = Settings(steps=5, stages="1:100", batch_tokens=256, workers=0)
    going_on = Trainer(tiny(1), LAYOUT, longer, state, log=lines.append)
    going_on.train()
    assert going_on.totals()["steps"] == 5 and going_on.totals()["starts"] == 2
    assert any(line.startswith("going on after step 3") for line in lines)


def test_a_player_replies_as_the_model_does_on_whole_histories() -> None:
    model = tiny(3).eval()
    episodes = {}

    class Watched(ModelPlayer):
        def replies(self, histories):  # type: ignore[no-untyped-def]
            said = super().replies(histories)
            for (number, ids), reply in zip(histories, said, strict=True):
                ids = torch.tensor(list(ids))
                for word in reply:
                    with torch.no_grad():
                        logits = model.lm_head(model(ids[None])[-1])
                    assert logits[word] >= logits.max() - 1e-4
                    ids = torch.cat((ids, torch.tensor([word])))
                episodes[number] = len(ids)
            return said

    layout = Layout(rooms=1, locked=1, limit=4)
    outcomes = play(layout, range(3), Watched(model, 3, 600))
    assert [each.tokens for each in outcomes] == [episodes[n] for n in range(3)]


def test_a_player_that_forgets_sees_one_turn() -> None:
    model, asked = tiny(3).eval(), []

    class Watched(ModelPlayer):
        def _next(self, numbers, placed, fresh):  # type: ignore[no-untyped-def]
            asked.append((placed[0], len(fresh[0])))
            return super()._next(numbers, placed, fresh)

    play(Layout(rooms=1, locked=1, limit=3), [0], Watched(model, 1, 600, forgets=True))
    assert [first for first, _ in asked[::REPLY]] == [0, 0, 0]
    assert all(count < 90 for _, count in asked[::REPLY])


def test_one_command_trains_plays_and_exports(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    words = f"--out {tmp_path}/model --steps 2 --stages 1:100 --workers 0 --batch-tokens 256 --layout small --layers 2"
    words += " --width 64 --query-heads 2 --kv-heads 1 --ffn 64 --episodes 1 --play-rooms 1 --device cpu"
    record = run(parser().parse_args(words.split()), "command")
    assert record["totals"]["steps"] == 2 and record["played"][0]["rooms"] == 1
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json",
    }  # fmt: skip
    assert not (tmp_path / "model.state").exists()
    text = (tmp_path / "model" / "README.md").read_text()
    assert "2 layers, hidden size 64" in text and "| 1 | 1 | " in text and "{" not in text
    again = f"{words} --start {tmp_path}/model".replace("--steps 2", "--steps 1 --rate 1e-9")
    run(parser().parse_args(again.replace("/model --steps", "/again --steps").split()), "command")
    one, other = (LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("model", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(HeteroError, match="pass flags that agree"):
        run(parser().parse_args(again.replace("--ffn 64", "--ffn 96").split()), "command")
