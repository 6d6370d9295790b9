"""Things to do with a long real text, whose right answer is known or is plain SGLang's own.

Answers are forced token by token as a text's continuation is, so that a wrong token does not lead the rest astray; what
counts is whether the tokens that matter are a policy's first choice too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.quality.client import Client
from hetero_sglang.errors import HeteroError

from .sources import KINDS
from .texts import HELD_OUT, Text, texts

TOWNS = (
    "Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Vienna", "Dakar", "Quito", "Dublin", "Hanoi", "Athens", "Havana",
    "Cairo", "Ottawa", "Prague", "Riga",
)  # fmt: skip
FACTS = 8
TURNS = (
    "What is this text about?",
    "Which point in it seems most important to you?",
    "How does the text begin?",
    "Name two terms that the text uses and explain one of them.",
    "What does the text say about errors or mistakes?",
    "Give an example that stands in the text.",
    "How does the text end?",
    "Who should read this text, and why?",
    "Which question does the text leave open?",
    "Sum up what we said so far in one sentence.",
)
_ANSWER = 48  # tokens of a turn's answer, at most
_GIVEN = 8  # words of a paragraph that say which one is meant
_ROOM = 400  # tokens of a question and its answer

Piece = tuple[str, bool]  # of an answer, and whether its tokens count


def needle(document: str, number: int) -> tuple[str, list[Piece]]:
    """One fact at a depth that goes round with `number`."""
    rng = random.Random(f"needle {number}")
    town, code = rng.choice(TOWNS), _code(rng)
    held = _insert(document, [_fact(town, code)], [(0.1 + 0.2 * number) % 1.0])
    question = f"What is the access code of the {town} office? It is in the text above."
    return f"{held}\n\n{question}", [(f"The access code of the {town} office is", False), (f" {code}", True)]


def needles(document: str, number: int) -> tuple[str, list[Piece]]:
    """FACTS facts all over the text, asked for in another order."""
    rng = random.Random(f"needles {number}")
    codes = {town: _code(rng) for town in rng.sample(TOWNS, FACTS)}
    held = _insert(document, [_fact(*each) for each in codes.items()], [(n + 0.5) / FACTS for n in range(FACTS)])
    asked = rng.sample(list(codes), FACTS)
    question = f"List the access codes of these offices, which are in the text above: {', '.join(asked)}."
    return f"{held}\n\n{question}", [
        piece for town in asked for piece in ((f"The access code of the {town} office is", False),
                                              (f" {codes[town]}", True), (".\n", False))
    ]  # fmt: skip


def copy(document: str, number: int) -> tuple[str, list[Piece]]:
    """A paragraph word for word, but for one word that is to be another."""
    paragraphs = [words for part in document.split("\n\n") if 30 <= len(words := part.split()) <= 90]
    if not paragraphs:
        raise HeteroError("A text here has no paragraph of 30 to 90 words to copy: ask for other --texts.")
    words = paragraphs[int(len(paragraphs) * (0.1 + 0.2 * number) % len(paragraphs))]
    counts = Counter(word for word in words[_GIVEN:] if word.isalpha() and len(word) > 3)
    old = counts.most_common(1)[0][0] if counts else words[-1]
    edited = ["lantern" if word == old else word for word in words]
    begins = " ".join(words[:_GIVEN])
    question = (
        f'Repeat the paragraph of the text above that begins with "{begins}", word for word, but write "lantern" '
        f'wherever it says "{old}".'
    )
    return f"{document}\n\n{question}", [(" ".join(edited[:_GIVEN]), False), (" " + " ".join(edited[_GIVEN:]), True)]


MADE: dict[str, Callable[[str, int], tuple[str, list[Piece]]]] = {"needle": needle, "needles": needles, "copy": copy}
CHAT = "chat"
TASKS = (*MADE, CHAT)


def tasks(kinds: Sequence[str], tokenizer: Any, tokens: int, count: int) -> list[Text]:
    """`count` of each kind, over documents of about `tokens` tokens; of a chat its document alone.

    Raises HeteroError where there are not so many documents."""
    documents = _documents(tokenizer, tokens, count)
    made: list[Text] = []
    for kind in kinds:
        for number, document in enumerate(documents):
            body = tokenizer.decode(document.ids, skip_special_tokens=True)
            if kind == CHAT:
                made.append(Text(kind, document.names, body, (), 0))
                continue
            asked, answer = MADE[kind](body, number)
            made.append(_text(kind, document.names, asked, _prompt(tokenizer, said(asked)), answer, tokenizer))
    return made


def talk(client: Client, tokenizer: Any, chat: Text) -> list[Text]:
    """A turn each, answered by the server itself; `client`'s is plain SGLang."""
    messages: list[dict[str, str]] = []
    made = []
    for question in TURNS:
        messages += said(question if messages else f"{chat.text}\n\n{question}")
        prompt = _prompt(tokenizer, messages)
        answer = client.continued(prompt, _ANSWER)
        made.append(Text(chat.kind, chat.names, question, (*prompt, *answer), len(prompt)))
        messages += [{"role": "assistant", "content": tokenizer.decode(answer, skip_special_tokens=True)}]
    return made


def _documents(tokenizer: Any, tokens: int, count: int) -> list[Text]:
    """One of each kind of source after the other."""
    each = -(-count // len(KINDS))
    made = texts(list(KINDS), HELD_OUT, tokenizer, tokens - _ROOM, each)
    return [made[kind * each + turn] for turn in range(each) for kind in range(len(KINDS))][:count]


def _text(
    kind: str, names: tuple[str, ...], asked: str, prompt: list[int], answer: list[Piece], tokenizer: Any
) -> Text:
    ids, counts = list(prompt), []
    for words, matters in answer:
        piece = tokenizer(words, add_special_tokens=False)["input_ids"]
        ids += piece
        counts += [matters] * len(piece)
    return Text(kind, names, asked, tuple(ids), len(prompt), tuple(counts))


def _prompt(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    words = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(words, add_special_tokens=False)["input_ids"]


def said(words: str) -> list[dict[str, str]]:
    """By the user."""
    return [{"role": "user", "content": words}]


def _fact(town: str, code: str) -> str:
    return f"The access code of the {town} office is {code}."


def _code(rng: random.Random) -> str:
    return f"{rng.randrange(10_000, 100_000)}"


def _insert(document: str, facts: Sequence[str], depths: Sequence[float]) -> str:
    """Each fact a paragraph of its own, after the line that ends next behind its depth."""
    for fact, depth in sorted(zip(facts, depths, strict=True), key=lambda each: -each[1]):
        at = document.find("\n", int(depth * len(document)))
        at = len(document) if at < 0 else at
        document = f"{document[:at]}\n\n{fact}\n\n{document[at:]}"
    return document
