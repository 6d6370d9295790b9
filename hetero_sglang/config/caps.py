"""How many rows each compressed head of a request keeps: the one place where lengths become caps."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hetero_sglang.config.description import Description

STRETCH = 1.125  # times the rows of a full head: a request that asks for more does not go on with it
SPARE = 128  # one of so many rows is a request's own, when it shares the others
ROOMY = 2  # times its sinks and ring: a head of as many rows has as many to choose as it always holds


@dataclass(frozen=True)
class Grant:
    """What a request may hold."""

    prompt: int  # tokens to prefill
    final: int  # tokens its working set is made for; more than the prompt
    limit: int  # tokens it may reach
    whole: bool  # every row is kept up to `dense_below` tokens; else it is compressed as its prompt ends
    shares: int = 0  # whose shares of rows its heads have: the model's, or an adapter's by its number from 1 on


@dataclass(frozen=True)
class Rows:
    """Hot rows by compressed head, each [heads] int64: of tokens (`caps`) and of the policy's index."""

    caps: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class CapRule:
    """Rows of a request's heads from its lengths; pure, so that every rank can tell what any rank's heads take.

    `fractions` [heads]: the share of its tokens each compressed head may keep; `adapters` [adapters, heads]: the same
    of requests of adapters that have a profile of their own. A prompt shorter than `dense_below`
    tokens keeps every row until it has that many, so requests that stay shorter are exact; a longer one keeps
    `fraction * final` rows per head. `reserve` bounds how much of max_new_tokens is reserved ahead (SGLang's own
    clip, managers/schedule_policy.py). What a policy's index takes comes out of a head's rows. `run`: so many
    neighbouring tokens come and go together, at most; rows to choose are whole runs."""

    policy: Description
    fractions: tuple[float, ...]
    page_size: int
    sink: int
    window: int
    dense_below: int
    reserve: int = 4096
    run: int = 1
    adapters: tuple[tuple[float, ...], ...] = ()

    @cached_property
    def _fractions(self) -> np.ndarray:
        return np.array((self.fractions, *self.adapters), dtype=np.float64)  # [1 + adapters, heads]

    @cached_property
    def _kinds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [np.unique(each, return_inverse=True) for each in self._fractions]

    def grant(self, prompt: int, max_new: int, done: int = 0, shares: int = 0) -> Grant:
        """For a request of `prompt` tokens that may generate `max_new`, of which it had `done` when it was retracted.

        What it asks for does not depend on where it was retracted, so it can always come back. It is made for one
        token more than it prefills at least: with overlap scheduling a finished request still runs one step."""
        length = prompt + done
        limit = max(prompt + max(1, max_new), length + 1)
        final = prompt + max(1, min(max_new, self.reserve))
        while final <= length:
            final = min(limit, 2 * final)
        return Grant(length, final, limit, prompt < self.dense_below, shares)

    def rows(self, grant: Grant) -> Rows:
        """Of every head, for a request that begins."""
        listed, fixed = self._listed(grant), self.sink + self.ring_rows
        most = fixed - (fixed - grant.final) // self.run * self.run  # whole runs
        least = min(grant.final, max(self.dense_below if grant.whole else 0, fixed + 1))
        share = np.ceil(self._fractions[grant.shares] * grant.final - 1e-9).astype(np.int64) - listed
        caps = np.maximum(least, share)
        chosen = -(-(caps - fixed) // self.run) * self.run
        caps = np.minimum(most, np.maximum(least, fixed + chosen))
        return Rows(caps, np.where(caps < grant.final, listed, 0))  # a head that keeps every token needs no index

    def grown(self, old: Grant, held: Rows) -> tuple[Grant, Rows]:
        """For twice the length: heads that still hold every token get more rows, the others stay as they are.

        A head that no longer keeps every token starts no index now: what came before is not at hand."""
        grant = replace(old, final=min(old.limit, 2 * old.final))
        caps = np.where(held.caps >= old.final, np.maximum(held.caps, self.rows(grant).caps), held.caps)
        listed = np.where((caps < grant.final) & (held.index > 0), self._listed(grant), held.index)
        return grant, Rows(caps, np.maximum(listed, held.index))

    def resumed(self, held: Rows, new: Grant, reached: int) -> Rows:
        """For a request that goes on with the rows of one that ended at `reached` tokens: heads that still hold every
        token get what is theirs by `new`, at least; full ones stay as they are."""
        caps = np.where(held.caps < reached, held.caps, np.maximum(held.caps, self.rows(new).caps))
        return Rows(caps, held.index)

    def suits(self, held: Rows, new: Grant, reached: int) -> bool:
        """Whether `resumed` leaves no head with much less than is its by `new`, and none with an index of its own."""
        full = held.caps < reached
        return not held.index.any() and bool((self.rows(new).caps <= STRETCH * held.caps)[full].all())

    def shared_pages(self, rows: Rows, reached: int) -> np.ndarray:
        """Pages [heads] that requests do not write to which go on from rows of `reached` tokens and share all of these
        but half a window: not the ring's, nor a few before it for what they look for."""
        behind = self.ring_rows + rows.caps // SPARE
        return np.minimum(rows.caps - behind, reached - self.slack).clip(min=0) // self.page_size

    @property
    def slack(self) -> int:
        """Tokens at a set's end that a request which goes on with it need not share."""
        return self.window // 2

    def _listed(self, grant: Grant) -> np.ndarray:
        """Rows [heads] of each head's index over the request's tokens."""
        if self.policy.index is None:
            return np.zeros(len(self.fractions), dtype=np.int64)
        kinds, kind = self._kinds[grant.shares]
        rows = [
            self.policy.index_rows(grant.prompt, grant.final, f, self.window) if f < 1 else 0 for f in kinds.tolist()
        ]
        return np.array(rows, dtype=np.int64)[kind]

    def pages(self, rows: Rows) -> np.ndarray:
        """Hot pages [2, heads] of each head's tokens and of its index."""
        return -(-np.stack((rows.caps, rows.index)) // self.page_size)

    @property
    def ring_rows(self) -> int:
        """Rows for a full head's most recent tokens: the longest run stays until all of it has left the window."""
        return self.window + self.run - 1

    def window_of(self, run: int) -> int:
        """Recent tokens of a full head that are among no selected runs of `run`: the ring keeps a whole run more."""
        return self.ring_rows - run + 1

    @property
    def ring(self) -> int:
        """The most rows of a full head that turn over."""
        return 1 << 30 if self.policy.recent_only else self.ring_rows

    def turning(self, cap: int) -> int:
        """How many of a head's `cap` rows do."""
        return max(1, min(cap - self.sink, self.ring))


def length_for(rows: int, fraction: float) -> int:
    """Smallest power of two (at least 512) of which this share is so many rows."""
    length = 512
    while fraction * length < rows and length < 1 << 20:
        length *= 2
    return length
