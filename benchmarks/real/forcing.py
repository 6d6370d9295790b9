"""Inside the server: a logit processor that scores the true next token, then lets nothing else be sampled.

A request's `custom_params` name its true continuation (`forced`), the file for its scores (`record`), and either a
file for all its distributions (`distribution`) or one of another server's to compare with (`against`).
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hetero_sglang.sglang.interface import Requests
from hetero_sglang.sglang.version import installed

from .arithmetic import divergence

COLUMNS = ("nll", "kl", "first", "decoded")
_STATE = "__forcing__"
requests: Requests = installed("requests")


def processor() -> str:
    """What a request carries as `custom_logit_processor`: the class by its name, which the server imports itself."""
    return json.dumps({"callable": pickle.dumps(Forced).hex()})


class Forced:
    """As SGLang's CustomLogitProcessor; SGLang makes one per batch, so what a request has seen is kept with it."""

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> torch.Tensor:
        for row, params in zip(logits, custom_param_list or [], strict=True):
            if params and "forced" in params:
                if _STATE not in params:
                    params[_STATE] = Progress(params, row.numel())
                params[_STATE].step(row, params["__req__"])
        return logits


class Progress:
    """Where one request is in its continuation, and its scores so far."""

    def __init__(self, params: dict[str, Any], vocabulary: int) -> None:
        self.forced, self.record = params["forced"], Path(params["record"])
        self.at = self.retractions = 0
        self.astray = False
        self.scores = np.zeros((len(self.forced), len(COLUMNS)))
        self.reference = np.load(params["against"], mmap_mode="r") if "against" in params else None
        self.kept: np.memmap | None = None
        if "distribution" in params:
            self.distribution = Path(params["distribution"])
            shape = (len(self.forced), vocabulary)
            self.kept = np.lib.format.open_memmap(_own(self.distribution), "w+", np.float32, shape)

    def step(self, row: torch.Tensor, request: Any) -> None:
        """Score `row`, and force its token; a chunk before a prompt's last is sampled too, for nothing."""
        if _ends_within_prompt(request):
            return
        decoded = self.at > 0
        if request.retraction_count != self.retractions:  # prefilled again; a token under way then is lost
            self.retractions, self.at, decoded = request.retraction_count, len(request.output_ids), False
        # With overlap scheduling this step's input is sampled, and not yet among the request's tokens.
        self.astray |= self.at - len(request.output_ids) not in (0, 1)
        if self.astray or self.at >= len(self.forced):  # the latter: a step that overlaps the request's end
            return
        token = self.forced[self.at]
        own = row.float().log_softmax(-1)
        self.scores[self.at] = (-float(own[token]), self._divergence(own), int(own.argmax()), decoded)
        if self.kept is not None:
            self.kept[self.at] = own.cpu().numpy()
        row.fill_(-torch.inf)
        row[token] = 0.0
        self.at += 1
        if self.at == len(self.forced):
            self._save()

    def _divergence(self, own: torch.Tensor) -> float:
        if self.reference is None:
            return 0.0
        return divergence(torch.from_numpy(self.reference[self.at].copy()).to(own.device), own)

    def _save(self) -> None:
        if self.kept is not None:
            self.kept.flush()
            self.kept = None
            os.replace(_own(self.distribution), self.distribution)
        with _own(self.record).open("wb") as file:
            np.save(file, self.scores)
        os.replace(_own(self.record), self.record)


def _ends_within_prompt(request: Any) -> bool:
    end = requests.end(request)
    return end is not None and end < len(request.full_untruncated_fill_ids)


def _own(path: Path) -> Path:
    """Each tensor-parallel rank samples, and writes the same."""
    return path.with_name(f"{path.name}.{os.getpid()}")
