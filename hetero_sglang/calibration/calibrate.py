"""Running a model over documents and measuring how its heads attend (HeteroCache, offline head analysis)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.kv_buffer import host_cache
from hetero_sglang.calibration.observe import Observation, watched
from hetero_sglang.calibration.output_tracker import OutputTracker, Step
from hetero_sglang.calibration.tracker import DocumentStatistics, Tracker, combine
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.measurements import Measurements

if TYPE_CHECKING:
    from hetero_sglang.calibration.moments import Moments

PREFILL_CHUNK = 1024
TOPK_CAP = 1024
MEASURES = ("keys", "output")
# A decode step costs roughly as much as this many prefill tokens; only the time left depends on it.
STEP_COST = 64


@dataclass(frozen=True)
class TopK:
    """Keys in a head's set: `count`, else `share` of the prompt but at most TOPK_CAP."""

    count: int | None = None
    share: float = 0.2

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise HeteroError(f"`--topk` is {self.count}; choose at least 1 key.")
        if not 0.0 < self.share < 1.0:
            raise HeteroError(f"`--topk-share` is {self.share:g}; choose a share between 0 and 1, both excluded.")

    def of(self, document: Document) -> int:
        """Raises HeteroError when the document is too short for its sets to differ."""
        length = len(document.tokens)
        k = self.count if self.count is not None else min(TOPK_CAP, int(self.share * length))
        if k < 1 or k >= length:
            raise HeteroError(
                f"the text {document.source} has {length} tokens, too few for sets of the top {max(k, 1)}; "
                "give longer text or a smaller `--topk`."
            )
        return k


@dataclass(frozen=True)
class Plan:
    """What is measured: decode steps per document, set sizes, how attention becomes a score, over how many
    steps scores are averaged (`Tracker`), and what counts: common keys, or what outputs lose without the others.
    """

    steps: int = 64
    topk: TopK = TopK()
    observation: Observation = Observation()
    smoothing: int = 16
    measure: str = "keys"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise HeteroError(f"`--steps` is {self.steps}; choose at least 1 decode step.")
        if self.smoothing < 1:
            raise HeteroError(f"`--smoothing` is {self.smoothing}; choose at least 1 decode step.")
        if self.measure not in MEASURES:
            raise HeteroError(f"`--measure` is {self.measure!r}; choose {' or '.join(MEASURES)}.")

    def cost(self, documents: Sequence[Document]) -> int:
        """Units that `calibrate` reports to `advance`, in all."""
        return sum(len(d.tokens) + STEP_COST * self.steps for d in documents)


def calibrate(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    plan: Plan,
    advance: Callable[[int], object],
    moments: Moments | None = None,
) -> Measurements:
    """Measures every document and combines them; adds what its prefill shows to `moments`.

    Raises HeteroError for documents too short or too long."""
    sizes = [plan.topk.of(document) for document in documents]
    window = plan.observation.window
    for document in documents:
        if len(document.tokens) < window:
            raise HeteroError(
                f"the text {document.source} has {len(document.tokens)} tokens, fewer than `--window` "
                f"{window}; give longer text."
            )
    try:
        return combine([
            measure(checkpoint, d, k, plan, advance, moments) for d, k in zip(documents, sizes, strict=True)
        ])  # fmt: skip
    except torch.OutOfMemoryError:
        longest = max(len(d.tokens) for d in documents)
        raise HeteroError(f"{longest} tokens do not fit on {checkpoint.device}; choose a smaller `--length`.") from None


@torch.inference_mode()
def measure(
    checkpoint: Checkpoint,
    document: Document,
    k: int,
    plan: Plan,
    advance: Callable[[int], object],
    moments: Moments | None = None,
) -> DocumentStatistics:
    """Prefills in chunks, then decodes greedily."""
    model, prompt, window = checkpoint.model, len(document.tokens), plan.observation.window
    layers = model.config.num_hidden_layers
    outputs = OutputTracker(layers, k) if plan.measure == "output" else None
    tracker = Tracker(layers, k, plan.smoothing)
    cache = host_cache(model.config.num_hidden_layers, prompt + plan.steps)
    tokens = torch.tensor([document.tokens], device=checkpoint.device)  # [1, L]
    forbidden = stop_tokens(checkpoint)
    observing = False

    def watcher(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> None:
        if moments is not None and key.shape[1] <= prompt:
            moments.add(layer, query, key[:, -query.shape[1] :])
        if not observing:
            return
        scores = plan.observation.score(query[:, -window:], key, scaling, prompt)
        if outputs is None:
            tracker.add(layer, scores)
        else:
            decodes = key.shape[1] > prompt
            outputs.add(layer, scores, Step.of(query, key, value, scaling, o_proj) if decodes else None)

    with watched(model, watcher):
        bounds = chunk_bounds(prompt, window)
        for start, stop in zip(bounds, bounds[1:], strict=False):
            observing = stop == prompt
            out = model(tokens[:, start:stop], past_key_values=cache, use_cache=True, logits_to_keep=1)
            advance(stop - start)
        for _ in range(plan.steps):
            logits = out.logits[0, -1].float()
            logits[forbidden] = -torch.inf
            out = model(logits.argmax().view(1, 1), past_key_values=cache, use_cache=True)
            advance(STEP_COST)
    if not torch.isfinite(out.logits).all():
        raise HeteroError(f"the model computes no finite numbers on {document.source}; check its weights.")
    return (outputs or tracker).finish()


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
