"""What branches learn from is the model's own last layer, in every family of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import NAMES, write_checkpoint

from hetero_sglang.calibration.checkpoint import open_checkpoint
from hetero_sglang.calibration.exits.collect import collect
from hetero_sglang.calibration.exits.states import States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.calibration.exits.windows import SKIPPED, Window
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch

TOKENS = tuple(torch.randint(2, 2900, (90,), generator=torch.Generator().manual_seed(1)).tolist())
WHOLE = Window(TOKENS, (True,) * len(TOKENS))


@pytest.mark.parametrize("family", sorted(NAMES))
def test_the_states_and_the_norm_and_the_head_are_the_models(family: str, tmp_path: Path, recall_model: Path) -> None:
    """A branch with the model's own norm and head gives, of the last layer's states, the model's logits."""
    model = write_checkpoint(tmp_path / family, family, recall_model, num_hidden_layers=3)
    checkpoint = open_checkpoint(model, "cpu")
    teacher = Teacher.of(checkpoint)
    seen: dict[str, torch.Tensor] = {}
    base = checkpoint.model.base_model
    watched = {"behind 2": base.layers[2], "behind all": base.norm}
    hooks = [
        each.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, each in watched.items()
    ]
    with torch.no_grad():
        logits = checkpoint.model(torch.tensor([TOKENS])).logits[0, SKIPPED:]
    for hook in hooks:
        hook.remove()

    own = Branch(2, len(teacher.head), teacher.eps, teacher.norm, head=teacher.head.float() * teacher.scale)
    torch.testing.assert_close(own.scores(seen["behind all"][0, SKIPPED:], teacher.logits), logits.float())

    with States(tmp_path / "states", 2, 64, checkpoint.model.dtype) as states:
        collect(checkpoint, teacher, [WHOLE], [2], states, lambda tokens: None)
        batch = states.rows(list(range(len(states))), checkpoint.device)
    torch.testing.assert_close(batch.states[:, 0], seen["behind 2"][0, SKIPPED:])
    torch.testing.assert_close(teacher.logits(batch.states[:, 1]), logits.float())
    assert torch.equal(batch.first, logits.argmax(-1))
    torch.testing.assert_close(batch.divisor, logits.float().logsumexp(-1))
    assert batch.next.tolist() == [*TOKENS[SKIPPED + 1 :], -1]


def test_states_are_those_behind_which_something_is_said(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny, "cpu")
    teacher, said = Teacher.of(checkpoint), tuple(at % 7 == 3 for at in range(len(TOKENS)))
    read = []
    for number, window in enumerate((WHOLE, Window(TOKENS, said))):
        with States(tmp_path / f"{number}", 2, 64, torch.float32) as states:
            collect(checkpoint, teacher, [window], [2], states, lambda tokens: None)
            read.append(states.rows(list(range(len(states))), checkpoint.device))
    places = [at - 1 - SKIPPED for at in range(SKIPPED + 1, len(TOKENS)) if said[at]]
    for name, found in vars(read[1]).items():
        assert torch.equal(found, getattr(read[0], name)[places])
    assert read[1].next.tolist() == [TOKENS[at] for at in range(SKIPPED + 1, len(TOKENS)) if said[at]]


def test_a_model_that_computes_no_numbers_is_refused(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny, "cpu")
    with torch.no_grad():
        checkpoint.model.base_model.norm.weight.fill_(float("nan"))
    teacher = Teacher.of(checkpoint)
    with (
        States(tmp_path / "states", 2, 64, torch.float32) as states,
        pytest.raises(HeteroError, match="check its weig"),
    ):
        collect(checkpoint, teacher, [WHOLE], [2], states, lambda tokens: None)
