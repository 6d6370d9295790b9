"""What outputs lose when heads keep only some keys, against loops over single numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_observed_attention import document
from tiny_models import write_checkpoint

from hetero_sglang.calibration import reading
from hetero_sglang.calibration.calibrate import Plan, TopK, measure
from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.observe import Observation, watched
from hetero_sglang.calibration.output_tracker import OutputTracker, Step
from hetero_sglang.cli import main
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import load_profile

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SCALE = 0.4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, recall_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: write_checkpoint(folder / family, family, recall_model) for family in FAMILIES}


def attention(
    seed: int, group: int, length: int, heads: int = 3, dim: int = 8, v_dim: int = 6, hidden: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key, value and o_proj of one decode step, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads * group, 1, dim), (heads, length, dim), (heads, length, v_dim), (hidden, heads * group * v_dim))
    query, key, value, o_proj = (torch.randn(*shape, generator=generator) for shape in shapes)
    return 2 * query, key, value, o_proj


def naive_outputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, o_proj: torch.Tensor, scale: float, kept: np.ndarray
) -> np.ndarray:
    """[H, hidden]: what every KV head adds to the layer's output when it sees just its `kept` [H, L]."""
    q, k, v, o = (t.detach().double().numpy() for t in (query[:, 0], key, value, o_proj))
    heads, v_dim = len(k), v.shape[-1]
    group = len(q) // heads
    added = np.zeros((heads, len(o)))
    for head in range(heads):
        for member in range(group):
            number = head * group + member
            seen = [token for token in range(k.shape[1]) if kept[head, token]]
            powers = [np.exp(scale * float(q[number] @ k[head, token])) for token in seen]
            out = sum(p / sum(powers) * v[head, token] for p, token in zip(powers, seen, strict=True))
            added[head] += o[:, number * v_dim : (number + 1) * v_dim] @ out
    return added


