"""Whether rows come to a layer one by one or in runs, and to which heads: what outputs lose by the lazy rule.

It is played on the last tokens of texts as they stand: a model's own continuation of a long text soon repeats itself,
and then no head needs anything new."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.positions import anywhere, turns
from hetero_sglang.calibration.reading import read
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first
from hetero_sglang.ops.reference.index import attention_guess, encode_keys, run_scores, unpack
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan
from hetero_sglang.selection.scores import attention_scores

KEEP_RATIO = 0.15
SINK, WINDOW, OBSERVED, MOST = 8, 64, 32, 2048  # as the server has them; sinks in whole runs
DOCUMENTS, STEPS = 4, 192
LEAST = 64  # rows to choose; of a text with fewer nothing is learned
GAIN = 0.002  # of outputs' squares: what a head may lose without an index, a layer on the mean by runs, or by resting
Way = tuple[int, int]  # tokens that come together, and steps between two in which a head finds rows


def index_of(
    checkpoint: Checkpoint, documents: Sequence[Document], moments: Moments, options: IndexOptions
) -> IndexPlan:
    """The index of a model whose moments over these documents are summed; the model runs again to find a run."""
    turned = turns(checkpoint, max(len(d.tokens) for d in documents), options.context)
    plan = plan_index([anywhere(m, turned) for m in moments.all()], options.fields, options.run or 1)
    return fitted(checkpoint, documents, plan, options)


def fitted(checkpoint: Checkpoint, documents: Sequence[Document], plan: IndexPlan, options: IndexOptions) -> IndexPlan:
    """The plan with each layer's longest run that loses as little as any in the longest documents' last tokens (host
    memory is read at the speed of places, long or short), and an index for heads that gain by it; where none does,
    a run that loses less from the prompt's end on, or single rows. A layer's heads find rows in the same steps, in as
    few as EVERY allows: one that does costs a small batch as much as all. Unchanged where all are too short to tell."""
    if options.run is not None and options.heads == "all":
        return plan
    share = KEEP_RATIO - plan.row_bytes / (4 * plan.encode.shape[2])
    longest = sorted(documents, key=lambda d: -len(d.tokens))[:DOCUMENTS]
    played = [(document, rows) for document in longest if (rows := _rows(document, share)) >= LEAST]
    if not played:
        return plan

    def lost(ways: Sequence[Sequence[Way]]) -> torch.Tensor:
        """[layers, ways + 1, H]"""
        return torch.stack([_play(checkpoint, *each, plan, ways) for each in played]).mean(0).cpu()

    single = torch.full((len(plan.encode),), torch.inf)
    if options.run is None:
        *by_run, single = lost([[(run, 1) for run in RUNS]] * len(plan.encode)).mean(2).unbind(1)  # [layers]
        losses = torch.stack(by_run, 1)  # [layers, runs]
        best = (losses <= losses.amin(1, keepdim=True) + GAIN).int().cumsum(1).argmax(1)  # [layers], the longest
        plan = replace(plan, run=np.array(RUNS)[best])
    if options.heads == "all":
        return plan
    always, *seldom, never = lost([[(run, every) for every in EVERY] for run in plan.run.tolist()]).unbind(1)
    found = never - always > GAIN  # [layers, H]
    worse = (torch.stack(seldom, 1) - always[:, None]).clamp(min=0) * found[:, None]  # [layers, intervals, H]
    allowed = worse.sum(2) <= GAIN * found.sum(1, keepdim=True)  # [layers, intervals]
    most = torch.where(allowed, torch.tensor(EVERY[1:], dtype=torch.int32), 1).amax(1, keepdim=True)
    needless = ~found.any(1) & (single <= never.mean(1) + GAIN)
    return replace(plan, run=np.where(needless, 1, plan.run), every=(most * found).numpy())


def _rows(document: Document, share: float) -> int:
    return int(share * len(document.tokens)) - SINK - WINDOW


def _play(
    checkpoint: Checkpoint, document: Document, rows: int, plan: IndexPlan, ways: Sequence[Sequence[Way]]
) -> torch.Tensor:  # fmt: skip
    """Mean errors [layers, W + 1, H] of heads' outputs at the document's last tokens, one after the other, that keep
    `rows` rows to choose, in each of their layer's W `ways`; the last holds what the first began with."""
    length = len(document.tokens)
    begin = length - min(STEPS, length // 4)
    errors: dict[int, torch.Tensor] = {}

    def watcher(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> None:
        if key.shape[1] == length:
            query = query[:, begin - OBSERVED - length :]
            errors[layer] = _Layer(plan, layer, query, key, value, scaling, rows, begin, ways[layer]).mean()

    read(checkpoint, document, watcher, OBSERVED + length - begin)
    return torch.stack([errors[layer] for layer in sorted(errors)])


class _Layer:
    """What the heads of a layer hold, in every way, from a prompt's end on."""

    def __init__(
        self, plan: IndexPlan, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float,
        rows: int, begin: int, ways: Sequence[Way],
    ) -> None:  # fmt: skip
        """Queries [Hq, OBSERVED + L - begin, D] from the prompt's last on, keys [H, L, D] and values [H, L, Dv]; the
        prompt has `begin` tokens."""
        heads, length, dim = key.shape
        self.scaling, self.begin, self.ways = scaling, begin, ways
        self.key, self.value = key.float(), value.float()
        encode, offset, decode = (
            torch.from_numpy(t[layer]).to(key.device) for t in (plan.encode, plan.offset, plan.decode)
        )
        self.decode = decode
        self.codes = unpack(encode_keys(key.transpose(0, 1), encode, offset, plan.fields), plan.fields)  # [H, L, R]
        self.query = query.reshape(heads, -1, query.shape[1], dim)  # [H, G, OBSERVED + L - begin, D]
        first = self.query[:, :, :OBSERVED].permute(2, 0, 1, 3)
        scores = attention_scores(first, key[:, :begin].transpose(0, 1), scaling)  # [H, begin]
        begun = (self._hold(scores, rows, run) for run, _ in ways)
        self.held, self.used = map(list, zip(*begun, strict=True))
        self.chosen = self.held[0].clone()  # by the prompt's end

    def _hold(self, scores: torch.Tensor, rows: int, run: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best runs [H, n] by the prompt's end, and when they were last used."""
        best = run_scores(scores, run)
        low, high = SINK // run, (self.begin - WINDOW) // run
        held = best[:, low:high].topk(min(rows // run, high - low)).indices + low
        return held.int(), used_at_first(best).gather(1, held)

    def mean(self) -> torch.Tensor:
        """Over all tokens after the prompt's, [len(ways) + 1, H]."""
        return torch.stack([self._step(length) for length in range(self.begin + 1, self.key.shape[1] + 1)]).mean(0)

    def _step(self, length: int) -> torch.Tensor:
        """Square of what the heads' outputs lose, as a share of theirs, [len(ways) + 1, H], at token `length` - 1.

        Every head counts alike: whole layers' outputs are moved by heads that look at everything, and tell less of
        whether the entry that was asked for is there."""
        query, value = self.query[:, :, length - self.begin - 1 + OBSERVED], self.value[:, :length]  # [H, G, D]
        scores = attention_guess(query, self.codes[:, : length - 1], self.decode, self.scaling)  # [H, L - 1]
        weights = (query.float() @ self.key[:, :length].transpose(1, 2) * self.scaling).softmax(-1)  # [H, G, L]
        full = weights @ value  # [H, G, Dv]

        def lost(held: torch.Tensor, run: int) -> torch.Tensor:
            kept = torch.zeros(len(held), length, dtype=torch.bool, device=held.device)
            kept[:, :SINK] = kept[:, (length - WINDOW) // run * run :] = True
            tokens = held.long()[..., None] * run + torch.arange(run, device=held.device)
            part = weights * kept.scatter(1, tokens.flatten(1), True)[:, None]
            output = part @ value / part.sum(-1, keepdim=True).clamp(min=1e-30)
            return ((output - full).square().sum(-1) / full.square().sum(-1).clamp(min=1e-30)).mean(1)

        errors = []
        for (run, every), held, used in zip(self.ways, self.held, self.used, strict=True):
            if length % every == 0:
                want = max(1, held.shape[1] // PART)
                low, high = SINK // run, (length - WINDOW) // run
                swaps = lazy(run_scores(scores, run), held, used, length, low, high, want, MOST)
                held[swaps.head, swaps.place] = swaps.run.int()
            errors.append(lost(held, run))
        return torch.stack([*errors, lost(self.chosen, self.ways[0][0])])
