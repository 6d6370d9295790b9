"""The words of the navigation language: what is seen and what is replied, as tokens of a small vocabulary.

A turn is one sight and one reply, in words that each are one token:

    at x3 y7 east nothing <the view's cells, row by row> sees key-red x5 y3 so
    key-red x5 y3 x4 y7 forward

The reply says what is wanted and where it is, the next cell on the way there, and the action.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .layout import MOST_ROOMS, ROOM_WIDTH, VIEWS, Layout
from .sight import BALL, FLOOR, GOAL, HEADINGS, LAVA, NOTHING, UNSEEN, WALL, Cell, Sight

BOS, EOS, PAD, UNKNOWN = SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")
COLORS = ("blue", "green", "grey", "purple", "red", "yellow")
ACTIONS = ("left", "right", "forward", "pickup", "toggle", "wait")
KEYS = tuple(f"key-{color}" for color in COLORS)
DOORS = tuple(f"door-{color}-{state}" for color in COLORS for state in ("open", "closed", "locked"))
COLUMNS = tuple(f"x{x}" for x in range(MOST_ROOMS * (ROOM_WIDTH + 1) + 1))
ROWS = tuple(f"y{y}" for y in range(Layout().height))
WORDS = (
    *SPECIAL, "at", "sees", "so", *COLUMNS, *ROWS, *HEADINGS, NOTHING,
    UNSEEN, FLOOR, WALL, BALL, GOAL, LAVA, *KEYS, *DOORS, *ACTIONS,
)  # fmt: skip
IDS = {word: number for number, word in enumerate(WORDS)}
REPLY = 6  # words


@dataclass(frozen=True)
class Reply:
    """What is wanted, where it is, the next cell on the way, and the action."""

    thing: str
    target: Cell
    next: Cell
    action: str

    @property
    def words(self) -> list[str]:
        """The REPLY words of it."""
        return [self.thing, *_place(self.target), *_place(self.next), self.action]


def turn_words(sight: Sight) -> list[str]:
    """A turn up to its reply."""
    things = [word for thing, place in sight.things() for word in (thing, *_place(place))]
    view = [name for row in sight.view for name in row]
    return ["at", *_place(sight.place), HEADINGS[sight.heading], sight.holding, *view, "sees", *things, "so"]


def read_turn(words: Sequence[str]) -> Sight:
    """The sight that `turn_words` told. Raises ValueError for anything else."""
    side = next((n for n in VIEWS if len(words) > 5 + n * n and words[5 + n * n] == "sees"), 0)
    if not side or words[0] != "at" or words[-1] != "so":
        raise ValueError("These are not the words of a turn.")
    view = tuple(tuple(words[5 + side * j : 5 + side * (j + 1)]) for j in range(side))
    return Sight((int(words[1][1:]), int(words[2][1:])), HEADINGS.index(words[3]), words[4], view)


def action_of(reply: Sequence[str]) -> str | None:
    """The action of a reply; None where it has none."""
    return reply[-1] if len(reply) == REPLY and reply[-1] in ACTIONS else None


def encode(words: Sequence[str]) -> list[int]:
    """Ids of words; KeyError for one that is not in the language."""
    return [IDS[word] for word in words]


def decode(ids: Sequence[int]) -> list[str]:
    """Words of ids; UNKNOWN for a row of the embedding that is no word."""
    return [WORDS[number] if number < len(WORDS) else UNKNOWN for number in ids]


def most_tokens(layout: Layout) -> int:
    """More than an episode of the layout ever has: a view shows fewer than ten things."""
    return 1 + layout.limit * (7 + layout.view**2 + 30 + REPLY)


@cache
def tokenizer_files() -> dict[str, bytes]:
    """tokenizer.json and its configuration: one token a word, words parted by white space."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, IDS[BOS])])
    made.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
        "unk_token": UNKNOWN, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return {"tokenizer.json": made.to_str(pretty=True).encode(), "tokenizer_config.json": json.dumps(about).encode()}


def _place(cell: Cell) -> tuple[str, str]:
    return f"x{cell[0]}", f"y{cell[1]}"
