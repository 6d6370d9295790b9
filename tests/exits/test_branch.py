"""A branch gives the logits that its norm, adapter and head say, in the model's words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exits_builders import HIDDEN, VOCABULARY, branch

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.confidence import MEASURES, measure

KINDS = [("adapter", 3), ("head", VOCABULARY), ("frequent", 5)]
HEAD = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
X = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(8))


def model_head(hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ HEAD.to(hidden.dtype).T


def expected(of: Branch) -> torch.Tensor:
    """In float64, from the definition."""
    wide = X.double()
    h = wide / (wide.pow(2).mean(-1, keepdim=True) + of.eps).sqrt() * of.norm.double()
    if of.down is not None and of.up is not None:
        return (h + h @ of.down.double().T @ of.up.double().T) @ HEAD.T
    assert of.head is not None
    mine = h @ of.head.double().T
    if of.tokens is None:
        return mine
    assert of.rest is not None
    known = of.tokens.tolist()
    words = [mine[:, known.index(w)] if w in known else mine[:, -1] + of.rest[w].double() for w in range(VOCABULARY)]
    return torch.stack(words, 1)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_logits_are_those_of_the_definition(kind: str, size: int) -> None:
    of = branch(2, kind, size)
    assert (of.kind, of.size, of.hidden_size) == (kind, size, HIDDEN)
    logits = of.logits(X, model_head)
    assert logits.dtype == torch.float32 and logits.shape == (len(X), VOCABULARY)
    torch.testing.assert_close(logits.double(), expected(of), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("confidence", sorted(MEASURES))
def test_the_first_choice_is_that_of_its_logits(kind: str, size: int, confidence: str) -> None:
    of = branch(2, kind, size)
    logits = of.logits(X, model_head)
    said, sure = of.ask(X, model_head, confidence)
    assert torch.equal(said.argmax(-1), logits.argmax(-1)) and torch.equal(said, logits)
    torch.testing.assert_close(sure, measure(confidence, logits))


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_states_and_matrices_in_half_precision(kind: str, size: int) -> None:
    of = branch(2, kind, size).to("cpu", torch.bfloat16)
    assert of.norm.dtype == torch.float32
    assert {tensor.dtype for name, tensor in of.tensors().items() if name in ("down", "up", "head")} == {torch.bfloat16}
    x = X.bfloat16()
    assert of.hidden(x).dtype == torch.bfloat16
    near = of.logits(x, model_head)
    far = of.to("cpu", torch.float32).logits(x.float(), model_head)
    torch.testing.assert_close(near, far, rtol=0.05, atol=0.25)


def test_the_norm_is_taken_in_float32() -> None:
    of = branch(2, "head", VOCABULARY)
    x = (X * 3e4).clamp(-6e4, 6e4).half()  # its squares are beyond float16
    assert of.hidden(x).isfinite().all()


NAN = torch.tensor([[float("nan")] * HIDDEN] * 5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head": None, "tokens": None}, "either `down` and `up` or a `head`"),
        ({"down": torch.ones(1, HIDDEN), "up": torch.ones(HIDDEN, 1)}, "either `down` and `up` or a `head`"),
        ({"down": torch.ones(1, HIDDEN)}, "either `down` and `up` or a `head`"),
        ({"head": None, "down": torch.ones(1, HIDDEN), "up": torch.ones(HIDDEN, 1)}, "and a `head`, or none"),
        ({"tokens": None}, "both `tokens` and `rest`"),
        ({"rest": None}, "both `tokens` and `rest`"),
        ({"tokens": None, "rest": None}, "number of words is 6; it must lie between 12 and 12"),
        ({"rest": torch.zeros(VOCABULARY - 1)}, r"`rest` has shape \[11\]; it must be \[12\]"),
        ({"tokens": torch.arange(12)}, "number of words is 12; it must lie between 2 and 11"),
        ({"tokens": torch.tensor([0, 1, 2, 3])}, r"`head` has shape \[6, 8\]; it must be \[5, 8\]"),
        ({"tokens": torch.tensor([0, 1, 2, 3, 3])}, "ascending"),
        ({"tokens": torch.tensor([0, 1, 2, 3, VOCABULARY])}, "from 0 to 11"),
        ({"tokens": torch.tensor([-1, 1, 2, 3, 4])}, "from 0 to 11"),
        ({"tokens": torch.arange(5, dtype=torch.int32)}, "it must be int64"),
        ({"head": torch.ones(6, HIDDEN + 1)}, r"`head` has shape \[6, 9\]"),
        ({"head": NAN}, "`head` holds a number that is not finite"),
        ({"norm": NAN[0]}, "`norm` holds a number that is not finite"),
        ({"norm": torch.ones(HIDDEN, dtype=torch.int64)}, "must be floating point"),
        ({"norm": torch.ones(HIDDEN, 1)}, "of 2 dimensions"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 0.0}, "eps is 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(HeteroError, match=said):
        replace(branch(2, "frequent", 5), **changed)
