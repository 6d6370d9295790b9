"""RULER's files: a finished prompt, and the texts that its answer must contain."""

from __future__ import annotations

from .lines import Line
from .metrics import all_in, any_in
from .prompt import Prompt, length_of

_ANSWER_TOKENS = 128
_ALTERNATIVES = "qa"  # tasks so named list spellings of one answer, all others list parts of it


def ruler_prompt(line: Line) -> Prompt:
    """`input`, `outputs` and `length`; the task is the line's `task`, or the file's name or folder.

    Raises HeteroError for a line without input or outputs.
    """
    stem = line.path.stem
    task = str(line.fields.get("task") or (line.path.parent.name if stem in ("validation", "test") else stem))
    text = line.text("input") + str(line.fields.get("answer_prefix") or "")
    metric = any_in if task.startswith(_ALTERNATIVES) else all_in
    return Prompt(task, text, line.texts("outputs"), metric, _ANSWER_TOKENS, length_of(line, text))
