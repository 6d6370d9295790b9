"""What a step's probes and choices write and read between their launches; one for all layers, at fixed addresses."""

from __future__ import annotations

import torch

from hetero_sglang.ops.reference.choose import BINS

TILE = 1024  # tokens, runs or places that a program looks at together
_PROGRAMS = 264  # to keep every processor busy
_MOST_SPLITS = 64


class Workspace:
    """For `units` (request, compressed head) pairs of up to `context` tokens, of which `most` runs may come at once.

    A unit's work is cut into as many equal splits as its step has room for; their sizes follow from lengths on the
    device.
    """

    def __init__(
        self, batch: int, heads: int, group: int, context: int, run: int, most: int, device: torch.device | str
    ) -> None:
        self.heads, self.group, self.context, self.run, self.room = heads, group, context, run, most
        units = batch * heads
        self.tiles = -(-context // TILE)  # a split is some tiles

        def make(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        splits = _MOST_SPLITS
        self.most = make(1)  # runs that may come to a head in a step, at most `room`
        self.most.fill_(most)
        self.logits = make(units, group, context, dtype=torch.float32)
        self.top = make(units, splits, group, dtype=torch.float32)
        self.total = make(units, splits, group, dtype=torch.float32)
        self.scores = make(units, -(-context // run), dtype=torch.float32)
        self.wanted = make(units, BINS)  # runs by the bin of their score
        self.idle = make(units, BINS)  # unwanted places by the bin of their last use
        self.hits = make(units)  # wanted places
        self.missing = make(units, splits, most)  # runs that are wanted and not held
        self.lacking = make(units, splits)  # how many
        self.old = make(units, splits, most)  # places that are given away: bins below the edge
        self.olds = make(units, splits)
        self.level = make(units, splits, most)  # and of the edge's bin
        self.levels = make(units, splits)
        self.comes = make(units)  # runs that come
        self.counted = make(2, dtype=torch.int64)  # runs that came, and that were late, since the start

    def splits(self, units: int) -> int:
        """Splits of a unit in a step of so many units; a power of two."""
        wanted = max(1, min(_MOST_SPLITS, self.tiles, _PROGRAMS // max(1, units)))
        return 1 << (wanted.bit_length() - 1)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values() if isinstance(t, torch.Tensor))
