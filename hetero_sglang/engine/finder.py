"""How heads find rows again while a request decodes: what every way of it offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import Mark, mark
from hetero_sglang.cache.shares import Shares
from hetero_sglang.cache.sizes import LOOK_WORKSPACE
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import PARTS, Arrivals, Counted, LayerBuffers, StepTables
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.policy.base import Policy

_EVERY = 8  # steps between two readings of the device's counts


@dataclass(frozen=True)
class Parts:
    """What a finder knows of the engine it works for."""

    cache: TieredCache
    policy: Policy
    ops: Any  # the operations' module
    layers: list[LayerBuffers]
    tables: DeviceTables
    group: int  # query heads of a KV head
    context: int  # tokens of the longest request
    dtype: torch.dtype  # of queries


class Finder(ABC):
    """Rows that a layer's heads want are there when they attend; what `find` does is recorded in the step's graph."""

    run = 1  # neighbouring tokens that come and go together, at most
    room = 512  # runs that may come to a head in a step, at most
    followed = 0  # pivots of a layer, at most
    probed = False  # whether heads have an index

    def __init__(self, parts: Parts) -> None:
        self.cache, self.policy, self.ops, self.layers = parts.cache, parts.policy, parts.ops, parts.layers
        self.tables, self.group, self.settings = parts.tables, parts.group, parts.cache.settings
        self.context, self.dtype = parts.context, parts.dtype
        self.device = self.cache.hot.k.device
        self.widest = max(len(x.compressed) for x in self.settings.layout.layers)
        self.counted: torch.Tensor | None = None  # by the device
        on_device = self.device.type == "cuda"
        self._counts = torch.zeros(2, Counted.COUNT, dtype=torch.int64, pin_memory=on_device)  # and beside steps
        self._read: Mark | None = None
        self._steps = 0

    @abstractmethod
    def find(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float
    ) -> Arrivals | None:  # fmt: skip
        """Before a layer attends with q [B, Hq, D]; the step's token is stored. What comes while it does, if so."""

    def glance(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float
    ) -> Arrivals | None:  # fmt: skip
        """The same for tokens that may be taken back: what comes is attended to by them alone, heads keep what they
        hold."""
        return None

    def attended(self, layer: int, tables: StepTables, arrivals: Arrivals | None) -> None:  # noqa: B027
        """Afterwards, with what `find` gave."""

    def left(self) -> None:  # noqa: B027
        """Tokens of the step that has begun have left before its last layers."""

    def settle(self) -> None:  # noqa: B027
        """What came has its places before anything else runs."""

    def workspace(self, batch: int, context: int, other: Any = None) -> Any:
        """For steps of up to `batch` requests of up to `context` tokens; with the buffers of an `other` one where they
        are large enough, whose steps look for rows before these or after them."""
        if other is not None and other.batch >= batch and other.context >= context:
            return other.sharing()
        each = 1 + self.probed * 2 * -(-self.group // 4)  # floats for a token of a request, by head
        floats = self.widest * each + self.followed * (self.group + 1)
        tokens = min(batch * context, max(context, LOOK_WORKSPACE // (4 * floats)))
        work = self.ops.Workspace(
            batch, self.widest, self.group, context, tokens, self.run, self.room, self.device, self.followed,
            self.cache.hot if self.probed else None,
        )  # fmt: skip
        if self.counted is not None:
            work.counted = self.counted  # of every step, whichever its buffers
        self.counted = work.counted
        return work

    def first(self, layer: int, scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
        """What heads hold when a prompt ends, beside sinks and ring: positions [C, n] ascending, padded with L.

        scores [C, L]; counts[c] positions within [low, high)."""
        return self.policy.pick(scores, counts, low, high)

    def worth(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """What is kept with each row of a prompt: float32 [C, L] of its scores [C, L]."""
        return scores

    def written(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:  # noqa: B027 - few need to know
        """New keys k [n, H, D] are stored at token slots [n]."""

    def appended(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        """The same, a token of each of a step's requests; before `find`."""
        self.written(layer, slots, k)

    def prompted(self, layer: int, prompt: Prompt, keys: torch.Tensor, scores: torch.Tensor) -> None:  # noqa: B027
        """A layer's working sets are filled: keys [L, C, D] of the compressed heads, scores [C, L]; of a request whose
        heads hold every token and have no index of their own, none."""

    def prepare(self, step: DecodeStep) -> None:  # noqa: B027
        """Before a step of requests whose step has begun in other buffers."""

    def begin(self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int]) -> None:
        """Before a step: its requests and their lengths by then."""
        self.prepare(step)
        self._steps += 1
        if self._steps % _EVERY == 0:
            self.count()

    def count(self) -> None:
        """Take over what the device had counted when it was last asked, and ask again; waits for nothing."""
        if self.counted is None or (self._read is not None and not self._read.passed):
            return
        if self.device.type == "cpu":
            self._ask()
        counters, host, (steps, ranked) = self.cache.counters, self.cache.host, self._counts.tolist()
        counters.worker_rows = ranked[Counted.ROWS]
        counters.fetched_rows = steps[Counted.ROWS] + ranked[Counted.ROWS]
        counters.late_rows = steps[Counted.LATE] + ranked[Counted.LATE]
        counters.looks = steps[Counted.LOOKS : Counted.DRIFTS]
        counters.drifts = steps[Counted.DRIFTS : Counted.HELD]
        counters.held = Shares(steps[Counted.HELD : Counted.SUM], steps[Counted.SUM] / PARTS)
        counters.drift_checks, counters.drift_triggers = sum(counters.looks), sum(counters.drifts)
        counters.fetched_bytes = counters.fetched_rows * (host.head_dim + host.v_head_dim) * host.dtype.itemsize
        if self.device.type == "cuda":
            self._ask()
            self._read = mark(self.device)

    def _ask(self) -> None:
        assert self.counted is not None
        self._counts[0].copy_(self.counted, non_blocking=True)
        if (beside := self.beside_steps()) is not None:
            self._counts[1].copy_(beside, non_blocking=True)

    def beside_steps(self) -> torch.Tensor | None:
        """As `counted`, of what does not come by steps themselves."""
        return None

    def fixed(self, recorded: bool) -> dict[str, str]:
        """What of `Tuning` may not change while requests are served, and why; `recorded`: steps are CUDA graphs."""
        return {}

    def poll(self) -> None:  # noqa: B027 - most have nothing under way
        """Between two steps: take what has arrived."""

    def stats(self) -> dict[str, int | bool]:
        """What only the finder knows, for /hetero/stats."""
        return {}

    def check_integrity(self, idle: bool) -> None:  # noqa: B027
        """When idle, nothing is under way for a live request. RuntimeError else."""

    def close(self) -> None:  # noqa: B027
        """End what it started."""


def pieces(count: int, size: int) -> Iterator[slice]:
    """`count` things in slices that the looks' workspace has room for, where each takes `size` bytes at a time."""
    most = max(1, LOOK_WORKSPACE // size)
    return (slice(at, min(at + most, count)) for at in range(0, count, most))
