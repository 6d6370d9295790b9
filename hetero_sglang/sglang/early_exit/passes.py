"""A decode pass of a model with branches."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from hetero_sglang.cache.lanes import Mark, download, mark
from hetero_sglang.config import development
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.confidence import leaves
from hetero_sglang.exits.exits import Exits
from hetero_sglang.sglang.early_exit.attention import Attention, StoreOnly, stacked
from hetero_sglang.sglang.early_exit.layers import through
from hetero_sglang.sglang.early_exit.ranks import least
from hetero_sglang.sglang.early_exit.recorded import Parts
from hetero_sglang.sglang.early_exit.turn import Turn, Waiting, turn_of

logger = logging.getLogger("hetero_sglang")

MOST = 16  # tokens of a request that wait, at most


@dataclass(frozen=True)
class Rules:
    """As the flags say. `copied`: skipped layers keep what they make of the state at the exit; else tokens wait."""

    agreement: float
    copied: bool
    max_batch: int  # larger batches run all layers
    sampled: int = 100  # of so many exits one runs on, to be compared
    drafts: bool = False  # nobody exits: the first branch drafts, and all layers verify


@dataclass
class Counts:
    """Of tokens of decode steps."""

    exits: dict[int, int]  # by layer
    tokens: int = 0
    layers: int = 0  # run for them
    compared: int = 0  # that were sure at a branch and ran on
    agreed: int = 0  # of those, whose first choice stayed

    @property
    def depth(self) -> float:
        """Mean of a token's layers in its own step."""
        return self.layers / max(1, self.tokens)


@dataclass(frozen=True)
class Stop:
    """A layer behind which tokens may leave."""

    layer: int
    branch: int | None  # that is asked here


def stops_of(exits: Exits, thresholds: Sequence[float], ahead: int) -> tuple[Stop, ...]:
    """Where a pass may end that runs `ahead` layers behind a branch while its answer comes, or as many as there are
    before the next: there, and at branches that are asked. Nobody asks one whose threshold is 1, or behind which so
    many layers are all that is left."""
    end = exits.layers - ahead
    each = zip(exits.branches, thresholds, strict=True)
    asked = {branch.layer: number for number, (branch, least) in enumerate(each) if least < 1 and branch.layer < end}
    later = {layer + ahead for layer in asked if not any(layer < other <= layer + ahead for other in asked)}
    return tuple(Stop(layer, asked.get(layer)) for layer in sorted(later | asked.keys()))


@dataclass(frozen=True)
class Said:
    """What a branch has said, which may be on its way from the device."""

    branch: int
    logits: torch.Tensor  # [B, V]
    sure: torch.Tensor  # on the host: how sure it is of each [B], or of the least sure [1]
    there: Mark  # once it has come


