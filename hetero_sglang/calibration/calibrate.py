"""How a model's heads attend at the end of a document (HeteroCache, offline head analysis)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.observe import Observation
from hetero_sglang.calibration.output_tracker import OutputTracker, Step
from hetero_sglang.calibration.reading import Advance, Reading
from hetero_sglang.calibration.runs import index_of
from hetero_sglang.calibration.tracker import DocumentStatistics, Tracker, combine
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.index_plan import IndexPlan
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

    def of(self, prompt: int) -> int:
        """Of a prompt of so many tokens."""
        return self.count if self.count is not None else min(TOPK_CAP, int(self.share * prompt))


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

    @property
    def tail(self) -> int:
        """Last tokens of a text whose queries are measured."""
        return self.observation.window + self.steps

    def sizes(self, document: Document) -> tuple[int, int]:
        """Tokens of the prompt and of a head's set. Raises HeteroError for a text that is too short."""
        length = len(document.tokens)
        if length < self.tail:
            raise HeteroError(
                f"the text {document.source} has {length} tokens, fewer than `--window` {self.observation.window} + "
                f"`--steps` {self.steps}; give longer text."
            )
        prompt = length - self.steps
        k = self.topk.of(prompt)
        if not 1 <= k < prompt:
            raise HeteroError(
                f"the text {document.source} has {length} tokens, too few for sets of the top {max(k, 1)}; "
                "give longer text or a smaller `--topk`."
            )
        return prompt, k


def calibrate(
    checkpoint: Checkpoint, documents: Sequence[Document], plan: Plan, index: IndexOptions, advance: Advance
) -> tuple[Measurements, IndexPlan]:
    """Measurements of all documents and the key index that they give; each is read once, `advance` told of its tokens.

    Raises HeteroError for documents too short, or too long for the device."""
    for document in documents:
        plan.sizes(document)
    statistics: list[DocumentStatistics] = []
    found = index_of(
        checkpoint, documents, index, advance, plan.tail, lambda reading: statistics.append(measure(reading, plan))
    )
    return combine(statistics), found


@torch.inference_mode()
def measure(reading: Reading, plan: Plan) -> DocumentStatistics:
    """The text's last `plan.steps` tokens stand for decode steps, what precedes them for the prompt."""
    (prompt, k), seen, layers = plan.sizes(reading.document), plan.observation, len(reading.kept)
    outputs = OutputTracker(layers, k) if plan.measure == "output" else None
    tracker = Tracker(layers, k, plan.smoothing)
    for layer, attention in enumerate(reading):
        for length in range(prompt, reading.length + 1):
            query, key = attention.upto(length, seen.window if length == prompt else 1)
            scores = seen.score(query, key, attention.scaling, prompt)
            if outputs is None:
                tracker.add(layer, scores)
            else:
                value = attention.value[:, :length]
                step = Step.of(query, key, value, attention.scaling, attention.o_proj) if length > prompt else None
                outputs.add(layer, scores, step)
    return (outputs or tracker).finish()
