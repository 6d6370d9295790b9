"""Demonstrations: episodes of the expert with its reply at every turn, also where a slip has led away from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .expert import Expert
from .layout import Layout
from .sight import Sight
from .words import ACTIONS, BOS, IDS, Reply, encode, turn_words
from .world import World

# Kinds of targets: SEEN is where a thing stands that is seen; NONE counts for nothing.
TEXT, THING, PLACE, ACTION, NONE, SEEN = range(6)
_REPLY_KINDS = (THING, PLACE, PLACE, PLACE, PLACE, ACTION)
REPLY = len(_REPLY_KINDS)  # words
_AIMLESS = (THING, NONE, NONE, NONE, NONE, NONE)  # what follows another aim than the expert's teaches nothing
_AGAIN = 0.5  # how likely a slip is done once more: a player that is stuck repeats itself


@dataclass(frozen=True)
class Demonstration:
    """An episode: ids [n] as they stood, target [n] what should follow each id, kind [n] of that target, all uint8.

    `turns` [m] is where each turn begins, bos the beginning of the first.
    """

    ids: np.ndarray
    targets: np.ndarray
    kinds: np.ndarray
    turns: list[int]

    def turn(self, number: int) -> Demonstration:
        """One turn alone, as if it were the first: what a player without memory is shown."""
        begin = self.turns[number] or 1  # bos comes anew
        end = self.turns[number + 1] if number + 1 < len(self.turns) else len(self.ids)
        first = np.array([IDS[BOS]], np.uint8), self.ids[begin : begin + 1], np.array([TEXT], np.uint8)
        parts = (self.ids[begin:end], self.targets[begin:end], self.kinds[begin:end])
        ids, targets, kinds = (np.concatenate(pair) for pair in zip(first, parts, strict=True))
        kinds[-1] = NONE
        return Demonstration(ids, targets, kinds, [0])


def demonstrate(layout: Layout, seed: int, slips: float = 0.0) -> Demonstration:
    """The expert's episode in the world of that seed.

    With likelihood `slips` a turn goes wrong: another action than the expert's is done, half of the time with another
    aim, and perhaps again in the turns that follow. The target is the expert's reply all the same, so that ways back
    are shown.
    """
    world, expert, draw = World(layout, seed), Expert(layout), np.random.default_rng((seed, 1))
    ids, targets, kinds, turns = [IDS[BOS]], [], [], [0]
    slip: Reply | None = None
    while not world.over:
        sight = world.look()
        right = expert.reply(sight)
        if draw.random() < (_AGAIN if slip else slips):
            slip = replace(slip, next=sight.place) if slip else _slip(right, sight, expert, draw)
        else:
            slip = None
        done = slip or right
        aimless = (done.thing, done.target) != (right.thing, right.target)
        reply_kinds = _AIMLESS if aimless else _REPLY_KINDS
        seen, said, things = encode(turn_words(sight)), encode(done.words), len(sight.things())
        ids += [*seen, *said]
        targets += [*seen, *encode(right.words)]
        kinds += [*([TEXT] * (len(seen) - 3 * things - 1)), *([TEXT, SEEN, SEEN] * things), TEXT, *reply_kinds]
        turns.append(len(ids))
        world.act(done.action)
    targets.append(IDS[BOS])  # after the last action nothing follows
    kinds.append(NONE)
    return Demonstration(np.array(ids, np.uint8), np.array(targets, np.uint8), np.array(kinds, np.uint8), turns[:-1])


def _slip(right: Reply, sight: Sight, expert: Expert, draw: np.random.Generator) -> Reply:
    """A reply with another action, and perhaps another aim."""
    action = ACTIONS[int(draw.integers(len(ACTIONS)))]
    known = expert.memory.known("door") + expert.memory.known("key")
    if draw.random() < 0.5 or not known:
        return replace(right, action=action)
    target = known[int(draw.integers(len(known)))]
    return Reply(expert.memory.cells[target], target, sight.place, action)
