"""Words: one token each, a turn can be read back, and tells nothing that is not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minigrid")

from benchmarks.navigation.demonstration import ACTION, NONE, PLACE, SEEN, THING, demonstrate  # noqa: E402
from benchmarks.navigation.expert import Expert  # noqa: E402
from benchmarks.navigation.layout import LAYOUTS, VIEWS, Layout  # noqa: E402
from benchmarks.navigation.sight import UNSEEN  # noqa: E402
from benchmarks.navigation.words import (  # noqa: E402
    ACTIONS,
    IDS,
    REPLY,
    WORDS,
    action_of,
    decode,
    encode,
    most_tokens,
    read_turn,
    tokenizer_files,
    turn_words,
)
from benchmarks.navigation.world import ACTIONS as OF_THE_WORLD  # noqa: E402
from benchmarks.navigation.world import World  # noqa: E402

LAYOUT = Layout(rooms=3, locked=2)


def test_there_is_a_word_for_everything_and_each_once() -> None:
    assert len(set(WORDS)) == len(WORDS) < 256
    assert set(ACTIONS) == set(OF_THE_WORLD)


def test_a_turn_is_read_back_from_its_words_and_ids() -> None:
    for view in VIEWS:
        world = World(Layout(rooms=3, view=view), 2)
        expert = Expert(world.layout)
        while not world.over:
            sight = world.look()
            words = turn_words(sight)
            assert read_turn(decode(encode(words))) == sight
            reply = expert.reply(sight)
            assert action_of(decode(encode(reply.words))) == reply.action
            world.act(reply.action)
    with pytest.raises(ValueError, match="not the words of a turn"):
        read_turn(words[:-1])


def test_a_turn_does_not_change_with_what_cannot_be_seen() -> None:
    world = World(LAYOUT, 5)
    sight = world.look()
    seen = {place for _, place in sight.seen()}
    before = turn_words(sight)
    hidden = [(x, y) for x in range(world.width) for y in range(world.height) if (x, y) not in seen]
    assert len(hidden) > 100
    for place in hidden:
        world.grid.set(*place, None)
    view = [word for row in world.look().view for word in row]
    assert before == turn_words(world.look())
    assert view.count(UNSEEN) == sum(word == UNSEEN for row in sight.view for word in row)


def test_the_tokenizer_gives_the_ids_of_the_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, content in tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = " ".join(decode(demonstrate(LAYOUT, 1).ids[1:]))
    assert tokenizer.encode(text) == demonstrate(LAYOUT, 1).ids.tolist()
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    assert tokenizer.bos_token_id == IDS["<s>"]
    assert tokenizer.encode("nonsense", add_special_tokens=False) == [IDS["<unk>"]]


def test_a_demonstration_teaches_the_experts_reply_at_every_turn() -> None:
    shown = demonstrate(LAYOUT, 3)
    assert shown.targets[:-1].tolist() == shown.ids[1:].tolist()
    kinds = [(shown.kinds == kind).sum() for kind in (THING, PLACE, ACTION, NONE)]
    turns = len(shown.turns)
    seen = np.flatnonzero(shown.kinds == SEEN)
    assert {decode(shown.targets[seen[0::2]])[0][0], decode(shown.targets[seen[1::2]])[0][0]} == {"x", "y"}
    assert kinds == [turns, 4 * turns, turns, 1]
    for number in range(turns):
        alone = shown.turn(number)
        words = decode(alone.ids)
        assert words[0] == "<s>" and words[1] == "at" and words[-1] in ACTIONS
        assert np.isin(alone.kinds, (THING, PLACE, ACTION, NONE)).sum() == REPLY + 1
        assert alone.targets[:-1].tolist() == alone.ids[1:].tolist()


def test_slips_are_done_but_not_taught() -> None:
    calm, rough = (demonstrate(LAYOUT, 4, slips) for slips in (0.0, 0.3))
    assert demonstrate(LAYOUT, 4, 0.3).ids.tolist() == rough.ids.tolist()
    assert calm.ids.tolist() != rough.ids.tolist()
    at = np.flatnonzero(rough.kinds[:-1] == ACTION)
    differing = rough.ids[at + 1] != rough.targets[at]
    assert 0 < differing.mean() < 0.6
    aimless = rough.kinds[:-1] == NONE  # the words after another aim
    assert aimless.sum() % (REPLY - 1) == 0 and aimless.any()


def test_a_history_fits_its_bound() -> None:
    layout = LAYOUTS["corridor"]
    lengths = [len(demonstrate(layout, seed).ids) for seed in range(6)]
    assert max(lengths) > 4096
    assert max(lengths) < most_tokens(layout) < 24_000
