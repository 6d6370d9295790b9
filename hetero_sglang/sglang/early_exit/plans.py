"""How attention of a pass's part is prepared, outside its graph and in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from hetero_sglang.cache.lanes import Mark, mark
from hetero_sglang.sglang.backend import HeteroAttnBackend
from hetero_sglang.sglang.early_exit.turn import Turn


class Plan(ABC):
    """How attention of a part is prepared."""

    backend: Any  # that attends

    @abstractmethod
    def outside(self, batch: Any, late: Sequence[Turn | None]) -> None:
        """Before a part is recorded or replayed, with these turns before the step's own; None: padding."""

    @abstractmethod
    def inside(self, batch: Any, late: int, width: int, begins: bool) -> None:
        """Recorded with it; `begins`: it is the first of a step."""

    def after(self) -> None:  # noqa: B027
        """Recorded behind its layers."""


class DensePlan(Plan):
    """A backend of SGLang's own: another than the one that its graphs of all layers plan for."""

    def __init__(self, backend: Any, most: int) -> None:
        """`most`: rows of a part."""
        self.backend, self.made = backend, dict[int, Any]()
        self.read = dict[int, Mark]()  # what was planned for so many rows
        backend.init_cuda_graph_state(most, most)

    def outside(self, batch: Any, late: Sequence[Turn | None]) -> None:
        size = batch.batch_size
        if size in self.read:  # FlashInfer plans in one buffer of the host, from which the device copies
            self.read[size].wait()
        self.backend.init_forward_metadata_out_graph(batch, in_capture=size not in self.made)
        self.read[size] = mark(batch.seq_lens.device)
        if size not in self.made:
            self.made[size] = getattr(self.backend, "forward_metadata", None)

    def inside(self, batch: Any, late: int, width: int, begins: bool) -> None:
        self.backend.forward_metadata = self.made[batch.batch_size]
        self.backend.init_forward_metadata_in_graph(batch)


class EagerPlan(Plan):
    """A backend of SGLang's own on a CPU, which has no graphs."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend

    def outside(self, batch: Any, late: Sequence[Turn | None]) -> None:
        pass

    def inside(self, batch: Any, late: int, width: int, begins: bool) -> None:
        self.backend.init_forward_metadata(batch)


class TieredPlan(Plan):
    """Working sets: turns attend one after the other."""

    def __init__(self, backend: HeteroAttnBackend, late: int, width: int) -> None:
        """For up to so many turns before a step's own, and requests of a step."""
        self.backend = backend
        backend.fix_turns(late, width)

    def outside(self, batch: Any, late: Sequence[Turn | None]) -> None:
        every = [None if turn is None else (turn.on_host.tolist(), turn.clock) for turn in late]
        self.backend.fill_turns(every, batch.batch_size // (len(late) + 1))

    def inside(self, batch: Any, late: int, width: int, begins: bool) -> None:
        self.backend.plan_turns(late, width, begins)

    def after(self) -> None:
        self.backend.end_turns()
