"""Prefill and decode over the two tiers: the same on every device, with that device's operations."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import Recorder, upload
from hetero_sglang.cache.scrub import Scrub
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.description import Refresh
from hetero_sglang.config.tuning import NAMES
from hetero_sglang.engine.append import Append
from hetero_sglang.engine.finder import Finder, Parts
from hetero_sglang.engine.going import BLOCKS
from hetero_sglang.engine.late import Late, Turns
from hetero_sglang.engine.lazy import Lazy
from hetero_sglang.engine.pivots import Pivots
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.engine.prefill import RaggedPrefill
from hetero_sglang.engine.prefix import Prefixes
from hetero_sglang.engine.stepwise import Stepwise
from hetero_sglang.engine.verify import Stayed, Verification
from hetero_sglang.ops.base import LayerBuffers, StepTables
from hetero_sglang.ops.chosen import decode_kernel, operations
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.policy.base import Policy
from hetero_sglang.transfer.write_back import WriteBack


class Engine:
    """Owns the device's view of the working sets, and the streams and events of prefill's copies.

    `requests`: request slots; `context`: tokens of the longest one; `ops`: the operations' module, or the device's;
    `dtype`: of queries, and of keys and values as the model makes them; None: as the stores hold them."""

    def __init__(
        self, cache: TieredCache, requests: int, context: int, query_heads: int, ops: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.cache, self.settings = cache, cache.settings
        policy, layout, hot, host = self.settings.policy, self.settings.layout, cache.hot, cache.host
        assert isinstance(policy, Policy)
        self.policy, self.device, self.context = policy, hot.k.device, context
        self.ops, self.dtype = ops or operations(self.device), dtype or hot.k.dtype
        indexed = policy.index is not None
        self.tables = DeviceTables(requests, layout.num_compressed, hot.pages, self.device, indexed)
        self.layers = [self._layer(index) for index in range(len(layout.layers))]
        self.prompts: list[Prompt] | None = None
        self.nothing = torch.empty(0, 0, device=self.device)
        self.rows: torch.Tensor | None = None  # int32 [2, n]: where a pass's new tokens go whose heads hold all
        self.unknown: list[int] = []
        self.clock = 0
        self.scales: dict[int, float] = {}  # of the layers' logits, as the model says
        self.graph_step: DecodeStep | None = None
        self.eager_step: DecodeStep | None = None
        self.late, self.graph_late = Late(self), Late(self, fixed=True)
        self.stayed = Stayed(self.device)
        self.verification: Verification | None = None  # of the pass that runs or ran last
        self.graph_verification: Verification | None = None
        self.eager_verification: Verification | None = None
        self.guesses: Verification | None = None
        self.prefill = RaggedPrefill(self.device)
        self.prefixes = Prefixes(cache, self.ops, self.layers, self.tables)
        self.write_back = WriteBack(self.ops, host, hot, layout.layers)
        self.scrub = Scrub(host) if development.checksums() else None
        self.damaged: dict[int, int] = {}  # by request slot, tokens whose host rows have changed by themselves
        self.query_heads = query_heads
        self.group = query_heads // (len(layout.layers[0].resident) + len(layout.layers[0].compressed))
        self.finder = self._finder()
        self.append: Append | None = None
        if isinstance(self.finder, Lazy) and self.settings.append:
            self.append = Append(self.cache, self.ops, self.tables, self.layers, self.finder)

    def _layer(self, index: int) -> LayerBuffers:
        cache, spec = self.cache, self.settings.layout.layers[index]
        role = torch.empty(len(spec.resident) + len(spec.compressed), dtype=torch.int32)
        role[spec.resident_index] = torch.arange(len(spec.resident), dtype=torch.int32)
        role[spec.compressed_index] = -1 - torch.arange(len(spec.compressed), dtype=torch.int32)
        return LayerBuffers(
            role.to(self.device), cache.resident.k[index], cache.resident.v[index], cache.host.blocks[index],
            cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.score, spec.first,
        )  # fmt: skip

    def _finder(self) -> Finder | None:
        """How heads find rows while requests decode; None: what a prompt's end has chosen stays."""
        parts = Parts(self.cache, self.policy, self.ops, self.layers, self.tables, self.group, self.context, self.dtype)
        if self.cache.index is not None:
            return Lazy(parts)
        if not self.settings.retrieves:
            return None
        return Pivots(parts, self.write_back.hold) if self.policy.refresh is Refresh.DRIFT else Stepwise(parts)

    # ---- prefill

    def begin_unknown(self, counts: list[int]) -> None:
        """A prefill pass of no request of ours (SGLang warms its kernels): counts[i] tokens attend to themselves."""
        self.prompts, self.unknown = None, counts

    def begin_extend(self, prompts: list[Prompt]) -> None:
        """Once per prefill pass: host rows of the prefixes start to move."""
        self.prompts = prompts
        if self.finder:
            self.finder.poll()
        self.write_back.send()
        self.write_back.hold()
        if self.scrub:
            for seq in prompts:
                self._look(self.scrub, seq.ws.slot, seq.slots[: seq.prefix])
        self.tables.put([seq.ws for seq in prompts if seq.last or seq.whole or seq.appends])
        self.rows = None
        if any(seq.whole for seq in prompts):
            dense = [seq for seq in prompts if not seq.appends]
            slots = np.repeat([seq.ws.slot if seq.whole else -1 for seq in dense], [seq.count for seq in dense])
            positions = np.concatenate([np.arange(seq.prefix, seq.length) for seq in dense])
            self.rows = upload(torch.from_numpy(np.stack((slots, positions)).astype(np.int32)), self.device)
        going_on = [seq for seq in prompts if seq.appends]
        if going_on and self.append:
            longest = max(seq.length for seq in going_on)
            self.append.begin(going_on, self.graph_step or self.eager(BLOCKS, longest))
        self.prefixes.begin([seq for seq in prompts if not seq.appends])

    def extend(
        self, layer: int, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Prefill. q [n, Hq, D], k [n, H, D], v [n, H, Dv] of all requests in turn; returns [n, Hq, Dv]."""
        prompts = self.prompts
        shape = (q.shape[1], k.shape[1], q.shape[2], v.shape[2])
        if prompts is None:
            self.prefill.plan(self.unknown, self.unknown, *shape, scale, q.dtype, [False] * len(self.unknown))
            return self.prefill.run(q, k.contiguous(), v.contiguous())
        dense = [seq for seq in prompts if not seq.appends]
        if layer == 0:  # before their keys: the plan's copy too would queue behind the next layer's rows
            counts, lengths = [s.count for s in dense], [s.length for s in dense]
            self.prefill.plan(counts, lengths, *shape, scale, q.dtype, [s.exact for s in dense])
        if len(dense) == len(prompts):
            out = self._dense(layer, dense, slots, q, k, v, scale)
        else:
            out = q.new_empty(*q.shape[:2], v.shape[2])
        if dense and len(dense) < len(prompts):
            new, *rows = (torch.cat([every[seq.fresh] for seq in dense]) for every in (slots, q, k, v))
            parts = self._dense(layer, dense, new, rows[0], rows[1], rows[2], scale).split([s.count for s in dense])
            for seq, part in zip(dense, parts, strict=True):
                out[seq.fresh] = part
        for seq in prompts:
            if seq.appends:
                assert self.append is not None  # else no set goes on that lacks a token
                mine, (each_q, each_k, each_v) = seq.fresh, (rows_apart(every[seq.fresh]) for every in (q, k, v))
                out[mine] = self.append.attend(layer, seq, slots[mine], each_q, each_k, each_v, scale)
        if layer == len(self.layers) - 1:
            self.prefixes.end()
        return out

    def _dense(
        self, layer: int, prompts: list[Prompt], slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """Of prompts whose new tokens attend to all before them: as `extend`, of these alone."""
        buffers, k, v = self.layers[layer], k.contiguous(), v.contiguous()
        self._write(layer, slots, k, v)
        keys, values = self.prefixes.whole(layer, prompts, k, v)
        out = self.prefill.run(q, keys, values)
        if not buffers.heads.numel():
            return out
        if self.rows is not None:
            self.ops.hold(buffers, k, v, *self.rows, self.tables.page_start, self.tables.page_list)
        start = first = 0
        for seq in prompts:  # slices are made where they are needed: each takes as long as a small kernel
            rows, mine = slice(start, start + seq.length), slice(first, first + seq.count)
            if seq.sources.kept.numel():
                self.prefixes.keep(layer, seq, keys[rows], values[rows])
            if not seq.whole:
                self._settle(layer, seq, q[mine], keys[rows], values[rows], scale)
            else:  # its rows are there already
                seq.ws.length = seq.length
                if seq.last and self.finder:
                    self.finder.prompted(layer, seq, keys[:0], self.nothing)
            start, first = start + seq.length, first + seq.count
        return out

    def _write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Resident rows now; host rows beside the computation."""
        if self.layers[layer].resident_k.shape[1]:
            self.ops.store(self.layers[layer], slots, k, v, host=False)
        if self.finder:
            self.finder.written(layer, slots, k)
        if self.layers[layer].heads.numel():
            self.write_back.chunk(self.layers[layer], slots, k, v)

    def _settle(
        self, layer: int, seq: Prompt, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> None:
        """At prefill end every compressed head gets its working set; before that, only the last queries are kept."""
        buffers = self.layers[layer]
        ws, observe, rule = seq.ws, self.settings.observe, self.settings.rule
        if layer in ws.tail:
            q = torch.cat((ws.tail.pop(layer), q))
        q = q[-observe:]
        if not seq.last:
            ws.tail[layer] = q.clone()
            return
        caps = ws.caps[buffers.numbers]
        compressed = buffers.compressed
        queries = q.unflatten(1, (keys.shape[1], self.group))  # [W, H, G, D]; W may be 0
        full = min(caps) < seq.length
        scores = torch.empty(len(caps), 0, dtype=torch.float32, device=self.device)
        selected, worth = scores.int(), scores
        if full or (ws.indexed and seq.length):
            scores = self.policy.scores(queries[:, compressed], keys[:, compressed], scale)  # [C, L]
        if full:
            turning = rule.turning(min(caps))  # one for all: a full head's cap is above the window
            counts = [max(0, cap - rule.sink - turning) if cap < seq.length else 0 for cap in caps]
            pick = partial(self.finder.first, layer) if self.finder else self.policy.pick
            selected = pick(scores, counts, rule.sink, seq.length - turning).int()  # [C, n]
            worth = self.finder.worth(layer, scores) if self.finder else scores
        ws.length = seq.length
        cap, start = self.tables.cap[ws.slot, buffers.numbers], self.tables.page_start[ws.slot, buffers.numbers]
        self.ops.fill(
            buffers, buffers.heads, keys, values, selected, worth, cap, start, self.tables.page_list, max(caps),
            rule.sink, rule.ring,
        )  # fmt: skip
        if self.finder:
            self.finder.prompted(layer, seq, keys[:, compressed], scores)

    def _look(self, scrub: Scrub, request: int, slots: torch.Tensor) -> None:
        """Whether the host rows of a request's tokens at `slots` [n], which have all been sent, are what they were."""
        self.write_back.latest.wait()
        on_host = slots.to("cpu", torch.int64)
        if "host-bit" in development.faults() and len(on_host):
            scrub.damaged(on_host)
            scrub.flip(int(on_host[len(on_host) // 2]))
        if count := len(scrub.damaged(on_host)):
            self.damaged[request] = count

    # ---- decode

    def make_step(
        self, batch: int, context: int, fixed: bool = False, of: DecodeStep | None = None,
        beside: DecodeStep | None = None,
    ) -> DecodeStep:  # fmt: skip
        """Buffers for decode batches of up to `batch` requests of up to `context` tokens; `fixed`: for graphs; `of`: as
        of DecodeStep; `beside`: a step that looks for rows before this one or after it, never meanwhile."""
        kernel = decode_kernel(self.settings.decode_kernel, self.ops, self.layers)
        other = beside.work if beside else None
        work, v_dim = self.finder.workspace(batch, context, other) if self.finder else None, self.cache.hot.v.shape[-1]
        size = batch, context, self.group, v_dim
        return DecodeStep(self.ops, self.settings, self.tables, *size, self.dtype, kernel, work, fixed, of)

    def eager(self, width: int, longest: int) -> DecodeStep:
        """Buffers for a step outside any graph; they grow as batches do."""
        step = self.eager_step
        if step is None or step.batch < width or step.context < longest:
            batch = max(width, step.batch if step else 0)
            context = min(self.context, max(2 * longest, step.context if step else 0))
            self.eager_step = step = self.make_step(batch, context)
        return step

    def make_verification(self, step: DecodeStep, drafts: int) -> Verification:
        """Buffers for verifications of up to so many `drafts` of each of a step's requests."""
        return Verification(
            self.cache, self.ops, self.layers, self.finder, self.write_back, step,
            lambda first, rows: self.make_step(rows, first.context, first.fixed, first), drafts, self.dtype,
            self.stayed,
        )  # fmt: skip

    def eager_verify(self, width: int, longest: int, drafts: int) -> Verification:
        """As `eager`, for a verification."""
        step, made = self.eager(width, longest), self.eager_verification
        if made is None or made.first is not step or made.each != drafts:
            self.eager_verification = made = self.make_verification(step, drafts)
        return made

    def guess(self, requests: list[int], lengths: list[int], drafts: int, req_to_token: torch.Tensor) -> Verification:
        """Buffers in which `drafts` tokens behind the `lengths` of these requests attend, as often as somebody likes;
        every time all of them, and nothing is kept."""
        width, longest, made = len(requests), max(lengths), self.guesses
        if made is None or made.each != drafts or made.batch < width or made.first.context < longest:
            batch = max(width, made.batch if made else 0)
            step = self.make_step(batch, min(self.context, 2 * longest))
            self.guesses = made = self.make_verification(step, drafts)
        self.fill(made.first, self.known(requests), lengths, self.clock, width, req_to_token)
        made.guess(width)
        return made

    def record(self) -> None:
        """Once graphs of steps have been made: what a prompt's new tokens do over a working set becomes graphs too, and
        what follows a verification."""
        if self.graph_verification:
            self.graph_verification.record(Recorder(self.device))
        if self.append and self.graph_step and len(self.scales) == len(self.layers):
            scales = [self.scales[layer] for layer in range(len(self.layers))]
            self.append.record(self.graph_step, self.query_heads, self.dtype, scales, self.context)

    def begin_decode(
        self, step: DecodeStep, requests: list[int], lengths: list[int], width: int, req_to_token: torch.Tensor,
        drafts: int = 0,
    ) -> None:  # fmt: skip
        """Before a step is run or replayed: update what it reads; `width` - len(requests) rows are padding. `drafts`:
        tokens of each request that may come with it."""
        self.write_back.send()
        if self.scrub:
            for request, length in zip(requests, lengths, strict=True):
                self._look(self.scrub, request, req_to_token[request, : length - 1])
        known = self.known(requests)
        if drafts:  # who has all the tokens that it may reach has ended; SGLang runs it once more, and forgets it
            lengths = [n if n <= ws.grant.limit else 0 for ws, n in zip(known, lengths, strict=True)]
        for ws, length in zip(known, lengths, strict=True):
            if not length:
                continue
            reached = length + min(drafts, max(0, ws.grant.limit - length))  # at most: the device knows how many come
            self.cache.make_room(ws, reached)
            ws.length = reached
            ws.tally.steps += 1
        if self.tables.put(known):  # their pages may have been another's
            self.write_back.hold()
        # A lone request's answer follows from itself alone; with several no layer waits for one's length. Lengths that
        # grow by several may pass a head's turn over, and over again.
        alone = known[0].tally.steps if drafts and known else lengths[0] if lengths else 0
        self.clock = alone if len(known) == 1 else self.clock + 1
        self.fill(step, known, lengths, self.clock, width, req_to_token)
        if self.finder and requests:
            self.finder.begin(step, known, lengths)
        if requests:
            self.write_back.owe(step, width)

    def known(self, requests: Sequence[int]) -> list[WorkingSet]:
        """The working sets of these request slots."""
        return [self.cache.requests[request] for request in requests]

    def fill(
        self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int], clock: int, width: int,
        req_to_token: torch.Tensor,
    ) -> None:  # fmt: skip
        """What a step at this clock reads of requests that have these working sets and so many tokens."""
        requests, prompts = [ws.slot for ws in known], [ws.prompt for ws in known]
        units, rooms = [ws.units for ws in known], [ws.index_rows for ws in known]
        step.fill([lengths, requests, prompts, units, rooms, [clock] * len(known)], width, req_to_token)

    def store(self, layer: int, tables: StepTables, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Rows of a step that does not attend in this layer: as of `decode`."""
        rule = self.settings.rule
        k, v = rows_apart(k), rows_apart(v)
        self.ops.store(self.layers[layer], slots, k, v, host=False, step=tables, sink=rule.sink, ring=rule.ring)
        if self.finder:
            self.finder.written(layer, slots, k)

    def decode(
        self, layer: int, step: DecodeStep, tables: StepTables, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor,
        v: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """One token per request over its working sets. q [B, Hq, D], k [B, H, D], v [B, H, Dv] -> [B, Hq, Dv]."""
        buffers, rule = self.layers[layer], self.settings.rule
        self.scales[layer] = scale
        q, k, v = rows_apart(q), rows_apart(k), rows_apart(v)
        self.ops.store(buffers, slots, k, v, host=False, step=tables, sink=rule.sink, ring=rule.ring)
        if self.finder is None:
            return step.kernel.attend(layer, q, buffers, tables, scale)
        self.finder.appended(layer, slots, k)
        arrivals = self.finder.find(layer, step, tables, q, scale)
        out = step.kernel.attend(layer, q, buffers, tables, scale, arrivals is None, arrivals)
        self.finder.attended(layer, tables, arrivals)
        return out

    def decode_turns(
        self, layer: int, turns: Turns, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """As `decode`, of several steps of the same requests: each one's rows behind those of the one before."""
        every = (rows.chunk(len(turns)) for rows in (slots, q, k, v))
        out = []
        for (step, tables), *mine in zip(turns, *every, strict=True):
            self.settle()  # a head's rows are those that the step before has left
            out.append(self.decode(layer, step, tables, mine[0], mine[1], mine[2], mine[3], scale))
        return torch.cat(out)

    def left(self, step: DecodeStep, copied: bool) -> None:
        """Tokens of the step that has begun have left before their last layers, whose rows are `copied` or missing."""
        if self.finder:
            self.finder.left()
        if not copied:
            self.write_back.withdraw(step)
            for late in (self.late, self.graph_late):
                late.left()

    def settle(self) -> None:
        """Layers have run, perhaps not all: nothing that belongs to them goes on beside what comes next."""
        if self.finder:
            self.finder.settle()

    def begin_verify(
        self, made: Verification, requests: list[int], lengths: list[int], width: int, req_to_token: torch.Tensor,
        slots: torch.Tensor, tree: torch.Tensor,
    ) -> None:  # fmt: skip
        """Before a verification of requests with `lengths` tokens, whose new ones are to lie at `slots` [n] in turn;
        `tree`: as of Verification.begin; the rest as of `begin_decode`."""
        self.begin_decode(made.first, requests, [n + 1 for n in lengths], width, req_to_token, made.each)
        made.begin([self.cache.requests[request].grant.limit for request in requests], slots, tree)
        self.verification = made

    def verify(
        self, layer: int, made: Verification, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """The new tokens of each request in turn: q [n, Hq, D], k [n, H, D], v [n, H, Dv] -> [n, Hq, Dv]; the first of
        each is a decode step's, the others are drafts."""
        each = made.each + 1
        every = slots, q, k, v
        new, q, k, v = (rows.unflatten(0, (-1, each)) for rows in every)
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        out[:, 0] = self.decode(
            layer, made.first, made.step_tables, new[:, 0].contiguous(), q[:, 0], k[:, 0], v[:, 0], scale
        )
        if each > 1:
            out[:, 1:] = made.attend(layer, q[:, 1:], k[:, 1:], v[:, 1:], scale)
        return out.flatten(0, 1)

    # ---- beside

    def poll(self) -> None:
        """Between two steps, or when nothing runs: take what has arrived for requests, ended ones too."""
        if self.finder:
            self.finder.poll()
            self.finder.count()
        self._count()

    def _count(self) -> None:
        more, counters = self.stayed.take(), self.cache.counters
        counters.accepted_tokens += more
        counters.decoded_tokens += more

    def stats(self) -> dict[str, int | bool]:
        """What the cache does not count itself; waits for nothing."""
        if self.finder:
            self.finder.count()
        self._count()
        return self.worker()

    def worker(self) -> dict[str, int | bool]:
        """The retrieval worker, and what it was asked."""
        nothing = {"rankings_under_way": 0, "worker_up": False, "worker_pid": 0}
        return {**nothing, **(self.finder.stats() if self.finder else {})}

    def fixed(self) -> dict[str, str]:
        """What of `Tuning` may not change while requests are served, and why."""
        if self.finder is None:
            return dict.fromkeys(NAMES, "no head looks for rows while requests decode, as this server was started")
        return self.finder.fixed(self.graph_step is not None)

    def check_integrity(self) -> None:
        """As the cache's; RuntimeError when something is under way for requests although none is live."""
        if self.finder:
            self.finder.check_integrity(idle=not self.cache.requests)

    def close(self) -> None:
        """End what the engine has started."""
        if self.finder:
            self.finder.close()


def rows_apart(values: torch.Tensor) -> torch.Tensor:
    """[n, H, D] as the operations take it: the heads of a row side by side; rows may be slices of wider ones."""
    _, _, dim = values.shape
    return values if values.stride(2) == 1 and values.stride(1) == dim else values.contiguous()
