"""How long a matrix will take, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from .matrix import Item, Matrix
from .store import Record

# Seconds on two CPU cores, fitted to heterocache with the recall model at 2K to 8K tokens; a GPU is far faster.
_START = 20.0
_PER_TOKEN, _PER_SQUARE = 4e-4, 1e-7  # prefill
_PER_ANSWER = 0.02  # token, and its share below per token of context; plain SGLang's is five times that
_PER_ANSWER_TOKEN = 4e-6


def seconds_of(item: Item, known: Sequence[Record]) -> float:
    """The mean of the folder's finished samples of this task and length, or a guess for two CPU cores."""
    row = item.row
    alike = [r["seconds"] for r in known if (r["task"], r["length"]) == (row["task"], row["length"])]
    if alike:
        return fmean(alike)
    prompt, answer = item.tokens
    return prompt * (_PER_TOKEN + _PER_SQUARE * prompt) + answer * (_PER_ANSWER + _PER_ANSWER_TOKEN * prompt)


def listing(matrix: Matrix, jobs: int = 1) -> str:
    """The samples, the cells, and what is left to do, `jobs` cells at once."""
    known = list(matrix.store.records.values())
    lines = ["samples of every cell:"]
    width = max(len(item.row["task"]) for item in matrix.items)
    for item in matrix.items:
        row, (prompt, answer) = item.row, item.tokens
        point = " ".join(f"{name}={value}" for name, value in row["point"].items())
        lines.append(
            f"  {row['task']:<{width}} {row['length']:>6} tokens, seed {row['seed']}  {point:<26} "
            f"{prompt:>6} prompt {answer:>5} answer tokens  {seconds_of(item, known):6.1f} s"
        )
    lines.append("cells:")
    times: list[float] = []
    for cell in matrix.cells:
        pending = matrix.pending(cell)
        seconds = sum(seconds_of(item, known) for item in pending) + (_START if pending else 0)
        times.append(seconds)
        done = len(matrix.items) - len(pending)
        lines.append(f"  {cell.label:<44} {done:>4} of {len(matrix.items)} done, {seconds / 60:6.1f} min left")
    left = max(sum(times) / jobs, *times, 0)
    at_once = f", {jobs} cells at once" if jobs > 1 else ""
    lines.append(f"{len(matrix.cells)} cells{at_once}, about {left / 60:.0f} minutes left")
    return "\n".join(lines)