def naive_loss(step: tuple[torch.Tensor, ...], kept: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """[H]: the norm of each head's change as a share of the whole layer's output."""
    whole = naive_outputs(*step, scale, np.ones_like(kept))
    change = naive_outputs(*step, scale, kept) - whole
    return np.linalg.norm(change, axis=1) / np.linalg.norm(whole.sum(0))


def step_of(step: tuple[torch.Tensor, ...], scale: float = SCALE) -> Step:
    query, key, value, o_proj = step
    return Step.of(query, key, value, scale, o_proj)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("share", ["one key", "a third", "all but one"])
def test_losses_follow_the_rule(group: int, share: str) -> None:
    rng = np.random.default_rng(group)
    step = attention(group, group, length=23)
    count = {"one key": 1, "a third": 8, "all but one": 22}[share]
    kept = np.zeros((4, 3, 23), dtype=bool)  # [P, H, L]
    for mask in kept.reshape(-1, 23):
        mask[rng.choice(23, count, replace=False)] = True
    got = step_of(step).loss(torch.from_numpy(kept))
    assert got.shape == (4, 3)
    np.testing.assert_allclose(got, [naive_loss(step, masks) for masks in kept], rtol=2e-4, atol=1e-6)
    assert (got > 1e-6).all()


@pytest.mark.parametrize("group", [1, 2, 4])
def test_nothing_is_lost_when_every_key_is_kept(group: int) -> None:
    step = step_of(attention(9, group, length=40))
    torch.testing.assert_close(step.loss(torch.ones(2, 3, 40, dtype=torch.bool)), torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_half_precision_inputs_are_measured_in_full() -> None:
    step = attention(5, 2, length=30)
    halves = tuple(t.bfloat16() for t in step)
    kept = np.random.default_rng(5).random((3, 30)) < 0.5
    got = step_of(halves).loss(torch.from_numpy(kept)[None])[0]
    np.testing.assert_allclose(got, naive_loss(tuple(t.float() for t in halves), kept), rtol=1e-3)


def naive_set(scores: torch.Tensor, topk: int, length: int) -> np.ndarray:
    """[H, length]: the best of the prompt's keys, its first 4 and last 64, and all that came after it."""
    prompt = scores.shape[1]
    kept = np.zeros((len(scores), length), dtype=bool)
    for head, row in enumerate(scores.tolist()):
        best = sorted(range(prompt), key=lambda token: -row[token])[:topk]
        for token in range(length):
            kept[head, token] = token in best or token < 4 or token >= prompt - 64
    return kept


def kept_share(step: tuple[torch.Tensor, ...], kept: np.ndarray, scale: float = SCALE) -> np.ndarray:
    return np.clip(1 - naive_loss(step, kept, scale), 0, 1)


def worst(steps: list[np.ndarray]) -> np.ndarray:
    """Mean of the lowest tenth of the steps, number by number; of one step at least."""
    count = max(1, int(np.ceil(len(steps) / 10)))
    return np.sort(np.array(steps), axis=0)[:count].mean(axis=0)


@pytest.mark.parametrize(
    ("group", "topk", "prompt", "steps"), [(1, 1, 90, 3), (2, 9, 100, 12), (4, 30, 110, 1), (1, 40, 60, 2)]
)
def test_statistics_equal_those_of_all_steps_kept(group: int, topk: int, prompt: int, steps: int) -> None:
    layers = 2
    generator = torch.Generator().manual_seed(topk)
    first = [torch.rand(3, prompt, generator=generator) for _ in range(layers)]
    scores = [[torch.rand(3, prompt, generator=generator) for _ in range(layers)] for _ in range(steps)]
    seen = [[attention(7 * s + n, group, prompt + 1 + s) for n in range(layers)] for s in range(steps)]
    tracker = OutputTracker(layers, topk)
    for layer in range(layers):
        tracker.add(layer, first[layer].clone(), None)
    for s in range(steps):
        for layer in range(layers):
            tracker.add(layer, scores[s][layer].clone(), step_of(seen[s][layer]))
    found = tracker.finish()

    assert found.overlap.shape == (layers, 3, steps)
    for layer in range(layers):
        own = [
            kept_share(seen[s][layer], naive_set(first[layer], topk, prompt + 1 + s)) for s in range(steps)
        ]  # [steps][H]
        np.testing.assert_allclose(found.overlap[layer], np.transpose(own), atol=2e-5)
        np.testing.assert_allclose(found.stability[layer], worst(own), atol=2e-5)
        for giver in range(3):
            shares = []
            for s in range(steps):
                chosen = naive_set(scores[s][layer], topk, prompt + 1 + s)[giver]
                shares.append(kept_share(seen[s][layer], np.tile(chosen, (3, 1))))
            np.testing.assert_allclose(found.similarity[layer, giver], worst(shares), atol=2e-5)
    assert (found.stability < 0.99).any() == (prompt > 68)  # a shorter prompt is all sinks and recent keys


def looking_at(targets: list[int], length: int) -> Step:
    """Every head sees one key alone; values are 1 there and 0 elsewhere, so that a dropped key loses all."""
    weights, values = torch.full((len(targets), 1, length), 1e-9), torch.zeros(len(targets), length, 1)
    for head, target in enumerate(targets):
        weights[head, 0, target] = 1
        values[head, target] = 1
    projection = torch.eye(len(targets)).view(len(targets), 1, 1, len(targets))
    return Step(weights, values, projection)


def scored(targets: list[int], prompt: int) -> torch.Tensor:
    """Scores [H, prompt] whose best key is each head's target."""
    scores = torch.rand(len(targets), prompt) / 2
    scores[range(len(targets)), targets] = 1
    return scores


@pytest.mark.parametrize(
    ("target", "share"),
    [(0, 1.0), (3, 1.0), (4, 0.0), (35, 0.0), (36, 1.0), (99, 1.0), (100, 1.0), (101, 1.0), (20, 1.0)],
)
def test_sinks_recent_and_generated_keys_are_kept(target: int, share: float) -> None:
    """A prompt of 100 tokens and two generated ones; key 20 is the one that was chosen."""
    tracker = OutputTracker(1, 1)
    tracker.add(0, scored([20], 100), None)
    tracker.add(0, scored([20], 100), looking_at([target], 102))
    assert tracker.finish().stability == pytest.approx(share, abs=1e-5)


def test_similarity_is_that_of_a_head_on_the_other_ones_keys() -> None:
    """Head 0 looks at a sink, which all keep; head 1 at key 20, which only it chooses."""
    tracker = OutputTracker(1, 1)
    for step in (None, looking_at([0, 20], 101)):
        tracker.add(0, scored([10, 20], 100), step)
    share = 1 - 1 / np.sqrt(2)  # head 1 loses all of its half of the output
    np.testing.assert_allclose(tracker.finish().similarity[0], [[1, share], [1, 1]], atol=1e-5)


@pytest.mark.parametrize(("steps", "share"), [(10, 0.0), (11, 0.5), (30, 2 / 3)])
def test_the_worst_tenth_of_the_steps_counts(steps: int, share: float) -> None:
    """One step of them all looks at a key that was not chosen."""
    tracker = OutputTracker(1, 1)
    tracker.add(0, scored([20], 100), None)
    for step in range(steps):
        tracker.add(0, scored([20], 100), looking_at([30 if step == 1 else 20], 101 + step))
    found = tracker.finish()
    assert found.stability == pytest.approx(share, abs=1e-5) and found.similarity == pytest.approx(share, abs=1e-5)
    assert found.overlap[0, 0].tolist() == pytest.approx([1, 0] + [1] * (steps - 2), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_watchers_see_what_the_output_projection_makes_of_a_layers_attention(
    checkpoints: dict[str, Path], family: str
) -> None:
    opened = open_checkpoint(checkpoints[family], "cpu")
    tokens = torch.tensor([document(4, 40).tokens])
    made, steps = [], []

    def watcher(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> None:
        assert layer == len(steps)
        steps.append(Step.of(query[:, -1:], key, value, *rest))

    hooks = [
        layer.self_attn.o_proj.register_forward_hook(lambda module, given, out: made.append(out[0, -1]))
        for layer in opened.model.model.layers
    ]
    with torch.inference_mode(), watched(opened.model, watcher):
        opened.model(tokens)
    for hook in hooks:
        hook.remove()
    assert len(steps) == len(made) == 2
    for step, out in zip(steps, made, strict=True):
        torch.testing.assert_close(step.weights.sum(-1), torch.ones(2, 2))
        found = torch.einsum("hgl,hld,hgdo->o", step.weights, step.values, step.projection)
        torch.testing.assert_close(found, out, atol=1e-4, rtol=1e-3)


def test_a_document_is_measured_as_if_the_whole_sequence_were_seen_at_once(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PREFILL_CHUNK", 17)
    text, topk = document(6, 104), 6
    observation = Observation(8)
    opened = open_checkpoint(checkpoints["llama"], "cpu")
    plan = Plan(4, TopK(count=topk), observation, measure="output")
    found = measure(reading.read(opened, text, plan.tail), plan)

    seen: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode(), watched(opened.model, lambda *given: seen.append(given[1:])):
        opened.model(torch.tensor([text.tokens]))
    for layer, (query, key, value, scale, o_proj) in enumerate(seen):
        first = observation.score(query[:, 92:100], key[:, :100], scale, 100)
        pairs = []
        for s in range(plan.steps):
            length = 101 + s
            step = (query[:, length - 1 : length], key[:, :length], value[:, :length], o_proj)
            own = kept_share(step, naive_set(first, topk, length), scale)
            np.testing.assert_allclose(found.overlap[layer, :, s], own, atol=1e-4)
            now = naive_set(observation.score(step[0], step[1], scale, 100), topk, length)
            pairs.append([kept_share(step, np.tile(now[giver], (2, 1)), scale) for giver in range(2)])
        np.testing.assert_allclose(found.similarity[layer], worst(pairs), atol=1e-4)


FAST = ["--documents", "2", "--length", "300", "400", "--steps", "4", "--device", "cpu", "--quiet"]


def test_the_command_measures_outputs_and_says_so(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    made = {}
    for name in ("keys", "output", "again"):
        options = ["--measure", name.replace("again", "output"), "--out", str(tmp_path / name)]
        assert main(["profile", str(checkpoints["llama"]), *options, *FAST]) == 0
        made[name] = load_profile(tmp_path / name)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "output").read_bytes()
    assert made["keys"].provenance["measure"] == "keys" and made["output"].provenance["measure"] == "output"
    measured = made["output"].measurements
    assert measured.overlap.shape == (2, 2, 4)
    assert np.all(measured.stability <= measured.overlap.min(-1) + 1e-4)  # the worst of four steps, mean of two texts
    assert np.abs(measured.stability - made["keys"].measurements.stability).max() > 0.01
    assert np.all(made["keys"].measurements.similarity.diagonal(0, 1, 2) == 1)  # a set shares all with itself,
    assert np.all(measured.similarity.diagonal(0, 1, 2) < 1)  # and yet is not all that a head looks at


def test_a_measure_that_there_is_not_is_refused_in_one_sentence(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "never.json"
    assert main(["profile", str(checkpoints["llama"]), "--measure", "both", "--out", str(out), *FAST]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["hetero-sglang: `--measure` is 'both'; choose keys or output."] and not out.exists()
    with pytest.raises(HeteroError, match="`--measure`"):
        Plan(measure="values")
