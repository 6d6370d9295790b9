"""A tree of thoughts: each step's thoughts are sampled in forks, judged by `select`, and the best few are kept.

A thought is the next entry of an answer. Sampled hot, many are wrong; a judge, who reads the document again and is
asked for that entry alone, gives the log probability of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sglang as sgl

from benchmarks.recall import Document, Language

from .outcome import Answer, Outcome
from .wording import BEGIN, NUMBERS, ask

DEPTH = 3  # entries of the answer
THOUGHTS = 8  # sampled at each step
KEPT = 2
HEAT = 2.2


@dataclass(frozen=True)
class Path:
    """Thoughts up to a step, the state that has generated them, and the sum of their log probabilities."""

    state: Any
    thoughts: tuple[str, ...] = ()
    score: float = 0.0


def run(backend: sgl.RuntimeEndpoint, language: Language, tokens: int, seed: int = 0) -> Outcome:
    """Search for an answer of three entries out of a document of `tokens` tokens."""
    document = language.document(seed, tokens, tokens // 48)
    names = language.ask(document, seed, DEPTH).names
    outcome = Outcome(
        f"tree of thought: {DEPTH} entries of a document of {tokens} tokens, {THOUGHTS} thoughts for each"
    )
    kept = search.run(language, document, names, outcome, backend=backend).ret_value
    for name, thought in zip(names, kept.thoughts, strict=True):
        outcome.answers.append(Answer(name, thought.strip(), " ".join(document.entries[name])))
    return outcome


@sgl.function
def search(s: Any, language: Language, document: Document, names: Sequence[str], outcome: Outcome) -> Path:
    """The best path of all names."""
    s += BEGIN + document.text
    root = s.fork(1)[0]
    root += ask(language, *names)
    paths, sampled, right = [Path(root)], 0, 0
    for step, name in enumerate(names):
        children = [child for path in paths for child in think(path, name, step, THOUGHTS // len(paths), outcome)]
        truth = " " + " ".join(document.entries[name])
        sampled, right = sampled + len(children), right + sum(child.thoughts[-1] == truth for child in children)
        paths = best(judge(s, language, name, children), KEPT)
    outcome.notes.append(f"{right} of {sampled} thoughts were right when they were sampled")
    return paths[0]


def think(path: Path, name: str, step: int, count: int, outcome: Outcome) -> list[Path]:
    """Ways on from a path, as they are sampled."""
    forks = path.state.fork(count)
    forks += f"{',' if step else ''} {name}" + sgl.gen("thought", max_tokens=8, regex=NUMBERS, temperature=HEAT)
    children = []
    for fork in forks:
        outcome.count(fork.get_meta_info("thought"))
        children.append(Path(fork, (*path.thoughts, fork["thought"]), path.score))
    return children


def judge(s: Any, language: Language, name: str, children: Sequence[Path]) -> list[Path]:
    """The same with what the judge thinks of their last thoughts."""
    thoughts = list(dict.fromkeys(child.thoughts[-1] for child in children))
    with s.copy() as judging:
        judging += ask(language, name) + f" {name}" + sgl.select("best", thoughts)
        scores = dict(zip(thoughts, judging.get_meta_info("best")["normalized_prompt_logprobs"], strict=True))
    return [Path(child.state, child.thoughts, child.score + scores[child.thoughts[-1]]) for child in children]


def best(paths: Sequence[Path], count: int) -> list[Path]:
    """Those of the highest scores, the first of those that say the same."""
    different = {path.thoughts: path for path in reversed(paths)}.values()
    return sorted(different, key=lambda path: path.score, reverse=True)[:count]
