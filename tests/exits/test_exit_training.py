"""Branches come to say what the last layer says, and a run that was ended goes on to the same branches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hetero_sglang.calibration.exits.initial import frequent_words, initial, log_shares
from hetero_sglang.calibration.exits.measured import Part, measured
from hetero_sglang.calibration.exits.options import Options
from hetero_sglang.calibration.exits.states import Batch, States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.calibration.exits.training import Training
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch

HIDDEN, VOCABULARY, COUNT, RANK = 12, 40, 600, 3
ALL = torch.arange(VOCABULARY)


def options(kind: str, **other: object) -> Options:
    fields = {
        "layers": (2, 4), "kind": kind, "rank": RANK, "words": 15, "confidence": "probability", "steps": 30,
        "batch": 64, "rate": 0.01, "seed": 0, "length": 64, "tokens": 1024,
    }  # fmt: skip
    return Options(**fields | other)  # type: ignore[arg-type]


@pytest.fixture
def teacher() -> Teacher:
    rng = torch.Generator().manual_seed(0)
    norm = 1 + 0.2 * torch.randn(HIDDEN, generator=rng)
    return Teacher(torch.randn(VOCABULARY, HIDDEN, generator=rng), 0.7, norm, 1e-5)


@pytest.fixture
def states(teacher: Teacher, tmp_path: Path) -> States:
    """The last layer adds to a normed state what is linear in it, of rank 3; behind layer 4 with noise."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, HIDDEN, generator=rng) * 5
    added = torch.randn(HIDDEN, RANK, generator=rng) @ torch.randn(RANK, HIDDEN, generator=rng)
    normed = F.rms_norm(x, (HIDDEN,), teacher.norm, teacher.eps)
    last = normed + normed @ added
    noisy = x + 2 * torch.randn(COUNT, HIDDEN, generator=rng)
    logits = teacher.logits(last)
    with States(tmp_path / "states", 3, HIDDEN, torch.float32) as found:
        after = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]
        found.append(Batch(torch.stack([x, noisy, last], 1), logits.argmax(-1), logits.logsumexp(-1), after))
        yield found


def agreement(training: Training, teacher: Teacher, states: States) -> torch.Tensor:
    found = measured(training.branches, teacher, states, Part(0, (COUNT,)), "probability", 5)
    return torch.from_numpy(found.agrees).float().mean(1)


@pytest.mark.parametrize("kind", ["adapter", "head"])
def test_what_is_linear_is_right_from_the_start(kind: str, teacher: Teacher, states: States) -> None:
    training = Training(initial(options(kind), teacher, states, COUNT, ALL), teacher, options(kind), ALL)
    assert agreement(training, teacher, states)[0] > 0.97


def untaught(layer: int, kind: str, teacher: Teacher, words: torch.Tensor) -> Branch:
    """The model's own norm and head, as if no layer were left."""
    if kind == "adapter":
        down = torch.randn(RANK, HIDDEN, generator=torch.Generator().manual_seed(2))
        return Branch(layer, VOCABULARY, teacher.eps, teacher.norm, down=down, up=torch.zeros(HIDDEN, RANK))
    head = teacher.head[words] * teacher.scale
    if kind == "head":
        return Branch(layer, VOCABULARY, teacher.eps, teacher.norm, head=head)
    rest = torch.full((VOCABULARY,), -math.log(VOCABULARY - len(words)))
    head = torch.cat([head, torch.zeros(1, HIDDEN)])
    return Branch(layer, VOCABULARY, teacher.eps, teacher.norm, head=head, tokens=words, rest=rest)


@pytest.mark.parametrize("kind", ["adapter", "head", "frequent"])
def test_training_makes_branches_agree_more(kind: str, teacher: Teacher, states: States) -> None:
    words = ALL if kind != "frequent" else frequent_words(torch.bincount(states.first_choices(COUNT), minlength=40), 15)
    asked = options(kind, steps=300)
    training = Training([untaught(layer, kind, teacher, words) for layer in (2, 4)], teacher, asked, words)
    before = agreement(training, teacher, states)
    losses: list[float] = []
    training.run(states, COUNT, losses.append)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert (agreement(training, teacher, states) > before + 0.1).all()
    assert [branch.kind for branch in training.branches] == [kind] * 2


