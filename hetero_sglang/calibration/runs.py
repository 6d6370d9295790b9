"""Whether rows come to a layer one by one or in runs, to which heads, and how many they keep: what outputs lose by the
lazy rule.

It is played on the last tokens of texts as they stand: a model's own continuation of a long text soon repeats itself,
and then no head needs anything new."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.index_options import IndexOptions
from hetero_sglang.calibration.moments import Moments
from hetero_sglang.calibration.positions import anywhere, turns
from hetero_sglang.calibration.reading import Advance, Attention, Reading, read
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first
from hetero_sglang.ops.reference.index import encode_keys, run_scores, unpack
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan
from hetero_sglang.selection.scores import attention_scores

KEEP_RATIO = 0.15
SINK, WINDOW, OBSERVED, MOST = 8, 64, 32, 2048  # as the server has them; sinks in whole runs
DOCUMENTS, STEPS = 4, 96
LEAST = 64  # rows to choose; of a text with fewer nothing is learned
GAIN = 0.002  # of outputs' squares: what a head may lose without an index, a layer on the mean by runs, or by resting
SIZES = (0.5, 2.0)  # of a head's rows, between which its loss is taken for a power of their number
FEWEST, MOST_ROWS = 0.6, 2.0  # of the mean head's
# Tokens that come together, steps between two in which a head finds rows (0: in none), and rows, of the mean head's.
Way = tuple[int, int, float]


def index_of(
    checkpoint: Checkpoint,
    documents: Sequence[Document],
    options: IndexOptions,
    advance: Advance,
    tail: int = 1,
    seen: Callable[[Reading], object] = lambda reading: None,
) -> IndexPlan:
    """The index that a model's queries and keys in these documents ask for.

    Each is read once and shown to `seen`, with queries of its last `tail` tokens at least; `advance` is told of tokens.
    Raises HeteroError as `read` does."""
    moments = Moments(checkpoint.model.config.num_hidden_layers)
    longest = sorted(documents, key=lambda d: -len(d.tokens))[:DOCUMENTS]
    kept: list[Reading] = []
    for document in documents:
        reading = read(checkpoint, document, max(tail, OBSERVED + STEPS), moments, advance)
        seen(reading)
        if document in longest:
            kept.append(reading)
    turned = turns(checkpoint, max(len(d.tokens) for d in documents), options.context)
    plan = plan_index([anywhere(m, turned) for m in moments.all()], options.fields, options.run or 1)
    return fitted(kept, plan, options)


@torch.inference_mode()
def fitted(readings: Sequence[Reading], plan: IndexPlan, options: IndexOptions) -> IndexPlan:
    """The plan with each layer's longest run that loses as little as any in the documents' last tokens (host
    memory is read at the speed of places, long or short), and an index for heads that gain by it; where none does,
    a run that loses less from the prompt's end on, or single rows. A layer's heads find rows in the same steps, in as
    few as EVERY allows: one that does costs a small batch as much as all. And rows for each head, by what it loses
    with more or fewer. Unchanged where all are too short to tell."""
    share, layers = KEEP_RATIO - plan.row_bytes / (4 * plan.encode.shape[2]), len(plan.encode)
    played = [(ask(reading, plan), rows) for reading in readings if (rows := _rows(reading, share)) >= LEAST]
    if not played:
        return plan

    def lost(ways: Sequence[Sequence[Way]]) -> torch.Tensor:
        """[layers, ways, H]"""
        return torch.stack([play(asked, rows, ways) for asked, rows in played]).mean(0).cpu()

    single = torch.full((layers,), torch.inf)
    if options.run is None:
        *by_run, single = lost([[*((run, 1, 1.0) for run in RUNS), (1, 0, 1.0)]] * layers).mean(2).unbind(1)
        losses = torch.stack(by_run, 1)  # [layers, runs]
        best = (losses <= losses.amin(1, keepdim=True) + GAIN).int().cumsum(1).argmax(1)  # [layers], the longest
        plan = replace(plan, run=np.array(RUNS)[best])
    if options.heads != "all":
        ways = [[(run, every, 1.0) for every in (*EVERY, 0)] for run in plan.run.tolist()]
        always, *seldom, never = lost(ways).unbind(1)
        found = never - always > GAIN  # [layers, H]
        worse = (torch.stack(seldom, 1) - always[:, None]).clamp(min=0) * found[:, None]  # [layers, intervals, H]
        allowed = worse.sum(2) <= GAIN * found.sum(1, keepdim=True)  # [layers, intervals]
        most = torch.where(allowed, torch.tensor(EVERY[1:], dtype=torch.int32), 1).amax(1, keepdim=True)
        needless = ~found.any(1) & (single <= never.mean(1) + GAIN)
        plan = replace(plan, run=np.where(needless, 1, plan.run), every=(most * found).numpy())
    ways = [  # of heads without an index, where there are any, and with one
        [(run, every, size) for every in (min(heads), max(heads)) for size in SIZES]
        for run, heads in zip(plan.run.tolist(), plan.every.tolist(), strict=True)
    ]
    without, found = lost(ways).unflatten(1, (2, len(SIZES))).unbind(1)  # [layers, sizes, H]
    few, many = torch.where(torch.from_numpy(plan.probed)[:, None], found, without).numpy().swapaxes(0, 1)
    return replace(plan, weight=weights(few, many))


def weights(few: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Each head's share of the rows, of mean 1 and between FEWEST and MOST_ROWS, by which all together lose least; few,
    many: what heads [layers, H] lose with so many times the mean as SIZES says."""
    few, many = np.maximum(few, 1e-9), np.maximum(many, 1e-9)
    power = np.log(few / many).clip(0.01) / np.log(SIZES[1] / SIZES[0])  # loss = at_mean / rows ** power
    at_mean = np.sqrt(few * many)  # SIZES lie on both sides of 1

    def shares(level: float) -> np.ndarray:
        """Where one more row gains as much for every head."""
        return (at_mean * power * np.exp(level)).clip(1e-30) ** (1 / (1 + power))

    low, high = -60.0, 60.0
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if shares(level).clip(FEWEST, MOST_ROWS).mean() < 1 else (low, level)
    return shares(low).clip(FEWEST, MOST_ROWS)


