"""All settings of one training."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.errors import HeteroError

from .schedule import STAGES


@dataclass(frozen=True)
class Settings:
    """Everything but the model's shape and the data's mix."""

    minutes: float = 6.0  # without compilation and evaluation
    steps: int | None = None  # in place of minutes
    stages: str = STAGES
    batch_tokens: int = 65536
    rate: float = 1.5e-3
    warmup: int = 200  # steps
    weight_decay: float = 0.05
    clip: float = 1.0  # norm of the gradient
    embedding_std: float = 0.7
    stop_below: float = 0.3  # answer accuracy after a stage of 1K tokens or more below which to give up
    seed: int = 0
    workers: int = 14
    compile: bool = True  # on a GPU

    def __post_init__(self) -> None:
        if self.minutes <= 0 or (self.steps is not None and self.steps < 1):
            raise HeteroError("Minutes must be above 0, and steps 1 or more.")
        if self.batch_tokens < 32 or self.seed < 0 or self.workers < 0:
            raise HeteroError("Batch tokens must be 32 or more, seed and workers 0 or more.")
