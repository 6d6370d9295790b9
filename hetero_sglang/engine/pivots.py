"""HeteroCache as the paper has it: pivots watch for drift on their satellites' behalf, anchors are refreshed at times.

A pivot looks at every token; a satellite that holds too little of what it sees is refilled by its scores before it
attends. Anchors have no pivot: the worker ranks their tokens beside decoding, and their rows come once it has."""

from collections.abc import Sequence
from typing import Any

import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.caps import ROOMY
from hetero_sglang.config.layout import OWN
from hetero_sglang.engine.anchors import Anchors
from hetero_sglang.engine.finder import Finder, Parts
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.engine.reassign import Reassign
from hetero_sglang.ops.base import LAYER_GROUPS, LayerPivots, StepTables, Watch
from hetero_sglang.ops.step import PROMPT, REQUEST, DecodeStep


class Pivots(Finder):
    """Owns, by request slot and compressed head: who a head follows, and when it was last refilled."""

    def __init__(self, parts: Parts, hold: Any) -> None:
        """`hold()`: what follows on the stream waits until all rows are in the host store."""
        super().__init__(parts)
        settings, layers = self.settings, self.settings.layout.layers
        self.room = settings.refill_rows
        most = max(len(x.clusters) for x in layers)
        self.followed = most
        self.pivots = [
            LayerPivots(
                self._ints([x.resident[c.pivot] for c in x.clusters]), self._ints([c.pivot for c in x.clusters])
            )
            for x in layers
        ]
        self.led = self._ints([leader for x in layers for leader in x.leader])  # [Hc]
        self.leader = self.led.expand(self.tables.cap.shape).clone()  # [requests, Hc]
        self.filled = torch.zeros_like(self.leader)
        self.rate = torch.full((1,), -1.0, device=self.device)
        self._rate = -1.0
        alone = any(OWN in x.leader for x in layers) or settings.reassign
        self.anchors = Anchors(parts, hold) if settings.anchor_interval and alone else None
        self.reassign = Reassign(parts, self.leader, self.pivots) if settings.reassign else None
        if self.anchors and self.reassign:
            self.anchors.more = self.reassign.orphans

    def _ints(self, values: list[int]) -> torch.Tensor:
        return upload(torch.tensor(values, dtype=torch.int32), self.device)

    def workspace(self, batch: int, context: int, other: Any = None) -> Any:
        work = super().workspace(batch, context, other)
        heads = len(self.settings.layout.layers[0].resident) + len(self.settings.layout.layers[0].compressed)
        shape = (len(self.layers), batch, heads * self.group, self.cache.hot.k.shape[-1])
        work.agreed = self.reassign.room(batch) if self.reassign else None
        like = {"dtype": self.dtype, "device": self.device}
        work.queries = torch.zeros(shape, **like) if self.anchors else None  # of the latest step
        return work

    def prompted(self, layer: int, prompt: Prompt, keys: torch.Tensor, scores: torch.Tensor) -> None:
        numbers, slot = self.layers[layer].numbers, prompt.ws.slot
        self.leader[slot, numbers], self.filled[slot, numbers] = self.led[numbers], prompt.length

    def begin(self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int]) -> None:
        wanted = development.fetch_rate() if self.settings.tuning.retrieval else 0.0
        rate = -1.0 if wanted is None else wanted
        if rate != self._rate:
            self._rate = rate
            self.rate.fill_(rate)
        if self.anchors:
            self.anchors.begin(step, known, lengths)
        if self.reassign:
            self.reassign.begin(step, known, lengths)
        super().begin(step, known, lengths)

    def find(self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float) -> None:
        buffers, rule, settings = self.layers[layer], self.settings.rule, self.settings
        width, work, hot = tables.length.numel(), step.work, self.cache.hot
        if not buffers.heads.numel():
            return
        if self.anchors:
            self.anchors.scale = scale
            work.queries[layer, :width].copy_(q)
        if not self.pivots[layer].head.numel():
            return
        decay = 0.0 if settings.retrieval == "replace" else settings.decay
        watch = Watch(
            step.inputs[REQUEST, :width], step.inputs[PROMPT, :width], self.leader, self.filled, self.rate,
            settings.monitor_interval, settings.drift_threshold, decay, ROOMY * (rule.sink + rule.window),
            layer * LAYER_GROUPS // len(self.layers),
        )  # fmt: skip
        self.ops.look(
            q, buffers, self.pivots[layer], step.slots, step.starts, tables, scale, watch, rule.sink, rule.window, work
        )
        self.ops.choose(buffers, tables, hot, rule.sink, rule.window, work, merged=True)
        self.ops.swap_in(buffers, buffers.host, step.slots, step.starts, tables, hot, rule.sink, work, merged=True)
        if self.reassign:
            self.reassign.compare(layer, step, tables, q, scale)

    def beside_steps(self) -> torch.Tensor | None:
        return self.anchors.work.counted if self.anchors and self.anchors.work is not None else None

    def fixed(self, recorded: bool) -> dict[str, str]:
        why = "decode steps are CUDA graphs, recorded with its value at start"
        return {"drift_threshold": why, "monitor_interval": why} if recorded else {}

    def left(self) -> None:
        """What the step has seen in its last layers is another's: nobody is asked about it."""
        for each in (self.anchors, self.reassign):
            if each:
                each.last = None

    def poll(self) -> None:
        if self.anchors:
            self.anchors.poll()

    def stats(self) -> dict[str, int | bool]:
        return self.anchors.ranking.stats() if self.anchors else {}

    def check_integrity(self, idle: bool) -> None:
        if self.anchors:
            self.anchors.ranking.check_integrity(idle)

    def close(self) -> None:
        if self.anchors:
            self.anchors.ranking.close()
