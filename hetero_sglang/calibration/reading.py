"""A model reads a document: prefill in chunks, then greedy decode steps, its attention watched."""

from collections.abc import Callable
from itertools import pairwise

import torch
from transformers.cache_utils import Cache

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.kv_buffer import HostLayer
from hetero_sglang.calibration.observe import Watcher, watched
from hetero_sglang.errors import HeteroError

PREFILL_CHUNK = 1024
# A decode step costs roughly as much as this many prefill tokens; only the time left depends on it.
STEP_COST = 64
Advance = Callable[[int], object]


@torch.inference_mode()
def read(
    checkpoint: Checkpoint,
    document: Document,
    watcher: Watcher,
    window: int = 1,
    steps: int = 0,
    advance: Advance = lambda units: None,
) -> None:
    """Shows `watcher` every layer at every chunk and step; the prompt's last `window` queries come in one chunk.

    `advance` is told of prefilled tokens and of STEP_COST a step. Raises HeteroError where the text does not fit the
    device and where the model computes no numbers."""
    model, length = checkpoint.model, len(document.tokens)
    cache = Cache(layers=[HostLayer(length + steps) for _ in range(model.config.num_hidden_layers)])
    tokens = torch.tensor([document.tokens], device=checkpoint.device)  # [1, L]
    forbidden = stop_tokens(checkpoint)
    try:
        with watched(model, watcher):
            for start, stop in pairwise(chunk_bounds(length, window)):
                out = model(tokens[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
                advance(stop - start)
            for _ in range(steps):
                logits = out.logits[0, -1].float()
                logits[forbidden] = -torch.inf
                out = model(logits.argmax().view(1, 1), past_key_values=cache, use_cache=True)
                advance(STEP_COST)
    except torch.OutOfMemoryError:
        raise HeteroError(f"{length} tokens do not fit on {checkpoint.device}; choose a smaller `--length`.") from None
    if not torch.isfinite(out.logits).all():
        raise HeteroError(f"the model computes no finite numbers on {document.source}; check its weights.")


def chunk_bounds(length: int, window: int) -> list[int]:
    """Prefill chunk boundaries 0..length; the last chunk holds the whole observation window."""
    bounds = list(range(0, length, PREFILL_CHUNK))
    while bounds[-1] > length - window:
        bounds.pop()
    return [*bounds, length]


def stop_tokens(checkpoint: Checkpoint) -> list[int]:
    """Tokens never generated, so that every document decodes the same number of steps."""
    stops = checkpoint.model.generation_config.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    own = checkpoint.tokenizer.eos_token_id
    return stops if own is None else [*stops, own]
