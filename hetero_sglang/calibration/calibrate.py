"""Running a model over documents and measuring how its heads attend (HeteroCache, offline head analysis)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.observe import Observation
from hetero_sglang.calibration.output_tracker import OutputTracker, Step
from hetero_sglang.calibration.reading import STEP_COST, Advance, read
from hetero_sglang.calibration.tracker import DocumentStatistics, Tracker, combine
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.measurements import Measurements

TOPK_CAP = 1024
MEASURES = ("keys", "output")


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
    steps scores are averaged (`Tracker`), and what counts: common keys, or what outputs lose without the others."""

    steps: int = 64
    topk: TopK = TopK()
    observation: Observation = Observation()
    smoothing: int = 16
    measure: str = "keys"

    def __post_init__(self) -> None:
        for option, count in (("--steps", self.steps), ("--smoothing", self.smoothing)):
            if count < 1:
                raise HeteroError(f"`{option}` is {count}; choose at least 1 decode step.")
        if self.measure not in MEASURES:
            raise HeteroError(f"`--measure` is {self.measure!r}; choose {' or '.join(MEASURES)}.")

    def cost(self, documents: Sequence[Document]) -> int:
        """Units that `calibrate` reports to `advance`, in all."""
        return sum(len(d.tokens) + STEP_COST * self.steps for d in documents)


def calibrate(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    plan: Plan,
    advance: Advance,
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
    return combine([
        measure(checkpoint, d, k, plan, advance, moments) for d, k in zip(documents, sizes, strict=True)
    ])  # fmt: skip


def measure(
    checkpoint: Checkpoint,
    document: Document,
    k: int,
    plan: Plan,
    advance: Advance,
    moments: Moments | None = None,
) -> DocumentStatistics:
    """Of the prompt's last queries, then of every decode step."""
    prompt, window, layers = len(document.tokens), plan.observation.window, checkpoint.model.config.num_hidden_layers
    outputs = OutputTracker(layers, k) if plan.measure == "output" else None
    tracker = Tracker(layers, k, plan.smoothing)

    def watcher(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> None:
        length = key.shape[1]
        if moments is not None and length <= prompt:
            moments.watch(layer, query, key)
        if length < prompt:
            return
        scores = plan.observation.score(query[:, -window:], key, scaling, prompt)
        if outputs is None:
            tracker.add(layer, scores)
        else:
            outputs.add(layer, scores, Step.of(query, key, value, scaling, o_proj) if length > prompt else None)

    read(checkpoint, document, watcher, window, plan.steps, advance)
    return (outputs or tracker).finish()
