"""Branches before training: the final norm, and a linear guess at the last layer's states (least squares)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hetero_sglang.calibration.exits.options import Options
from hetero_sglang.calibration.exits.states import States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.exits.branch import Branch

_FITTED = 16384  # tokens, at most
_ASKED = 2048  # tokens, at most, for what words share that a branch does not know
_CHUNK = 1024
_ROWS = 128  # of which logits of all words are held at once
_RIDGE = 0.01  # of the mean square of a normed state's dimension


def frequent_words(counts: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` words with the highest counts [V], those of lower number first among equals: [V'] int64, ascending."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def initial(options: Options, teacher: Teacher, states: States, count: int, words: torch.Tensor) -> list[Branch]:
    """A branch for each of `options.layers`, from the first `count` records; float32, on the teacher's device.

    With D the least-squares guess from a normed state h at what the last layer adds to it, a head of its own is
    W (I + D)^T, W the model's; an adapter is the best of its rank for D (reduced-rank regression)."""
    vocabulary, own = len(teacher.head), options.kind == "frequent"
    rest = log_shares(teacher, states, count, words) if own else None
    rows = teacher.head if rest is None else torch.cat([teacher.head[words], _mean_row(teacher.head, rest, words)])
    branches = []
    for number, (moments, guess) in enumerate(_guesses(len(options.layers), teacher, states, count)):
        layer, norm = options.layers[number], teacher.norm.clone()
        if options.kind == "adapter":
            fitted = guess.T @ moments @ guess  # [H, H], second moments of what D adds
            main = torch.linalg.eigh(fitted).eigenvectors[:, -options.rank :]  # [H, r]
            down, up = (guess @ main).T.contiguous(), main.contiguous()
            branches.append(Branch(layer, vocabulary, teacher.eps, norm, down=down.float(), up=up.float()))
            continue
        wide = rows.float() * teacher.scale
        head = wide + wide @ guess.T.float()
        tokens = words.clone() if own else None
        branches.append(Branch(layer, vocabulary, teacher.eps, norm, head=head, tokens=tokens, rest=rest))
    return branches


def log_shares(teacher: Teacher, states: States, count: int, words: torch.Tensor) -> torch.Tensor:
    """What the teacher says on average of each word among those that are not in `words`, as a logarithm; 0 for those
    that are: [V] float32."""
    device, vocabulary = teacher.head.device, len(teacher.head)
    total = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    every = max(1, count // _ASKED)
    for at in range(0, count, _ROWS * every):
        batch = states.rows(list(range(at, min(at + _ROWS * every, count), every)), device)
        total += (teacher.logits(batch.states[:, -1]) - batch.divisor[:, None]).exp().sum(0)
    total[words] = 0.0
    shares = (total / total.sum()).clamp(min=torch.finfo(torch.float32).tiny).log()
    shares[words] = 0.0
    return shares.float()


def _mean_row(head: torch.Tensor, rest: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """[1, H] of a head's rows [V, H]: the mean of those that are not in `words`, by their shares."""
    weights = rest.exp()  # [V]
    weights[words] = 0.0
    return (weights.to(head.dtype) @ head)[None]


def _guesses(branches: int, teacher: Teacher, states: States, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each branch the second moments [H, H] of normed states h, and D [H, H] with last - h = h D about; float64."""
    device, hidden = teacher.head.device, teacher.head.shape[1]
    square = torch.zeros(branches, hidden, hidden, dtype=torch.float64, device=device)
    cross = torch.zeros_like(square)
    every = max(1, count // _FITTED)
    for at in range(0, count, _CHUNK * every):
        batch = states.rows(list(range(at, min(at + _CHUNK * every, count), every)), device)
        last = batch.states[:, -1].float()  # [n, H]
        for number in range(branches):
            h = F.rms_norm(batch.states[:, number].float(), (hidden,), teacher.norm, teacher.eps)
            square[number] += h.T @ h
            cross[number] += h.T @ (last - h)
    found = []
    for moments, missing in zip(square, cross, strict=True):
        ridge = _RIDGE * moments.diagonal().mean()
        found.append((moments, torch.linalg.solve(moments + ridge * torch.eye(hidden).to(moments), missing)))
    return found
