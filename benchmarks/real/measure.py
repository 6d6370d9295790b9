"""One text through one server, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from benchmarks.quality.client import Client
from benchmarks.quality.counters import deltas
from benchmarks.recall.response import open_response
from hetero_sglang.errors import HeteroError

from .forcing import COLUMNS, processor
from .setting import FULL, Setting
from .texts import Text

Counted = dict[str, int | None]


@dataclass
class Measure:
    """Texts and what is forced after their prompts, through one setting's server after another's.

    The first must be FULL's: its distributions stay in `folder` for the others.
    """

    texts: Sequence[Text]
    folder: Path
    parallel: int = 1
    references: dict[int, np.ndarray] = field(default_factory=dict)

    def kind(self, client: Client, setting: Setting, kind: str) -> tuple[list[dict[str, Any]], Counted]:
        """Scores of every text of a kind, and what the server's counters grew by meanwhile."""
        numbers = [number for number, text in enumerate(self.texts) if text.kind == kind]
        before = client.stats()
        scores: list[dict[str, Any]] = []
        with ThreadPoolExecutor(self.parallel) as pool:
            for start in range(0, len(numbers), self.parallel):
                together = numbers[start : start + self.parallel]
                if not start or self.texts[together[0]].names != self.texts[numbers[start - 1]].names:
                    client.flush()  # a conversation's turns share their beginning
                scores += pool.map(lambda number: self.one(client, setting, number), together)
        return scores, deltas(before, client.stats())

    def one(self, client: Client, setting: Setting, number: int) -> dict[str, Any]:
        """Scores of one text. Raises HeteroError if the server did not follow it token by token."""
        text, record = self.texts[number], self.folder / f"{uuid4().hex}.npy"  # settings may be measured at once
        distribution = str(self.folder / f"{number}.full.npy")
        forced = list(text.ids[text.prompt :])
        params = {"forced": forced, "record": str(record)}
        params["distribution" if setting == FULL else "against"] = distribution
        begun = time.monotonic()
        output = generate(client, list(text.ids[: text.prompt]), forced, params)
        seconds = time.monotonic() - begun
        if output != forced or not record.exists():
            raise HeteroError(f"The server of {setting.label} left the text ({text.name}): see its log.")
        scores = np.load(record)
        record.unlink()
        if setting == FULL:
            self.references[number] = scores
        return {"text": text.name, **score(scores, self.references[number], text), "seconds": seconds}


def generate(client: Client, prompt: list[int], forced: list[int], params: dict[str, Any]) -> list[int]:
    """The tokens that the server sampled."""
    sampling = {"temperature": 0, "max_new_tokens": len(forced), "ignore_eos": True, "custom_params": params}
    body = {"input_ids": prompt, "sampling_params": sampling, "custom_logit_processor": processor()}
    with open_response(client.url, "/generate", body, client.timeout, "a text") as response:
        return json.load(response)["output_ids"]


def score(scores: np.ndarray, reference: np.ndarray, text: Text) -> dict[str, Any]:
    """Means over decode steps that count; what a prefill pass sampled, as every first token, is no decode step."""
    nll, kl, first, decoded = (scores[:, COLUMNS.index(name)] for name in COLUMNS)
    decoded = decoded.astype(bool) & reference[:, COLUMNS.index("decoded")].astype(bool)
    steps = decoded if text.counts is None else decoded & np.array(text.counts)
    if not steps.any():
        raise HeteroError("No decode step was scored: ask for more than 0 (--steps).")
    chosen = reference[:, COLUMNS.index("first")]
    same, forced = first == chosen, np.array(text.ids[text.prompt :])
    return {
        "decoded": int(decoded.sum()),
        "steps": int(steps.sum()),
        "right": int((first == forced)[steps].sum()),
        "right_full": int((chosen == forced)[steps].sum()),
        "whole": bool((first == forced)[steps].all()),
        "whole_full": bool((chosen == forced)[steps].all()),
        "nll": float(nll[steps].mean()),
        "nll_full": float(reference[steps, COLUMNS.index("nll")].mean()),
        "kl": float(kl[steps].mean()),
        "same_first": float(same[steps].mean()),
        "nll_prefill": float(nll[0]),
        "kl_prefill": float(kl[0]),
    }
