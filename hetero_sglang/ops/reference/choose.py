"""The lazy rule: what a head wants most and lacks comes in, what it has not wanted for longest goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PART = 4  # a quarter of a head's places is what a step can want
BINS = 128  # of scores, and of times since a run was wanted
FINE = 21  # low bits of a float32 that a score's bin leaves out: four bins to an octave
LEAST = 384  # bins of float32 below the scores that are told apart, 2 ** -31 and above
NEVER = 4096  # a run not wanted since its prompt ended has `used` = its score's bin - NEVER


@dataclass(frozen=True)
class Swaps:
    """Runs that come, m in all: `head` [m], `place` [m] among the head's selected runs, `run` [m] of the request's
    tokens; all int64, in order of heads. `late` counts wanted runs beyond the bound, or for which no place was free.
    """

    head: torch.Tensor
    place: torch.Tensor
    run: torch.Tensor
    late: int


def score_bin(scores: torch.Tensor) -> torch.Tensor:
    """Of scores float32 in [0, 1]: int32 in [0, BINS)."""
    return ((scores.view(torch.int32) >> FINE) - LEAST).clamp(0, BINS - 1)


def used_at_first(scores: torch.Tensor) -> torch.Tensor:
    """`used` int32 of runs that a prompt's end chose by these scores >= 0: before any step, the best latest."""
    return score_bin(scores.float()) - NEVER


def used_bin(used: torch.Tensor, length: int | torch.Tensor) -> torch.Tensor:
    """Bin of `used` int32 for a request of `length` tokens, in [0, BINS): the lower, the longer unwanted.

    Half octaves of the prompt's score below, quarter octaves of the steps since then above.
    """
    half = BINS // 2
    never = ((used + NEVER) // 2).clamp(0, half - 1)
    age = ((length - used).clamp(min=1).float().view(torch.int32) >> FINE) - 508  # four times its logarithm
    return torch.where(used < 0, never, BINS - 1 - age.clamp(max=half - 1))


def run_scores(scores: torch.Tensor, run: int) -> torch.Tensor:
    """Each complete run's best token: [C, L] -> [C, L // run]."""
    runs = scores.shape[1] // run
    return scores[:, : runs * run].unflatten(1, (runs, run)).amax(2)


def choose(
    scores: torch.Tensor, held: torch.Tensor, used: torch.Tensor, length: int, low: int, high: int, want: int, most: int
) -> Swaps:
    """One step of the rule for C heads; `used` is brought up to date, moving the rows is the caller's.

    scores [C, U] float32 of the request's runs; held [C, n] int32: each selected run; used [C, n] int32: the request's
    length when it was last wanted, else `used_at_first`. Runs in [low, high) may come in, no others are held. Wanted
    are those whose score's bin is that of the `want`th best or higher, and not the lowest, where nothing is told apart.
    Of the wanted that are not held the first `most` come, each in the place of the unwanted run with the lowest
    `used_bin`; of equals the first.
    """
    heads, places = held.shape
    inside = scores[:, low:high]  # [C, n']
    count = min(want, inside.shape[1])
    if not count or not places:
        nothing = torch.empty(0, dtype=torch.int64)
        return Swaps(nothing, nothing, nothing, 0)
    edge = score_bin(inside.topk(count).values[:, -1:]).clamp(min=1)  # [C, 1]
    wanted = score_bin(inside) >= edge  # [C, n']
    at = held.long() - low
    hit = wanted.gather(1, at)  # [C, n]
    used[hit] = length
    missing = wanted.scatter(1, at, False)
    # Places in order of use; wanted ones last, which are not given away.
    order = torch.where(hit, BINS, used_bin(used, length)).sort(dim=1, stable=True).indices  # [C, n]
    free = places - hit.sum(1)  # [C]
    lacking = missing.sum(1)  # [C]
    comes = torch.minimum(lacking, free).clamp(max=most)
    head, run = missing.nonzero().unbind(1)
    number = torch.arange(len(head), device=head.device) - (lacking.cumsum(0) - lacking)[head]  # within its head
    taken = number < comes[head]
    head, run, number = head[taken], run[taken] + low, number[taken]
    place = order[head, number]
    used[head, place] = length
    return Swaps(head, place, run, int((lacking - comes).sum()))
