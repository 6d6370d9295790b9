"""Where calibration text comes from."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.calibration.checkpoint import Checkpoint, Shape
from hetero_sglang.calibration.documents import Document, built_in, from_file
from hetero_sglang.errors import HeteroError

DEFAULT_LENGTHS = (2048, 4096)


@dataclass(frozen=True)
class Source:
    """`files`, else `count` built-in documents of consecutive seeds; lengths are in tokens."""

    files: tuple[str, ...] = ()
    lengths: tuple[int, ...] | None = None
    count: int = 8
    seed: int = 0

    def documents(self, checkpoint: Checkpoint, shape: Shape, steps: int) -> list[Document]:
        """Raises HeteroError for unusable files and for lengths beyond the model's context."""
        room = shape.max_length - steps
        wanted = self.lengths or tuple(sorted({min(n, room) for n in DEFAULT_LENGTHS}))
        for length in wanted:
            if not 0 < length <= room:
                raise HeteroError(
                    f"`--length` {length} with {steps} decode steps does not fit this model; choose "
                    f"between 1 and {room} tokens."
                )
        encode, start = checkpoint.encode, checkpoint.start
        if self.files:
            return [d for path in self.files for d in from_file(path, list(wanted), encode, start)]
        if self.count < 1:
            raise HeteroError(f"`--documents` is {self.count}; choose at least 1.")
        return [built_in(self.seed + i, wanted[i % len(wanted)], encode, start) for i in range(self.count)]
