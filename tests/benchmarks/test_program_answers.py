"""What a program's model misreads is told as wrong, and nothing else is."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.chat_template import get_chat_template
from sglang.lang.choices import ChoicesDecision

from benchmarks.launch import RECALL
from benchmarks.programs import agent, multi_document, tree_of_thought
from benchmarks.programs.outcome import Outcome
from benchmarks.recall import Language

ENTRY = re.compile(r"Entry (\w+) (\d+ \d+)")
TOKENS = 1000


class Reader(BaseBackend):
    """Answers by looking into the text, at some names wrongly; sampled hot, one of two thoughts is wrong."""

    def __init__(self, misread: set[str]) -> None:
        super().__init__()
        self.misread, self.hot = misread, itertools.count()

    def get_chat_template(self) -> Any:
        return get_chat_template("default")

    def commit_lazy_operations(self, s: Any) -> None:
        pass

    def asked(self, text: str) -> tuple[dict[str, str], list[str], str]:
        """What the text's entries seem to say, the names of its last question, and what is answered by now."""
        read = {name: "111 222" if name in self.misread else numbers for name, numbers in ENTRY.findall(text)}
        question, _, answer = text.rpartition("Question:")[2].partition("?\nAnswer:")
        return read, question.split(", "), answer

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        read, names, answer = self.asked(s.text_)
        meta = {"prompt_tokens": 10, "cached_tokens": 8}
        if not answer:
            said = ",".join(f" {name.strip()} {read.get(name.strip(), '333 444')}" for name in names)
            return said, {**meta, "output_token_logprobs": [(-1.0, 0, None)]}
        name = answer.split()[-1]
        known = name in read and (sampling_params.temperature == 0 or next(self.hot) % 2 == 0)
        sureness = -1.0 if known else -5.0
        return " " + (read[name] if known else "333 444"), {**meta, "output_token_logprobs": [(sureness, 0, None)]}

    def select(self, s: Any, choices: list[str], temperature: float, choices_method: Any) -> ChoicesDecision:
        read, names, answer = self.asked(s.text_)
        right = " " + (read[answer.split()[-1]] if answer else names[0].strip())
        scores = [0.0 if choice == right else -9.0 for choice in choices]
        return ChoicesDecision(choices[scores.index(max(scores))], {"normalized_prompt_logprobs": scores})


@pytest.fixture(scope="module")
def language() -> Language:
    return Language.load(RECALL)


def run(program: Any, language: Language, *misread: str) -> Outcome:
    return program.run(Reader(set(misread)), language, TOKENS)


@pytest.mark.parametrize("program", [multi_document, tree_of_thought, agent])
def test_a_perfect_reader_is_right(language: Language, program: Any) -> None:
    outcome = run(program, language)
    assert outcome.right == outcome.total > 2, str(outcome)
    assert outcome.cached_tokens == 0.8 * outcome.prompt_tokens > 0


@pytest.mark.parametrize(("program", "lost"), [(multi_document, 1), (tree_of_thought, 1), (agent, 20)])
def test_a_misread_entry_is_wrong(language: Language, program: Any, lost: int) -> None:
    """An agent with a wrong code gets no further: it has made no right call, and found out nothing."""
    fine = run(program, language)
    (name,) = re.findall("[A-Z][a-z]+", f"{fine.answers[0].asked} {fine.answers[0].said}")
    outcome = run(program, language, name)
    assert outcome.total - outcome.right == lost, str(outcome)
    assert f"but it is {next(answer.truth for answer in outcome.answers if not answer.right)}" in str(outcome)