def _rows(reading: Reading, share: float) -> int:
    return int(share * reading.length) - SINK - WINDOW


@dataclass(frozen=True)
class Asked:
    """How heads look at a document: at its tokens before `begin` as a prompt, [layers, H, begin]; by their indexes in
    each of the n steps after it, [layers, H, n, L], zero from the step's own token on."""

    reading: Reading
    begin: int
    first: torch.Tensor
    scores: torch.Tensor


def ask(reading: Reading, plan: IndexPlan) -> Asked:
    """The document's last tokens stand for decode steps."""
    begin = reading.length - min(STEPS, reading.length // 4)
    asked = [_asked(attention, layer, begin, plan) for layer, attention in enumerate(reading)]
    return Asked(reading, begin, *(torch.stack(each) for each in zip(*asked, strict=True)))


def play(asked: Asked, rows: int, ways: Sequence[Sequence[Way]]) -> torch.Tensor:
    """Mean errors [layers, W, H] of heads' outputs in the document's steps, that keep `rows` rows to choose, in each of
    their layer's W `ways`.

    An error is the square of what a head's output loses, as a share of its own. Heads count alike: whole layers'
    outputs are moved by heads that look at everything, and tell less of whether what was asked for is there."""
    held: list[dict[Way, torch.Tensor]] = [{} for _ in ways]  # of each layer: [H, n + 1, places]
    for way in sorted({way for each in ways for way in each}):
        layers = [layer for layer, each in enumerate(ways) if way in each]
        first, scores = (each[layers].flatten(0, 1) for each in (asked.first, asked.scores))
        run, every, size = way
        found = _held(first, scores, int(size * rows), asked.begin, run, every)
        for layer, each in zip(layers, found.unflatten(0, (len(layers), -1)), strict=True):
            held[layer][way] = each
    errors = []
    for attention, kept, each in zip(asked.reading, held, ways, strict=True):
        found = _errors(attention, asked.begin, [(places[:, 1:], way[0]) for way, places in kept.items()])
        lost = dict(zip(kept, found, strict=True))
        errors.append(torch.stack([lost[way] for way in each]))
    return torch.stack(errors)


def _asked(attention: Attention, layer: int, begin: int, plan: IndexPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one layer: [H, begin] and [H, n, L]."""
    key, device = attention.key, attention.key.device
    heads, length, dim = key.shape
    encode, offset, decode = (torch.from_numpy(t[layer]).to(device) for t in (plan.encode, plan.offset, plan.decode))
    query, _ = attention.upto(begin, OBSERVED)
    query = query.reshape(heads, -1, OBSERVED, dim).permute(2, 0, 1, 3)  # [OBSERVED, H, G, D]
    first = attention_scores(query, key[:, :begin].transpose(0, 1), attention.scaling)
    codes = unpack(encode_keys(key.transpose(0, 1), encode, offset, plan.fields), plan.fields)  # [H, L, R]
    query = attention.query[:, begin - length :].reshape(heads, -1, dim).float()  # [H, G n, D]
    logits = (query @ decode * attention.scaling) @ codes.transpose(1, 2)
    logits = logits.unflatten(1, (-1, length - begin))  # [H, G, n, L]
    return first, _before(logits, begin).softmax(-1).mean(1)


def _before(logits: torch.Tensor, first: int) -> torch.Tensor:
    """[..., n, L] of which row i sees the first `first` + i tokens."""
    rows, length = logits.shape[-2:]
    sees = first + torch.arange(rows, device=logits.device)[:, None]
    return logits.masked_fill_(torch.arange(length, device=logits.device) >= sees, -torch.inf)


def _held(first: torch.Tensor, scores: torch.Tensor, rows: int, begin: int, run: int, every: int) -> torch.Tensor:
    """Runs int32 [C, n + 1, places] that C heads hold at the prompt's end, by scores [C, begin], and after each of the
    n steps, by scores [C, n, L]."""
    best = run_scores(first, run)
    low, high = SINK // run, (begin - WINDOW) // run
    held = best[:, low:high].topk(min(rows // run, high - low)).indices + low
    used = used_at_first(best).gather(1, held)
    held, want = held.int(), max(1, held.shape[1] // PART)
    seen = [held.clone()]
    for step in range(scores.shape[1]):
        length = begin + 1 + step
        if every and length % every == 0:
            now = run_scores(scores[:, step], run)
            swaps = lazy(now, held, used, length, low, (length - WINDOW) // run, want, MOST)
            held[swaps.head, swaps.place] = swaps.run.int()
        seen.append(held.clone())
    return torch.stack(seen, 1)


def _errors(attention: Attention, begin: int, kept: Sequence[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """Mean errors [ways, H] of the n steps after `begin`, of each way's runs [H, n, places] that are held, and their
    length."""
    key, value = attention.key.float(), attention.value.float()
    heads, length, dim = key.shape
    steps = length - begin
    query = attention.query[:, -steps:].reshape(heads, -1, dim).float()  # [H, G n, D]
    logits = (query @ key.transpose(1, 2) * attention.scaling).unflatten(1, (-1, steps))
    weights = _before(logits, begin + 1).softmax(-1)  # [H, G, n, L]
    full = weights @ value[:, None]  # [H, G, n, Dv]
    token = torch.arange(length, device=key.device)
    newest = torch.arange(begin, length, device=key.device)[:, None]
    errors = []
    for runs, run in kept:
        whole = (token < SINK) | (token >= (newest + 1 - WINDOW) // run * run)  # [n, L]
        tokens = runs.long()[..., None] * run + torch.arange(run, device=key.device)
        held = whole.repeat(heads, 1, 1).scatter_(2, tokens.flatten(2), True)  # [H, n, L]
        part = weights * held[:, None]
        lost = part @ value[:, None] / part.sum(-1, keepdim=True).clamp(min=1e-30) - full
        share = lost.square().sum(-1) / full.square().sum(-1).clamp(min=1e-30)  # [H, G, n]
        errors.append(share.mean((1, 2)))
    return torch.stack(errors)
