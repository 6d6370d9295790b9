"""Who talks about what, when, and for how long: decided before anything is asked, from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Load:
    """What the command line asks for; lengths in tokens, times in seconds."""

    num_clients: int = 16
    num_rounds: int = 4
    documents: int = 10
    document_length: int = 32768
    zipf: float = 1.0  # document k is talked about in proportion to 1 / k ** zipf
    system_length: int = 0  # tokens that all conversations begin with
    request_length: int = 128  # of a user's message
    output_length: int = 128
    output_spread: float = 0.0  # lengths of outputs lie within so many times their mean
    think_time: tuple[float, float] = (0.2, 1.0)
    request_rate: float | None = None  # conversations that begin in a second, by a Poisson process; None: all at once
    abort_rate: float = 0.0  # share of the answers that are not read to their end
    short_chats: int = 0  # clients beside them who talk about nothing that others know
    short_lengths: tuple[int, ...] = (200, 400, 800)  # of what these begin with, in turn
    seed: int = 0

    def opening_length(self, document: int) -> int:
        """Tokens of a document; of a short chat's beginning where `document` is below 0, as in `talks`."""
        return self.document_length if document >= 0 else self.short_lengths[~document % len(self.short_lengths)]


@dataclass(frozen=True)
class Round:
    """One message: how long its answer may be, what passes before it, and after how many tokens the reader leaves."""

    output: int
    think: float
    leaves: int | None


@dataclass(frozen=True)
class Talk:
    """One client's conversation, which begins `begins` seconds after the run."""

    client: int
    document: int
    begins: float
    rounds: tuple[Round, ...]


def talks(load: Load) -> list[Talk]:
    """In the order in which they begin."""
    rng = random.Random(load.seed)
    weights = [1 / (k + 1) ** load.zipf for k in range(load.documents)]
    clients = load.num_clients + load.short_chats
    gaps = [rng.expovariate(load.request_rate) if load.request_rate else 0.0 for _ in range(clients)]
    made = []
    for client, begins in enumerate(accumulate(gaps)):
        short = client - load.num_clients  # of the short chats, or below 0
        document = rng.choices(range(load.documents), weights)[0] if short < 0 else ~short
        made.append(
            Talk(client, document, begins, tuple(_round(load, number, rng) for number in range(load.num_rounds)))
        )
    return made


def _round(load: Load, number: int, rng: random.Random) -> Round:
    output = max(1, round(load.output_length * (1 + load.output_spread * rng.uniform(-1, 1))))
    think = rng.uniform(*load.think_time) if number else 0.0
    leaves = rng.randint(1, output) if rng.random() < load.abort_rate else None
    return Round(output, think, leaves)