@dataclass
class EarlyExit:
    """Stands in the forward pass of the model of `runner`, SGLang's ModelRunner."""

    runner: Any
    exits: Exits
    rules: Rules
    attention: Attention = field(init=False)  # once SGLang has built its backend
    requests: list[Any] | None = None  # of the pass that comes; None: SGLang warms its kernels
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.thresholds = self.exits.thresholds(self.rules.agreement)
        self.counts = Counts(exits={branch.layer: 0 for branch in self.exits.branches})
        self.stop_at(0)
        self.answer: LogitsProcessorOutput | None = None  # of the branch where the pass has ended
        self.compared: torch.Tensor | None = None  # [B] first choices of a branch, of a pass that ran on
        self.dice = random.Random(self.runner.tp_group.rank_in_group)  # on each rank others
        self.left = False  # the latest pass left early
        self.since = 0  # exits since one was compared
        self.model = self.runner.model
        self.parts: Parts | None = None  # once they are recorded
        self.width: int | None = None  # of the parts that this pass is made of
        self._forward: Callable[..., Any] = self.model.model.forward
        self._logits: Callable[..., Any] = self.model.logits_processor.forward

    def stop_at(self, ahead: int) -> None:
        """Passes run so many layers behind a branch before they end with what it said; 0: they wait for it."""
        self.ahead, self.stops = ahead, stops_of(self.exits, self.thresholds, ahead)
        self.waiting = Waiting(len(self.stops))

    def install(self) -> None:
        """Take the places of the model's own forward pass and of what makes logits."""
        self.model.model.forward = self.forward
        self.model.logits_processor.forward = self.logits

    # ---- a pass

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's: the states [B, H] that logits are made of."""
        if not batch.forward_mode.is_decode() or self.requests is None:
            return self._forward(input_ids, positions, batch, *args, **kwargs)
        self._settle(batch)
        tries = self._tries(batch)
        if not tries and not self.waiting.count:
            self._ran(len(self.requests), self.exits.layers)
            if self.width:
                self.attention.whole(batch)
            return self._forward(input_ids, positions, batch, *args, **kwargs)
        return self._pass(input_ids, positions, batch, tries)

    def comes(self, batch: Any) -> bool:
        """Whether a decode pass has to come here: it may end early, or some wait to go on with it. One that does not
        runs all layers."""
        if self.requests is None or not batch.forward_mode.is_decode():
            return False
        if self.waiting.count or self._tries(batch):
            if self.width:
                self.attention.comes(batch)
            return True
        self._ran(len(self.requests), self.exits.layers)
        self.attention.parts(None)
        return False

    def _pass(self, ids: torch.Tensor, positions: torch.Tensor, batch: Any, tries: bool) -> Any:
        turns = [turn_of(ids, positions, batch, self.attention.clock, self.model.model.embed_tokens(ids))]
        rows, first, said = range(len(turns[0].ids)), 0, None
        for place, stop in enumerate(self.stops):
            self._run(turns, first, stop.layer, batch, rows)
            first = stop.layer
            if said and self._ends(said):
                return self._leave(place, said, turns, batch)
            said = self._ask(stop, turns[-1], batch) if tries and self.compared is None else None
            if said and not self.ahead:
                if self._ends(said):
                    return self._leave(place, said, turns, batch)
                said = None
            turns = [*self.waiting.pick(place), *turns]
        self._run(turns, first, self.exits.layers, batch, rows)
        self.attention.through()
        self._ran(len(rows), self.exits.layers)
        last = turns[-1]
        return self.model.model.norm(last.hidden, last.residual)[0]

    def _run(
        self, turns: list[Turn], first: int, last: int, batch: Any, rows: Sequence[int],
        ahead: bool = False,
    ) -> None:  # fmt: skip
        """Layers [first, last) for all of `turns`."""
        if not turns or first == last:
            return
        if self.parts and self.width and not ahead:
            self.parts.run(first, turns, self.width, batch)
            return
        alone = len(turns) == 1 and not ahead
        now = batch if alone else stacked(batch, turns)
        if not alone:
            self._adapt(now)
            self.attention.begin(now, turns, rows, ahead)
        hidden = torch.cat([turn.hidden for turn in turns])
        residual = torch.cat([turn.rest for turn in turns]) if first else None
        backend = self.attention.backend if alone else self.attention.several
        with forward_context(ForwardContext(attn_backend=backend)):
            hidden, residual = through(self.model, first, last, now, hidden, residual)
        self.attention.end()
        if not alone and not ahead:
            self._adapt(batch)
        for turn, mine, more in zip(turns, hidden.chunk(len(turns)), residual.chunk(len(turns)), strict=True):
            turn.hidden, turn.residual = mine, more

    def _adapt(self, batch: Any) -> None:
        """LoRA layers are about to see the rows of this batch."""
        if self.runner.server_args.enable_lora:
            self.runner.lora_manager.prepare_lora_batch(batch)

    def _ask(self, stop: Stop, turn: Turn, batch: Any) -> Said | None:
        """The branch of a stop, if it has one. Nothing waits."""
        if stop.branch is None:
            return None
        branch = self.exits.branches[stop.branch]
        if self.parts and self.width:
            logits, sure = self.parts.asking[branch.layer, self.width].run(turn)
        else:
            logits, sure = self.look(branch, turn.state, batch)
        if (forced := development.forced_exits()) is not None:
            sure = torch.full_like(sure, float(self.dice.random() < forced))
        told = download(least(sure, self.runner.tp_group))
        return Said(stop.branch, logits, told, mark(sure.device))

    def _ends(self, said: Said) -> bool:
        """Whether the pass does, with what a branch has said; on every rank."""
        said.there.wait()
        if not self._leaves(said.sure, self.thresholds[said.branch]):
            return False
        if self._compares():
            self.compared = said.logits.argmax(-1)
            return False
        return True

    def _leaves(self, sure: torch.Tensor, threshold: float) -> bool:
        """Whether a branch is sure enough of all requests' next tokens."""
        return bool(leaves(sure, threshold).all())

    def look(self, branch: Branch, state: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A branch's logits [B, V] of states [B, H], and how sure it is of each [B]."""

        def head(hidden: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self._logits(None, hidden, self.model.lm_head, batch).next_token_logits
            return logits

        return branch.ask(state, head, self.exits.confidence)

    def begin(self, requests: list[Any]) -> None:
        """A decode pass of these requests comes."""
        self.requests, self.left, self.compared = requests, False, None
        small = len(requests) <= self.rules.max_batch
        self.width = self.parts.width(len(requests)) if self.parts and small else None
        self.attention.parts(self.width)

    @property
    def late(self) -> int:
        """Turns that go on with a step's own, at most."""
        return 0 if self.rules.copied else min(MOST, self.attention.most)

    def _leave(self, place: int, said: Said, turns: list[Turn], batch: Any) -> torch.Tensor:
        """The pass ends at a stop; returns what nobody reads."""
        layer, last = self.stops[place].layer, turns[-1]
        self.attention.left(self.rules.copied)
        if self.rules.copied and self.parts and self.width:
            self.parts.copying[layer, self.width].replay()
        elif self.rules.copied:
            self.copy(layer, last.state, batch)
        else:
            if self.parts and self.width:
                self.parts.of(turns, self.width).give(turns, keep=True)
            self.waiting.at[place] += turns
        self.answer, self.left = LogitsProcessorOutput(next_token_logits=said.logits), True
        self.counts.exits[self.exits.branches[said.branch].layer] += len(last.ids)
        self._ran(len(last.ids), layer)
        return last.hidden

    def copy(self, first: int, state: torch.Tensor, batch: Any) -> None:
        """Keys and values of the layers from `first` on, of the state [B, H] at the exit."""
        with forward_context(ForwardContext(attn_backend=StoreOnly(self.attention))):
            for layer in self.model.model.layers[first:]:
                layer.self_attn(
                    positions=batch.positions, hidden_states=layer.input_layernorm(state), forward_batch=batch
                )

    def logits(self, input_ids: Any, hidden: torch.Tensor, head: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's: those of the branch where the pass has ended."""
        answer, self.answer = self.answer, None
        if answer is not None:
            return answer
        answer = self._logits(input_ids, hidden, head, batch, *args, **kwargs)
        first, self.compared = self.compared, None
        if first is not None:
            self.counts.compared += first.numel()
            self.counts.agreed += int((first == answer.next_token_logits.argmax(-1)).sum())
        return answer

    # ---- who waits

    def _settle(self, batch: Any) -> None:
        """Those who wait are of this batch's requests, of all or of none."""
        assert self.requests is not None
        waiting, coming = self.waiting, self.requests
        known = {id(each) for each in waiting.requests}
        if all(id(each) in known for each in coming):
            waiting.keep(coming)
            return
        here = {id(each): row for row, each in enumerate(coming)}
        waiting.keep([each for each in waiting.requests if id(each) in here])
        if waiting.count and waiting.requests:
            self._catch_up(batch, [here[id(each)] for each in waiting.requests])
        waiting.requests = coming

    def _catch_up(self, batch: Any, rows: list[int]) -> None:
        """All who wait go through their remaining layers, of the requests in these rows of the batch."""
        mine = replace(
            batch,
            req_pool_indices=batch.req_pool_indices[rows],
            lora_ids=batch.lora_ids and [batch.lora_ids[row] for row in rows],
        )
        turns: list[Turn] = []
        ends = [*(stop.layer for stop in self.stops[1:]), self.exits.layers]
        for place, (stop, end) in enumerate(zip(self.stops, ends, strict=True)):
            turns = [*self.waiting.pick(place), *turns]
            self._run(turns, stop.layer, end, mine, rows, ahead=True)
        self.attention.through()
        self._adapt(batch)
        self.attention.again(batch)

    def _tries(self, batch: Any) -> bool:
        """Whether this pass may end early."""
        assert self.requests is not None
        whole = batch.return_logprob or batch.capture_hidden_mode.need_capture()
        room = self.rules.copied or self.waiting.count < min(MOST, self.attention.most)
        return bool(self.stops) and len(self.requests) <= self.rules.max_batch and not whole and room

    def _compares(self) -> bool:
        """Whether this exit is one of those that run on; the same on all ranks."""
        self.since = (self.since + 1) % self.rules.sampled
        return self.since == 0

    def _ran(self, tokens: int, layers: int) -> None:
        self.counts.tokens += tokens
        self.counts.layers += tokens * layers
