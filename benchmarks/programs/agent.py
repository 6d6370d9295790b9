"""An agent of ten turns: each calls a tool by a code that its manual has, and is told where to go on.

The manual is a long document with a code of two numbers for every tool. In each turn the model chooses the tool by
`select` and writes its code under a regular expression; the tool's page, which says something found out and names the
next tool, is appended. At the end the agent reports all that it has found out. A wrong call ends the loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sglang as sgl

from benchmarks.recall import SPARE_TOKENS, Language
from benchmarks.recall.vocabulary import NAMES

from .outcome import Answer, Outcome
from .wording import BEGIN, NUMBERS, ask, page

TURNS = 10
OFFERED = 4  # tools to choose from in a turn
REPORTED = 5  # findings in an answer of the report


@dataclass(frozen=True)
class Task:
    """A manual, and the tools in it that answer, by the call that each wants (" Noka 482 917")."""

    manual: str
    first: str
    offers: Mapping[str, list[str]]  # of the turn that a tool is for
    tools: Mapping[str, Result]
    findings: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """What a tool says, and which is next."""

    text: str
    following: str


def run(backend: sgl.RuntimeEndpoint, language: Language, tokens: int, seed: int = 0) -> Outcome:
    """Let the agent work with a manual of `tokens` tokens."""
    task = make_task(language, tokens, seed)
    outcome = Outcome(f"agent: {TURNS} turns with a manual of {tokens} tokens")
    state = work.run(language, task, outcome, backend=backend, temperature=0)
    made = state["calls"]
    for turn, call in enumerate(task.tools):
        written = made[turn] if turn < len(made) else "none"
        outcome.answers.append(Answer(f"call in turn {turn + 1}", written.strip(), call.strip()))
    told = dict(re.findall(r"(\w+) (\d+ \d+)", "\n".join(state["reports"])))
    for name, numbers in task.findings.items():
        outcome.answers.append(Answer(f"finding {name}", told.get(name, "nothing"), numbers.strip()))
    return outcome


@sgl.function
def work(s: Any, language: Language, task: Task, outcome: Outcome) -> None:
    """Leaves in `s` the `calls` that were made and the `reports` of what was found."""
    s += BEGIN + task.manual
    s["calls"], s["reports"] = [], []
    tool = task.first
    for _ in range(TURNS):
        s += ask(language, tool) + sgl.select("tool", [f" {name}" for name in task.offers[tool]])
        s += sgl.gen("code", max_tokens=8, regex=NUMBERS)
        outcome.count(s.get_meta_info("code"))
        s["calls"].append(s["tool"] + s["code"])
        result = task.tools.get(s["calls"][-1])
        if result is None:
            break
        s += "\n" + result.text
        tool = result.following
    for first in range(0, len(task.findings), REPORTED):
        names = list(task.findings)[first : first + REPORTED]
        s += ask(language, *names) + sgl.gen("report", max_tokens=4 * len(names) + SPARE_TOKENS, stop="\n")
        s["reports"].append(s["report"])
        outcome.count(s.get_meta_info("report"))
        s += "\n"


def make_task(language: Language, tokens: int, seed: int) -> Task:
    """Ten tools of the manual in a row, each with a finding of its own that is nowhere else."""
    manual = language.document(seed, tokens, tokens // 48)
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(manual.entries)).tolist()
    row = names[:TURNS]
    offers = {tool: rng.permutation([tool, *rng.choice(names[TURNS:], OFFERED - 1, replace=False)]) for tool in row}
    found = rng.permutation([name for name in NAMES if name not in manual.entries]).tolist()[:TURNS]
    findings = {name: f" {first} {second}" for name, (first, second) in zip(found, _codes(rng), strict=True)}
    tools = {}
    for turn, (tool, following) in enumerate(zip(row, [*row[1:], row[0]], strict=True)):
        text = page(language, turn, {found[turn]: findings[found[turn]]}, 24)
        tools[" ".join(["", tool, *manual.entries[tool]])] = Result(text, following)
    return Task(manual.text, row[0], {tool: list(offer) for tool, offer in offers.items()}, tools, findings)


def _codes(rng: np.random.Generator) -> list[tuple[int, int]]:
    first, second = rng.integers(100, 1000, (2, TURNS)).tolist()
    return list(zip(first, second, strict=True))
