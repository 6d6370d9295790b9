"""The navigation model in training form, and as a player of its own without a server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.recall.training.model import RecallModel
from benchmarks.recall.training.shape import HEAD_DIM, Shape

from .words import REPLY


class Navigator(RecallModel):
    """A Llama over sequences of different lengths, one behind the other without padding."""

    @classmethod
    def of(cls, model: Any) -> Navigator:
        """The same as a Hugging Face Llama of untied embeddings, in float32."""
        config = model.config
        shape = Shape(
            config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
            config.num_key_value_heads, config.intermediate_size, config.rope_parameters["rope_theta"],
            config.rms_norm_eps,
        )  # fmt: skip
        made = cls(shape)
        names = {name: re.sub(r"^model\.|self_attn\.|mlp\.", "", name) for name in model.state_dict()}
        made.load_state_dict({names[name]: each.float() for name, each in model.state_dict().items()})
        return made

    def forward(self, ids: torch.Tensor, lengths: Sequence[int] | None = None) -> torch.Tensor:
        """ids [T] of sequences of these lengths (their sum is T) -> hidden states [T, W], normed."""
        if lengths is None:  # sequences of one length: [B, L]
            return super().forward(ids)
        x = self.embed_tokens(ids)  # [T, W]
        if ids.is_cuda:
            x = x.to(torch.bfloat16)
        cos, sin = self.angles_of(torch.cat([torch.arange(n, device=ids.device) for n in lengths]), x.dtype)
        runs = [(length, len(list(same))) for length, same in groupby(lengths)]
        sizes = [length * count for length, count in runs]
        for layer in self.layers:
            split = zip(*(t.split(sizes) for t in layer.before(x, cos, sin)), strict=True)
            attended = [_attend(q, k, v, count) for (q, k, v), (_, count) in zip(split, runs, strict=True)]
            x = layer.after(x, torch.cat(attended))
        return self.norm(x)

    def angles_of(self, places: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [T, 1, D] of the places [T]."""
        cos, sin = self._angles(int(places.max()) + 1, places.device)
        return cos[places].to(dtype)[:, None], sin[places].to(dtype)[:, None]


class ModelPlayer:
    """Greedy replies of a model to several episodes at once, keys and values kept; `forgets` keeps one turn alone."""

    def __init__(self, model: Navigator, episodes: int, most: int, forgets: bool = False) -> None:
        shape, weight = model.shape, model.lm_head.weight
        self.model, self.forgets = model, forgets
        self.dtype = torch.bfloat16 if weight.is_cuda else torch.float32
        size = (shape.layers, 2, episodes, shape.kv_heads, most + REPLY, HEAD_DIM)
        self.rows = torch.zeros(size, dtype=self.dtype, device=weight.device)  # [layers, 2, E, H, L, D]
        self.had = [0] * episodes

    @torch.no_grad()
    def replies(self, histories: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
        """As Player's; raises IndexError past the length that was made room for."""
        numbers = [number for number, _ in histories]
        fresh = []
        for number, ids in histories:
            if self.forgets:  # bos, and the turn since the last reply
                begin = max(1, self.had[number])
                fresh.append([ids[0], *ids[begin:]])
                self.had[number] = len(ids) + REPLY
            else:
                fresh.append(list(ids[self.had[number] :]))
        placed = [0] * len(histories) if self.forgets else [self.had[number] for number in numbers]
        said: list[list[int]] = [[] for _ in numbers]
        for _ in range(REPLY):
            for words, each in zip(said, self._next(numbers, placed, fresh), strict=True):
                words.append(each)
            placed = [at + len(ids) for at, ids in zip(placed, fresh, strict=True)]
            fresh = [[words[-1]] for words in said]
        if not self.forgets:  # the last word's keys and values come with the next turn
            for number, (_, ids) in zip(numbers, histories, strict=True):
                self.had[number] = len(ids) + REPLY - 1
        return said

    def _next(self, numbers: list[int], placed: list[int], fresh: list[list[int]]) -> list[int]:
        """Each episode's next id, after its fresh ids, of which the first stands at its place."""
        model, device = self.model, self.rows.device
        n, width = len(fresh), max(map(len, fresh))
        ids = torch.tensor([each + [0] * (width - len(each)) for each in fresh], device=device)  # [n, w]
        places = torch.tensor(placed, device=device)[:, None] + torch.arange(width, device=device)  # [n, w]
        most = int(places.max()) + 1
        if most > self.rows.shape[4]:
            raise IndexError(f"{most} tokens, where room was made for {self.rows.shape[4]}")
        episodes, whole = torch.tensor(numbers, device=device), numbers == list(range(n))
        # What is padding here lies behind its sequence: it is overwritten before anything sees it.
        mask = (torch.arange(most, device=device) <= places[..., None])[:, None]  # [n, 1, w, L]
        x = model.embed_tokens(ids).flatten(0, 1).to(self.dtype)  # [n * w, W]
        cos, sin = model.angles_of(places.flatten(), x.dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for layer, rows in zip(model.layers, self.rows, strict=True):
                q, k, v = (t.unflatten(0, (n, width)) for t in layer.before(x, cos, sin))  # [n, w, H, D]
                rows[0][episodes[:, None], :, places] = k.to(self.dtype)
                rows[1][episodes[:, None], :, places] = v.to(self.dtype)
                # All episodes are read where they lie; of some a copy is made.
                keys, values = rows[:, :n, :, :most] if whole else rows[:, episodes, :, :most]  # [n, H, L, D]
                attended = F.scaled_dot_product_attention(
                    q.transpose(1, 2).to(self.dtype), keys, values, attn_mask=mask, enable_gqa=True
                )
                x = layer.after(x, attended.transpose(1, 2).reshape(n * width, -1))
            last = torch.tensor([len(each) - 1 for each in fresh], device=device)
            x = model.norm(x.unflatten(0, (n, width))[torch.arange(n, device=device), last])
            return [int(each) for each in model.lm_head(x).argmax(-1)]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: int) -> torch.Tensor:
    """Causal attention within n = `count` sequences each: q [n * L, Hq, D], k, v [n * L, H, D] -> [n * L, Hq * D]."""
    q, k, v = (t.unflatten(0, (count, -1)).transpose(1, 2) for t in (q, k, v))  # [n, H, L, D]
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # [n, Hq, L, D]
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)
