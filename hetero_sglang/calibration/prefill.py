"""Running calibration documents through a model for their moments alone: nothing is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hetero_sglang.calibration.calibrate import chunk_bounds
from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.kv_buffer import host_cache
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.observe import watched
from hetero_sglang.errors import HeteroError


@torch.inference_mode()
def prefill(checkpoint: Checkpoint, documents: Sequence[Document], advance: Callable[[int], object]) -> Moments:
    """Moments of all documents; `advance` is told of tokens. Raises HeteroError where one does not fit the device."""
    layers = checkpoint.model.config.num_hidden_layers
    moments = Moments(layers)

    def watcher(layer: int, query: torch.Tensor, key: torch.Tensor, *rest: object) -> None:
        moments.add(layer, query, key[:, -query.shape[1] :])

    for document in documents:
        length = len(document.tokens)
        cache = host_cache(layers, length)
        tokens = torch.tensor([document.tokens], device=checkpoint.device)  # [1, L]
        bounds = chunk_bounds(length, 1)
        try:
            with watched(checkpoint.model, watcher):
                for start, stop in zip(bounds, bounds[1:], strict=False):
                    out = checkpoint.model(
                        tokens[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1
                    )
                    advance(stop - start)
        except torch.OutOfMemoryError:
            raise HeteroError(
                f"{length} tokens do not fit on {checkpoint.device}; choose a smaller `--length`."
            ) from None
        if not torch.isfinite(out.logits).all():
            raise HeteroError(f"the model computes no finite numbers on {document.source}; check its weights.")
    return moments
