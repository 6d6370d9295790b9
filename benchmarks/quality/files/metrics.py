"""Scores of free text answers, each from 0 to 1; several right answers count by the best."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Metric = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_COMMENTS = ("#", "//", "/*", "*", "```")


def all_in(said: str, answers: Sequence[str]) -> float:
    """The share of `answers` that occur in what was said, in any case."""
    return sum(answer.lower() in said.lower() for answer in answers) / len(answers)


def any_in(said: str, answers: Sequence[str]) -> float:
    """1 if one of `answers` occurs in what was said, in any case."""
    return float(any(answer.lower() in said.lower() for answer in answers))


def token_f1(said: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, without case, punctuation and articles."""
    return max(_f1(_words(said), _words(answer)) for answer in answers)


def rouge_l(said: str, answers: Sequence[str]) -> float:
    """ROUGE-L with equal weight of precision and recall: the longest common subsequence of words."""
    return max(_alike(said.lower().split(), answer.lower().split()) for answer in answers)


def edit_similarity(said: str, answers: Sequence[str]) -> float:
    """1 less the insertions and deletions between the first line of code and the answer, over their lengths."""
    lines = (line.strip() for line in said.splitlines())
    code = next((line for line in lines if line and not line.startswith(_COMMENTS)), "")
    return max(_alike(code, answer.strip()) for answer in answers)


def exact_class(said: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """1 if the first line is a right class or, of the known `classes`, names right ones alone."""
    line = _plain(_first_line(said))
    if line in map(_plain, answers):
        return 1.0
    named = {name for each in classes if (name := _plain(each)) and re.search(rf"\b{re.escape(name)}\b", line)}
    # "animal" is not named by "animal name" when that is a class too.
    named = {name for name in named if not any(name != other and name in other for other in named)}
    return float(bool(named) and named <= set(map(_plain, answers)))


def same_number(said: str, answers: Sequence[str]) -> float:
    """1 if the first number of the answer is that of a right one."""
    first = re.search(r"\d+", said)
    return float(first is not None and any(re.findall(r"\d+", answer)[:1] == [first[0]] for answer in answers))


def first_line(metric: Metric) -> Metric:
    """The metric of the first line alone: what follows is the model asking itself the next question."""
    return lambda said, answers: metric(_first_line(said), answers)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _plain(text)).split()


def _f1(one: Sequence[str], two: Sequence[str]) -> float:
    if not one or not two:
        return float(one == two)
    return 2 * (Counter(one) & Counter(two)).total() / (len(one) + len(two))


def _alike(one: Sequence[Any], two: Sequence[Any]) -> float:
    """Twice the longest common subsequence, over both lengths."""
    if not one or not two:
        return 0.0
    row = [0] * (len(two) + 1)
    for item in one:
        above = row
        row = [0]
        for at, other in enumerate(two):
            row.append(above[at] + 1 if item == other else max(above[at + 1], row[at]))
    return 2 * row[-1] / (len(one) + len(two))
