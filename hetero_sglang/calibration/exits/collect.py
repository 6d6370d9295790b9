"""A model reads windows of text; its states go to a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.exits.states import Batch, States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.calibration.exits.windows import Window
from hetero_sglang.calibration.reading import Advance
from hetero_sglang.errors import HeteroError

_ROWS = 128  # of which logits are held at once


def records(windows: Sequence[Window]) -> int:
    """How many tokens' states these windows give."""
    return sum(len(window.asked) for window in windows)


@torch.inference_mode()
def collect(
    checkpoint: Checkpoint,
    teacher: Teacher,
    windows: Sequence[Window],
    layers: Sequence[int],
    states: States,
    advance: Advance,
) -> None:
    """Reads the windows whose states are not in the file yet; `advance` is told of tokens, read now or before.

    Raises HeteroError where a window does not fit the device and where the model computes no numbers."""
    states.check_room(records(windows))
    held = len(states)
    reached = 0
    for window in windows:
        count = len(window.asked)
        if reached + count > held:
            states.cut(reached)  # what a run that was ended wrote of this window
            states.append(_read(checkpoint, teacher, window, layers))
            held = reached + count
        reached += count
        advance(len(window.tokens))
    states.cut(reached)


def _read(checkpoint: Checkpoint, teacher: Teacher, window: Window, layers: Sequence[int]) -> Batch:
    try:
        tokens, asked = torch.tensor([window.tokens], device=checkpoint.device), window.asked  # [1, L]
        read = checkpoint.model.base_model(tokens, use_cache=False, output_hidden_states=True)
        final = read.last_hidden_state[0, asked]  # [n, H], normed
        states = torch.stack([*(read.hidden_states[layer][0, asked] for layer in layers), final], 1)
        first, divisor = [], []
        for rows in final.split(_ROWS):
            logits = teacher.logits(rows)
            first.append(logits.argmax(-1))
            divisor.append(logits.logsumexp(-1))
    except torch.OutOfMemoryError:
        raise HeteroError(
            f"{len(window.tokens)} tokens do not fit on {checkpoint.device}; choose a smaller `--length`."
        ) from None
    after = torch.tensor([*window.tokens, -1])[1:][asked]
    found = Batch(states, torch.cat(first), torch.cat(divisor), after)
    if not (torch.isfinite(found.divisor).all() and torch.isfinite(found.states).all()):
        raise HeteroError("the model computes no finite numbers on these texts; check its weights.")
    return found
