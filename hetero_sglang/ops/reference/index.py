"""A head's key index: keys as a few bits each, and what a query makes of them."""

import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import StepTables, flat_rows
from hetero_sglang.ops.reference.workspace import Found, Workspace
from hetero_sglang.profile.index_plan import WORD, Fields


def encode_keys(k: torch.Tensor, encode: torch.Tensor, offset: torch.Tensor, fields: Fields) -> torch.Tensor:
    """Index rows of keys k [n, C, D]: int16 [C, n, words]. encode [C, D, R] and offset [C, R] float32."""
    codes = torch.bmm(k.float().transpose(0, 1), encode) - offset[:, None]  # [C, n, R]
    return pack(codes.round(), fields)


def pack(codes: torch.Tensor, fields: Fields) -> torch.Tensor:
    """Codes [..., R], clamped to their bits, as int16 [..., words]; a word's first direction is in its lowest bits."""
    packed, at = [], 0
    for count, bits in fields:
        part = codes[..., at : at + count].clamp(0, 2**bits - 1).to(torch.int32)
        part = part.unflatten(-1, (-1, WORD // bits))  # [..., words, directions of a word]
        shift = torch.arange(0, WORD, bits, dtype=torch.int32, device=codes.device)
        packed.append((part << shift).sum(-1))
        at += count
    return torch.cat(packed, -1).to(torch.int16)


def unpack(rows: torch.Tensor, fields: Fields) -> torch.Tensor:
    """Codes float32 [..., R] of index rows int16 [..., words]."""
    codes, at = [], 0
    for count, bits in fields:
        part = rows[..., at : at + count * bits // WORD, None].to(torch.int32)
        shift = torch.arange(0, WORD, bits, dtype=torch.int32, device=rows.device)
        codes.append(((part >> shift) & (2**bits - 1)).flatten(-2))
        at += count * bits // WORD
    return torch.cat(codes, -1).float()


def attention_guess(q: torch.Tensor, codes: torch.Tensor, decode: torch.Tensor, scale: float) -> torch.Tensor:
    """What a step's queries make of a request's L tokens by their index: scores [C, L] float32, at most 1.

    q [C, G, D], codes [C, L, R] as of `unpack`, decode [C, D, R]. Each query's logits become attention over the L
    tokens; a group's score is the mean of its queries'."""
    weight = torch.bmm(q.float(), decode) * scale  # [C, G, R]
    logits = torch.bmm(weight, codes.transpose(1, 2))  # [C, G, L]
    return logits.softmax(-1).mean(1)


def run_scores(scores: torch.Tensor, run: int) -> torch.Tensor:
    """Each complete run's best token: [C, L] -> [C, L // run]."""
    runs = scores.shape[1] // run
    return scores[:, : runs * run].unflatten(1, (runs, run)).amax(2)


def index(
    k: torch.Tensor, slots: torch.Tensor, heads: torch.Tensor, store: torch.Tensor, encode: torch.Tensor,
    offset: torch.Tensor, fields: Fields,
) -> None:  # fmt: skip
    """Write the index rows of keys k [n, H, D] at `slots` [n] of the layer's store int16 [C, slots, words].

    heads [C] int32: which of the H heads are compressed; encode [C, D, R], offset [C, R] float32."""
    if heads.numel():
        store[:, slots.long()] = encode_keys(k[:, heads.long()], encode, offset, fields)


_TOGETHER = 32  # queries: bounds their logits


def ask(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
    scale: float, sink: int, window: int, work: Workspace, hot: HotPool | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `probe`, for queries q [B, n, Hq, D] of later tokens of a lone request, which all of the step's are, or none;
    `length`: its tokens. Of the n that look together, the best score that any of them gives a token counts. Heads have
    no turns. Returns the first's scores [I, U] of the tokens' runs, of full heads alone. What is selected in `hot`
    scores -1."""
    work.plan(step)
    scores = layer.decode.new_zeros(len(q), layer.heads.numel(), (length - 1) // layer.run)
    full = (step.cap[0, layer.first + layer.which] < length).nonzero()[:, 0]
    if not full.numel():
        return scores[0]
    start = int(starts[0])
    codes = unpack(layer.rows[full].index_select(1, slots[start : start + length - 1].long()), layer.fields)
    for request, there in enumerate(step.length.tolist()):
        if not there:
            continue
        best = codes.new_zeros(codes.shape[:2])  # [C, L - 1]
        for some in q[request].unflatten(1, (-1, work.group))[:, layer.heads.long()[full]].split(_TOGETHER):
            weight = torch.einsum("ncgd,cdr->cngr", some.float(), layer.decode[full]) * scale
            logits = weight.flatten(1, 2) @ codes.transpose(1, 2)  # [C, n G, L - 1]
            shares = logits.softmax(-1).unflatten(1, (len(some), -1)).mean(2)  # [C, n, L - 1]
            best = torch.maximum(best, shares.amax(1))
        scores[request, full] = run_scores(best, layer.run)
        if hot is not None:
            for i in full.tolist():
                scores[request, i, _selected(layer, i, step, hot, sink, window)] = -1.0
        work.found.append(Found(request, layer.which[full], scores[request, full]))
    return scores[0]


def _selected(layer: LayerIndex, i: int, step: StepTables, hot: HotPool, sink: int, window: int) -> torch.Tensor:
    """Runs [n] int64 that the layer's i-th head with an index holds of the step's first request."""
    number, run = layer.first + int(layer.which[i]), layer.run
    places = max(0, (int(step.cap[0, number]) - sink - window - run + 1) // run)
    row = sink + torch.arange(places, device=hot.position.device) * run
    flat = flat_rows(step.page_list, int(step.page_start[0, number]), row, hot.page_size)
    return hot.position.view(-1)[flat].long() // run


def probe(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, scale: float,
    sink: int, window: int, work: Workspace,
) -> None:  # fmt: skip
    """A step's queries q [B, Hq, D] against all but the newest of each request's tokens, which is in the ring.

    `slots`: the requests' token slots, request b's from starts[b] on. Heads that still hold every token are left out,
    and those whose turn it is not. Leaves scores of runs in `work`."""
    queries = q.unflatten(1, (-1, work.group))[:, layer.heads.long()]  # [B, C, G, D]
    due = (step.clock + layer.turn) % layer.every == 0  # [C]
    for request, (length, start) in enumerate(zip(step.length.tolist(), starts.tolist(), strict=False)):
        full = (due & (step.cap[request, layer.first + layer.which] < length)).nonzero()[:, 0]
        if full.numel() and length:
            rows = layer.rows[full].index_select(1, slots[start : start + length - 1].long())  # [C, L - 1, words]
            codes = unpack(rows, layer.fields)
            guess = attention_guess(queries[request, full], codes, layer.decode[full], scale)
            work.found.append(Found(request, layer.which[full], run_scores(guess, layer.run)))
