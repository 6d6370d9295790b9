"""Whether rows come one by one or in runs, and to which heads: what outputs lose when the lazy rule is played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.positions import anywhere, turns
from hetero_sglang.calibration.reading import read
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first
from hetero_sglang.ops.reference.index import attention_guess, encode_keys, run_scores
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan
from hetero_sglang.selection.scores import attention_scores

KEEP_RATIO = 0.15
SINK, WINDOW, OBSERVED, MOST = 8, 64, 32, 512  # as the server has them; sinks in whole runs
DOCUMENTS, STEPS = 4, 64
LEAST = 64  # rows to choose; of a text with fewer nothing is learned
GAIN = 0.015  # of its output's square, which a head may lose by finding rows more seldom, or none and have no index
WAYS = tuple(product(RUNS, EVERY))


def index_of(
    checkpoint: Checkpoint, documents: Sequence[Document], moments: Moments, options: IndexOptions
) -> IndexPlan:
    """The index of a model whose moments over these documents are summed; the model runs again to find a run."""
    turned = turns(checkpoint, max(len(d.tokens) for d in documents), options.context)
    plan = plan_index([anywhere(m, turned) for m in moments.all()], options.fields, options.run or 1)
    return fitted(checkpoint, documents, plan, options)


def fitted(checkpoint: Checkpoint, documents: Sequence[Document], plan: IndexPlan, options: IndexOptions) -> IndexPlan:
    """The plan with the run of RUNS with which the longest documents' decode steps lose least, and an index for heads
    that gain by it, in all steps or as seldom as EVERY allows. Unchanged where all are too short to tell."""
    if options.run is not None and options.heads == "all":
        return plan
    share = KEEP_RATIO - plan.row_bytes / (4 * plan.encode.shape[2])
    longest = sorted(documents, key=lambda d: -len(d.tokens))[:DOCUMENTS]
    errors = [_play(checkpoint, d, plan, rows) for d in longest if (rows := _rows(d, share)) >= LEAST]
    if not errors:
        return plan
    lost, never = torch.stack(errors).mean(0).cpu().split((len(WAYS), 1), 1)  # [layers, ways, H], [layers, 1, H]
    by_run = lost.unflatten(1, (len(RUNS), len(EVERY)))
    run = RUNS[int(by_run[:, :, 0].mean((0, 2)).argmin())] if options.run is None else options.run
    if options.heads == "all":
        return replace(plan, run=run)
    mine = by_run[:, RUNS.index(run)]  # [layers, EVERY, H]
    every = torch.ones(mine[:, 0].shape, dtype=torch.int32)
    for steps, worse in zip((*EVERY[1:], 0), torch.cat((mine[:, 1:], never), 1).unbind(1), strict=True):
        if options.heads == "seldom" or not steps:
            every[worse - mine[:, 0] <= GAIN] = steps
    return replace(plan, run=run, every=every.numpy())


def _rows(document: Document, share: float) -> int:
    return int(share * len(document.tokens)) - SINK - WINDOW


def _play(checkpoint: Checkpoint, document: Document, plan: IndexPlan, rows: int) -> torch.Tensor:
    """Mean errors [layers, len(WAYS) + 1, H] of heads' outputs over greedy decode steps that keep `rows` rows to
    choose; the last without finding any."""
    length = len(document.tokens)
    layers: dict[int, _Layer] = {}
    errors: dict[int, list[torch.Tensor]] = {}

    def watcher(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> None:
        if key.shape[1] == length:
            layers[layer] = _Layer(plan, layer, query[:, -OBSERVED:], key, scaling, rows)
        elif key.shape[1] > length:
            errors.setdefault(layer, []).append(layers[layer].step(query[:, 0], key, value, scaling))

    read(checkpoint, document, watcher, OBSERVED, STEPS)
    return torch.stack([torch.stack(errors[layer]).mean(0) for layer in sorted(errors)])


class _Layer:
    """What the heads of a layer hold, for every one of WAYS, from a prompt's end on."""

    def __init__(
        self, plan: IndexPlan, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, rows: int
    ) -> None:
        """The prompt's last queries [Hq, OBSERVED, D] and keys [H, L, D]."""
        heads, length, dim = key.shape
        self.fields = plan.fields
        tables = (plan.encode[layer], plan.offset[layer], plan.decode[layer])
        self.encode, self.offset, self.decode = (torch.from_numpy(t).to(key.device) for t in tables)
        self.rows = encode_keys(key.transpose(0, 1), self.encode, self.offset, self.fields)  # [H, L, words]
        query = query.reshape(heads, -1, OBSERVED, dim).permute(2, 0, 1, 3)
        scores = attention_scores(query, key.transpose(0, 1), scaling)  # [H, L]
        self.held, self.used = [], []
        for run, _ in WAYS:
            best = run_scores(scores, run)
            low, high = SINK // run, (length - WINDOW) // run
            held = best[:, low:high].topk(rows // run).indices + low
            self.held.append(held.int())
            self.used.append(used_at_first(best).gather(1, held))
        self.chosen = self.held[0].clone()  # by the prompt's end, row by row

    def step(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Square of what the heads' outputs lose, as a share of theirs, [len(WAYS) + 1, H]; query [Hq, D], key
        [H, L, D].

        Every head counts alike: whole layers' outputs are moved by heads that look at everything, and tell less of
        whether the entry that was asked for is there."""
        heads, length, dim = key.shape
        query = query.view(heads, -1, dim)
        scores = attention_guess(query, self.rows, self.decode, self.fields, scaling)  # [H, L - 1]
        new = encode_keys(key[:, -1:].transpose(0, 1), self.encode, self.offset, self.fields)
        self.rows = torch.cat([self.rows, new], 1)
        value = value.float()
        weights = (query.float() @ key.float().transpose(1, 2) * scaling).softmax(-1)  # [H, G, L]
        full = weights @ value  # [H, G, D]

        def lost(held: torch.Tensor, run: int) -> torch.Tensor:
            kept = torch.zeros(heads, length, dtype=torch.bool, device=key.device)
            kept[:, :SINK] = kept[:, (length - WINDOW) // run * run :] = True
            tokens = held.long()[..., None] * run + torch.arange(run, device=key.device)
            part = weights * kept.scatter(1, tokens.flatten(1), True)[:, None]
            output = part @ value / part.sum(-1, keepdim=True).clamp(min=1e-30)
            return ((output - full).square().sum(-1) / full.square().sum(-1).clamp(min=1e-30)).mean(1)

        errors = []
        for (run, every), held, used in zip(WAYS, self.held, self.used, strict=True):
            if length % every == 0:
                want = max(1, held.shape[1] // PART)
                low, high = SINK // run, (length - WINDOW) // run
                swaps = lazy(run_scores(scores, run), held, used, length, low, high, want, MOST)
                held[swaps.head, swaps.place] = swaps.run.int()
            errors.append(lost(held, run))
        return torch.stack([*errors, lost(self.chosen, 1)])
