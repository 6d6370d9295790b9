"""Episodes: a player in a world, turn by turn, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .expert import Expert
from .layout import Layout
from .words import BOS, IDS, action_of, decode, encode, turn_words
from .world import World


class Player(Protocol):
    """Who replies to histories of ids; several at once."""

    def replies(self, histories: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
        """For each (number of the episode, all its ids so far) the REPLY ids that it says next."""


@dataclass(frozen=True)
class Outcome:
    """One episode: how it ended, what was bumped into, and how many steps the expert takes in the same world."""

    seed: int
    reached: bool
    steps: int
    expert: int
    hits: int  # steps into a hazard
    bumps: int  # steps into a wall, a closed door or a key
    burnt: bool
    unread: int  # replies without an action
    tokens: int  # of the whole history

    @property
    def efficiency(self) -> float:
        """The expert's steps over the agent's, at most 1; 0 where the goal was not reached (SPL)."""
        return self.expert / max(self.steps, self.expert) if self.reached else 0.0


@dataclass
class Episode:
    """A world that is being played."""

    layout: Layout
    seed: int

    def __post_init__(self) -> None:
        self.world = World(self.layout, self.seed)
        self.ids: list[int] = [IDS[BOS]]
        self.unread = 0

    def look(self) -> list[int]:
        """Add what is seen now; all ids so far."""
        self.ids += encode(turn_words(self.world.look()))
        return self.ids

    def act(self, reply: Sequence[int]) -> None:
        """Add the reply and do its action; the agent waits where it has none."""
        self.ids += reply
        action = action_of(decode(reply))
        self.unread += action is None
        self.world.act(action or "wait")

    def outcome(self) -> Outcome:
        """What came of it."""
        world = self.world
        best = expert_steps(self.layout, self.seed)
        return Outcome(
            self.seed,
            world.reached,
            world.step_count,
            best,
            world.hits,
            world.bumps,
            world.burnt,
            self.unread,
            len(self.ids),
        )


def play(layout: Layout, seeds: Sequence[int], player: Player) -> list[Outcome]:
    """All worlds of the seeds at once, in step."""
    episodes = [Episode(layout, seed) for seed in seeds]
    while going := [n for n, each in enumerate(episodes) if not each.world.over]:
        histories = [(n, episodes[n].look()) for n in going]
        for n, reply in zip(going, player.replies(histories), strict=True):
            episodes[n].act(reply)
    return [each.outcome() for each in episodes]


def expert_steps(layout: Layout, seed: int) -> int:
    """Steps of the expert in that world; the limit where it does not get to the goal."""
    world, expert = World(layout, seed), Expert(layout)
    while not world.over:
        world.act(expert.reply(world.look()).action)
    return world.step_count


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares and means over episodes; collisions by a hundred steps."""
    count, steps = len(outcomes), sum(each.steps for each in outcomes)
    return {
        "episodes": count,
        "success": sum(each.reached for each in outcomes) / count,
        "efficiency": sum(each.efficiency for each in outcomes) / count,
        "hits_per_100_steps": 100 * sum(each.hits for each in outcomes) / steps,
        "bumps_per_100_steps": 100 * sum(each.bumps for each in outcomes) / steps,
        "burnt": sum(each.burnt for each in outcomes) / count,
        "unread": sum(each.unread for each in outcomes),
        "steps": steps,
        "mean_tokens": sum(each.tokens for each in outcomes) / count,
        "most_tokens": max(each.tokens for each in outcomes),
    }
