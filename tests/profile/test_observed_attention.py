"""What calibration sees of a model, against the attention the model itself reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import write_checkpoint
from transformers import AutoModelForCausalLM

from hetero_sglang.calibration import calibrate as calibration
from hetero_sglang.calibration import reading, runs
from hetero_sglang.calibration.calibrate import Plan, TopK, measure
from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.observe import Observation, reduce_group, watched
from hetero_sglang.errors import HeteroError
from hetero_sglang.ops.reference.attention import pool_average

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, recall_model):
    folder = tmp_path_factory.mktemp("models")
    return {family: write_checkpoint(folder / family, family, recall_model) for family in FAMILIES}


def document(seed: int, length: int) -> Document:
    tokens = np.random.default_rng(seed).integers(3, 2900, length)
    return Document("random", "none", tuple(tokens.tolist()))


def eager(path, tokens: list[int]) -> torch.Tensor:
    """Attention of a whole sequence [layers, Hq, L, L], from the model's own eager code."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.cat(model(torch.tensor([tokens]), output_attentions=True).attentions)


def scores_of(attention: torch.Tensor, rows: slice, prompt: int, plan: Plan) -> torch.Tensor:
    """[layers, H, prompt]: the rows averaged, pooled and reduced."""
    layers, query_heads = attention.shape[:2]
    rows_mean = attention[:, :, rows].mean(2).view(layers, 2, query_heads // 2, -1)[..., :prompt]
    seen = plan.observation
    return torch.stack([reduce_group(pool_average(layer, seen.pooling), seen.reduction) for layer in rows_mean])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("window", "reduction"), [(1, "mean"), (8, "max")])
def test_overlaps_equal_those_of_the_models_full_attention(checkpoints, family, window, reduction, monkeypatch):
    monkeypatch.setattr(reading, "PREFILL_CHUNK", 17)  # several chunks, none of them the whole prompt
    plan = Plan(5, TopK(count=12), Observation(window, 5, reduction), smoothing=1)
    text = document(window, 65)
    opened = open_checkpoint(checkpoints[family], "cpu")
    found = measure(reading.read(opened, text, plan.tail), plan)

    attention = eager(checkpoints[family], list(text.tokens))
    first = scores_of(attention, slice(60 - window, 60), 60, plan)
    for step in range(plan.steps):
        now = scores_of(attention, slice(60 + step, 61 + step), 60, plan)
        for layer in range(2):
            for head in range(2):
                sets = [set(s[layer, head].topk(12).indices.tolist()) for s in (first, now)]
                assert found.overlap[layer, head, step] == pytest.approx(len(sets[0] & sets[1]) / 12), (
                    layer,
                    head,
                )


def test_watching_changes_no_logit_and_ends_with_the_context(checkpoints):
    opened = open_checkpoint(checkpoints["qwen3"], "cpu")
    tokens = torch.tensor([document(3, 40).tokens])
    seen = []
    with torch.inference_mode():
        before = opened.model(tokens).logits
        with watched(
            opened.model,
            lambda layer, query, key, value, scale, o_proj: seen.append((layer, query.shape, key.shape, value.shape)),
        ):
            during = opened.model(tokens).logits
        after = opened.model(tokens).logits
    torch.testing.assert_close(during, before)
    torch.testing.assert_close(after, before)
    assert seen == [(layer, (4, 40, 16), (2, 40, 16), (2, 40, 16)) for layer in range(2)]


@pytest.mark.parametrize("tail", [1, 7, 30, 100])
def test_a_reading_holds_what_every_layer_attends_with(checkpoints, tail, monkeypatch):
    monkeypatch.setattr(reading, "PREFILL_CHUNK", 8)
    opened = open_checkpoint(checkpoints["qwen2"], "cpu")
    text, reported, seen = document(5, 30), [], []
    found = reading.read(opened, text, tail, advance=reported.append)
    with torch.inference_mode(), watched(opened.model, lambda layer, *given: seen.append(given)):
        opened.model(torch.tensor([text.tokens]))
    assert sum(reported) == 30
    for kept, (query, key, value, scaling, o_proj) in zip(found, seen, strict=True):
        torch.testing.assert_close(kept.query, query[:, -tail:], atol=1e-5, rtol=1e-4)
        for one, other in ((kept.key, key), (kept.value, value)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert kept.scaling == scaling and kept.o_proj is o_proj
        if tail == 7:
            queries, keys = kept.upto(28, 3)
            torch.testing.assert_close(queries, query[:, 25:28], atol=1e-5, rtol=1e-4)
            assert keys.shape[1] == 28


@pytest.mark.parametrize("length", [16, 17, 1024, 1025, 1030, 1040, 5000])
def test_chunks_cover_the_prompt_and_the_last_holds_the_tail(length):
    bounds = reading.chunk_bounds(length, 16)
    assert bounds[0] == 0 and bounds[-1] == length and bounds == sorted(set(bounds))
    assert bounds[-1] - bounds[-2] >= 16
    assert max(b - a for a, b in zip(bounds, bounds[1:], strict=False)) <= reading.PREFILL_CHUNK + 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(count=0), "--topk"),
        (lambda: TopK(share=0.0), "--topk-share"),
        (lambda: TopK(share=1.0), "--topk-share"),
        (lambda: Plan(steps=0), "--steps"),
        (lambda: Plan(smoothing=0), "--smoothing"),
        (lambda: Observation(window=0), "--window"),
        (lambda: Observation(pooling=4), "--pooling"),
        (lambda: Observation(reduction="sum"), "--gqa"),
        (lambda: Plan(2, TopK(count=58)).sizes(document(1, 60)), "has 60 tokens, too few for sets of the top 58"),
        (lambda: Plan(1, observation=Observation(2)).sizes(document(1, 4)), "has 4 tokens, too few"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(HeteroError, match=message):
        make()


def test_a_text_shorter_than_the_window_is_refused_before_any_is_read(monkeypatch):
    monkeypatch.setattr(runs, "read", None)
    texts = [document(1, 40), document(2, 9)]
    with pytest.raises(HeteroError, match=r"has 9 tokens, fewer than `--window` 8 \+ `--steps` 2"):
        calibration.calibrate(None, texts, Plan(2, TopK(count=5), Observation(8)), None, print)


def test_a_model_that_computes_no_numbers_is_refused(checkpoints):
    opened = open_checkpoint(checkpoints["llama"], "cpu")
    with torch.no_grad():
        opened.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(HeteroError, match="computes no finite numbers on random"):
        reading.read(opened, document(5, 30), 4)


def test_a_share_is_capped():
    assert TopK(share=0.2).of(100) == 20
    assert TopK(share=0.5).of(5000) == calibration.TOPK_CAP
    assert TopK(count=30).of(100) == 30
