"""The trainer's model, loss, loop and export, at tiny sizes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.recall import Language, Mix, MixedSampler  # noqa: E402
from benchmarks.recall.training.accuracy import Count, kind_of_answers, measure, predict  # noqa: E402
from benchmarks.recall.training.data import Batches, load  # noqa: E402
from benchmarks.recall.training.export import check_size, export, read_tokenizer  # noqa: E402
from benchmarks.recall.training.loss import targets_of, weighted_loss  # noqa: E402
from benchmarks.recall.training.model import RecallModel  # noqa: E402
from benchmarks.recall.training.schedule import Clock, Stage, parse_stages, rate_factor  # noqa: E402
from benchmarks.recall.training.settings import Settings  # noqa: E402
from benchmarks.recall.training.shape import Shape  # noqa: E402
from benchmarks.recall.training.trainer import Trainer  # noqa: E402
from hetero_sglang.errors import HeteroError  # noqa: E402

CPU = torch.device("cpu")
TINY = {"width": 64, "layers": 2, "query_heads": 4, "kv_heads": 2, "ffn": 96}


def tiny(seed: int = 0) -> RecallModel:
    torch.manual_seed(seed)
    return RecallModel(Shape(2944, **TINY))


@pytest.mark.parametrize("seed", [0, 1])
def test_an_exported_model_gives_the_trainers_logits_in_transformers(
    language: Language, model_path: Path, tmp_path: Path, seed: int
) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = tiny(seed)
    for parameter in model.parameters():  # norms start at 1, which would hide one that is left out
        parameter.data = (parameter.data * (1 + 0.2 * torch.randn_like(parameter))).bfloat16().float()
    export(tmp_path, model, read_tokenizer(model_path))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, 2932, (2, 50))
    with torch.no_grad():
        ours = model.lm_head(model(ids)).unflatten(0, (2, 50))
        torch.testing.assert_close(ours, loaded(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(" Noka 8", add_special_tokens=False) == language.encode(" Noka 8")
    assert (loaded.config.bos_token_id, tokenizer.bos_token_id) == (language.bos, language.bos)
    assert loaded.config.head_dim == 64


def test_the_shape_counts_its_parameters_and_the_default_fits_16_mib(model_path: Path) -> None:
    assert sum(parameter.numel() for parameter in tiny().parameters()) == tiny().shape.parameters
    tokenizer = read_tokenizer(model_path)
    check_size(Shape(Shape.rows(2932)), tokenizer, 16)
    with pytest.raises(HeteroError, match="more than 16"):
        check_size(Shape(2944, ffn=512), tokenizer, 16)
    with pytest.raises(HeteroError, match="evenly"):
        Shape(2944, query_heads=16, kv_heads=6)
    with pytest.raises(HeteroError, match="1 or more"):
        Shape(2944, layers=0)
    with pytest.raises(HeteroError, match="tokenizer"):
        read_tokenizer(model_path.parent)


def test_initial_embeddings_are_large_and_the_rest_small() -> None:
    model = tiny()
    assert 0.65 < model.embed_tokens.weight.std() < 0.75
    assert 0.015 < model.lm_head.weight.std() < 0.025
    layer = model.layers[0]
    assert layer.o_proj.weight.std() < 0.6 * layer.q_proj.weight.std() * (64 / 256) ** 0.5 * 1.1


def test_no_token_sees_a_later_one_and_samples_are_apart() -> None:
    model, ids = tiny(), torch.randint(0, 2932, (3, 40))
    other = ids.clone()
    other[1, 20:] = torch.randint(0, 2932, (20,))
    with torch.no_grad():
        before, after = model(ids).unflatten(0, (3, 40)), model(other).unflatten(0, (3, 40))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(before[1, :20], after[1, :20])
    assert not torch.allclose(before[1, 20:], after[1, 20:])


def test_targets_are_the_next_tokens_with_the_samplers_weights(language: Language) -> None:
    samples = [MixedSampler(language).sample(np.random.default_rng(seed), 90) for seed in range(3)]
    ids = torch.tensor(np.stack([sample.ids for sample in samples])).short()
    kinds = torch.tensor(np.stack([sample.kinds for sample in samples]))
    before = kinds.clone()
    following, kind, weight = (each.view(3, 90) for each in targets_of(ids, kinds))
    assert torch.equal(following[:, :-1], ids[:, 1:].long())
    assert torch.equal(kind[:, :-1], kinds[:, 1:])
    assert torch.equal(weight[:, :-1], torch.tensor(np.stack([sample.weights[1:] for sample in samples])))
    assert not weight[:, -1].any()
    assert not kind[:, -1].any()
    assert torch.equal(kinds, before)


def test_the_loss_is_the_weighted_mean_of_cross_entropies() -> None:
    hidden, head = torch.randn(20, 8), torch.randn(30, 8)
    following, weight = torch.randint(0, 30, (20,)), torch.rand(20)
    loss, right = weighted_loss(hidden, head, following, weight)
    naive = [float(torch.log_softmax(head @ hidden[t], 0)[following[t]]) * -float(weight[t]) for t in range(20)]
    assert float(loss) == pytest.approx(sum(naive) / float(weight.sum()), rel=1e-4)
    assert right.tolist() == [int((head @ hidden[t]).argmax()) == int(following[t]) for t in range(20)]


def test_it_learns_one_batch_by_heart(language: Language) -> None:
    batches = Batches(MixedSampler(language), 96, 4, (0,))
    batch = next(load(batches, 0, CPU))
    trainer = Trainer(tiny(), MixedSampler(language), Settings(rate=4e-3, warmup=5, workers=0))
    first, kind, _ = trainer.step(batch)
    for _ in range(60):
        loss, kind, right = trainer.step(batch)
    assert loss < 0.1 * first
    assert right[kind > 0].float().mean() > 0.99
    assert trainer.totals.steps == 61
    assert trainer.totals.tokens == 61 * 4 * 96


def test_training_takes_its_steps_through_all_stages_and_repeats_itself(language: Language) -> None:
    settings = Settings(
        steps=5, stages="64:40,128:40,256:20", batch_tokens=256, workers=0, stop_below=0.0, rate=1e-2, warmup=2, seed=3
    )
    models, lines = [], []
    for _ in range(2):
        model = tiny()
        totals = Trainer(model, MixedSampler(language), settings, lines.append).train()
        assert (totals.steps, totals.tokens, totals.gave_up) == (5, 5 * 256, False)
        models.append(model)
    assert [line.split("tokens")[0].split()[-1] for line in lines] == ["64", "128", "256"] * 2
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert not torch.equal(models[0].lm_head.weight, tiny().lm_head.weight)


def test_a_training_that_learns_nothing_gives_up(language: Language) -> None:
    settings = Settings(steps=4, stages="64:50,1024:25,2048:25", batch_tokens=1024, workers=0, rate=1e-6)
    totals = Trainer(tiny(), MixedSampler(language), settings, lambda line: None).train()
    assert totals.gave_up
    assert totals.steps == 3


def test_workers_draw_different_samples(language: Language) -> None:
    data = load(Batches(MixedSampler(language), 64, 2, (0, 1)), 2, CPU)
    drawn = [next(data) for _ in range(4)]
    assert all(ids.shape == kinds.shape == (2, 64) for ids, kinds in drawn)
    assert len({ids.numpy().tobytes() for ids, _ in drawn}) == 4
    alone = [next(load(Batches(MixedSampler(language), 64, 2, seed), 0, CPU))[0] for seed in ((0, 1), (0, 1), (0, 2))]
    assert torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])


def test_answers_are_told_apart() -> None:
    kind = torch.tensor([0, 2, 2, 0, 0, 1, 3, 3, 0, 1])
    number, kinds = kind_of_answers(kind)
    assert number.tolist() == [-1, 0, 0, -1, -1, 1, 1, 1, -1, 2]
    assert kinds.tolist() == [2, 3, 1]


def test_accuracy_counts_tokens_words_and_whole_answers(language: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.recall.training.accuracy as accuracy

    sampler, missed, answers = MixedSampler(language, Mix(1, 1, 1)), [0, 0, 0, 0], [0, 0, 0, 0]
    drawn = next(load(Batches(sampler, 512, 2, (7, accuracy._SEED)), 0, CPU))

    def err_on_first_number(_: RecallModel, ids: torch.Tensor) -> torch.Tensor:
        assert torch.equal(ids, drawn[0].long())
        following, kind, _ = targets_of(*drawn)
        said = following.clone()
        start = [t for t in range(len(kind)) if kind[t] and not kind[t - 1]]
        for at, t in enumerate(start):
            end = next(u for u in range(t, len(kind)) if not kind[u])
            answers[int(kind[t:end].max())] += 1
            if at % 3 == 0 and kind[t + 1]:  # the first number of every third answer
                said[t + 1] = 0
                missed[int(kind[t + 1])] += 1
        return said

    monkeypatch.setattr(accuracy, "predict", err_on_first_number)
    got = measure(tiny(), sampler, [512], 1024, 7, 1024)[512]
    for at, name in enumerate(("plain", "chain", "update"), start=1):
        each, total = got[name], int((drawn[1] == at).sum())
        assert each.tokens == Count(total - missed[at], total)
        assert each.numbers.total - each.numbers.right == missed[at]
        assert each.names.share == each.marks.share == 1
        assert each.names.total + each.numbers.total + each.marks.total == total
        assert each.answers.total == answers[at]
    assert sum(missed) >= 3
    assert sum(each.answers.total - each.answers.right for each in got.values()) == sum(missed)
    assert Count().share is None


def test_predictions_are_the_largest_logits() -> None:
    model, ids = tiny(), torch.randint(0, 2932, (2, 30))
    with torch.no_grad():
        assert torch.equal(predict(model, ids), (model(ids) @ model.lm_head.weight.T).argmax(-1))


def test_stages_and_rates() -> None:
    assert parse_stages("256:30,1024:20") == [Stage(256, 0.6), Stage(1024, 1.0)]
    for wrong in ("", "256", "256:a", "256:-1,64:2", "256:0"):
        with pytest.raises(HeteroError, match="Stages"):
            parse_stages(wrong)
    assert rate_factor(0, 0.0, 200) == pytest.approx(1 / 200)
    assert rate_factor(500, 0.0, 200) == 1
    assert rate_factor(500, 0.5, 200) == pytest.approx(0.51)
    assert rate_factor(500, 1.0, 200) == pytest.approx(0.02)
    assert Clock(1.0, steps=4, step=1).fraction == 0.25
    assert Clock(1e-9).fraction == 1.0
    for wrong in ({"minutes": 0}, {"steps": 0}, {"workers": -1}, {"batch_tokens": 8}):
        with pytest.raises(HeteroError):
            Settings(**wrong)


def test_the_command_trains_measures_and_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: Language
) -> None:
    from benchmarks.recall.train import main

    flags = ["--out", str(tmp_path / "recall-tiny"), "--device", "cpu", "--workers", "0", "--steps", "4", "--seed", "5"]
    flags += [
        "--layers",
        "2",
        "--query-heads",
        "4",
        "--kv-heads",
        "2",
        "--width",
        "64",
        "--ffn",
        "64",
        "--chain",
        "0.5",
    ]
    flags += ["--stages", "64:50,128:50", "--batch-tokens", "512", "--eval-lengths", "128", "--eval-tokens", "2048"]
    assert main(flags) == 0
    shown = capsys.readouterr().err
    assert "128 tokens  chain" in shown
    folder = tmp_path / "recall-tiny"
    record = json.loads((folder / "training.json").read_text())
    assert record["command"] == "python -m benchmarks.recall.train " + " ".join(flags)
    assert (record["settings"]["seed"], record["totals"]["steps"], record["mix"]["chain"]) == (5, 4, 0.5)
    assert record["accuracy"]["128"]["chain"]["tokens"]["total"] > 0
    card = (folder / "README.md").read_text()
    for part in (record["command"], "# recall-tiny", "| seed | 5 |", "| 128 | ", "chain 0.5", "on the CPU"):
        assert part in card
    assert "{" not in card.split("```")[-1]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2**24
    assert Language.load(folder).token == language.token
    assert main([*flags, "--ffn", "100000"]) == 2
    assert "MiB" in capsys.readouterr().err