def test_a_branch_is_to_say_how_likely_words_are_that_it_does_not_know(teacher: Teacher, states: States) -> None:
    [batch] = states.chunks(0, COUNT, COUNT, torch.device("cpu"))
    share = teacher.logits(batch.states[:, -1]).softmax(-1)
    few = Training(
        initial(options("frequent"), teacher, states, COUNT, ALL[:15]), teacher, options("frequent"), ALL[:15]
    )
    target = few._target(share[:, :15])
    torch.testing.assert_close(target, torch.cat([share[:, :15], share[:, 15:].sum(-1, keepdim=True)], 1))
    every = Training(initial(options("head"), teacher, states, COUNT, ALL), teacher, options("head"), ALL)
    torch.testing.assert_close(every._target(share), share)


def test_words_that_a_branch_does_not_know_share_what_the_teacher_says_of_them(
    teacher: Teacher, states: States
) -> None:
    [batch] = states.chunks(0, COUNT, COUNT, torch.device("cpu"))
    share = teacher.logits(batch.states[:, -1]).softmax(-1).mean(0)[15:]
    rest = log_shares(teacher, states, COUNT, ALL[:15])
    torch.testing.assert_close(rest[15:].exp(), share / share.sum())
    assert not rest[:15].any()


def test_loss_is_of_the_text_that_comes(teacher: Teacher, states: States) -> None:
    """A frequent branch has one too, and learns to have less of it."""
    words = frequent_words(torch.bincount(states.first_choices(COUNT), minlength=40), 15)
    asked = options("frequent", steps=300)
    training = Training(initial(asked, teacher, states, COUNT, words), teacher, asked, words)
    before = measured(training.branches, teacher, states, Part(0, (COUNT,)), "probability", 5)
    training.run(states, COUNT)
    after = measured(training.branches, teacher, states, Part(0, (COUNT,)), "probability", 5)
    [batch] = states.chunks(0, COUNT, COUNT, torch.device("cpu"))
    full = F.cross_entropy(teacher.logits(batch.states[:, -1]), batch.next)
    mine = F.cross_entropy(training.branches[0].logits(batch.states[:, 0], teacher.logits), batch.next)
    assert after.loss([1e-9, 1.0]) == pytest.approx(float(mine - full), abs=1e-4)
    assert after.loss([1e-9, 1.0]) < before.loss([1e-9, 1.0]) and after.loss([1.0, 1.0]) == 0


def test_the_most_frequent_words_come_in_their_order() -> None:
    assert frequent_words(torch.tensor([5, 0, 7, 5, 9, 5]), 4).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("kind", ["adapter", "frequent"])
@pytest.mark.parametrize("ended", [1, 7, 29])
def test_a_run_that_was_ended_goes_on_to_the_same_branches(
    kind: str, ended: int, teacher: Teacher, states: States, tmp_path: Path
) -> None:
    """Ended at any step, after what it last kept."""
    asked, kept = options(kind), tmp_path / "kept.pt"
    words = ALL if kind == "adapter" else ALL[:15]

    def fresh() -> Training:
        return Training(initial(asked, teacher, states, COUNT, words), teacher, asked, words)

    undisturbed = fresh()
    undisturbed.run(states, COUNT)
    first = fresh()

    def stop(loss: float) -> None:
        if first.step == ended:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(states, COUNT, stop, kept, save_seconds=0.0)
    second = fresh()
    second.load(kept)
    assert 0 < second.step <= ended
    second.run(states, COUNT)
    for one, other in zip(undisturbed.branches, second.branches, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_numbers_that_training_lost_are_refused(teacher: Teacher, states: States) -> None:
    asked = options("head")
    training = Training(initial(asked, teacher, states, COUNT, ALL), teacher, asked, ALL)
    with torch.no_grad():
        training._parameters[0][0] = float("inf")
    with pytest.raises(HeteroError, match="not finite"):
        _ = training.branches
