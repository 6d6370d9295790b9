"""The tasks on the recall model. A new one is a file and a line here."""

from __future__ import annotations

from . import chains, dense, late, long, names, needle, shared, turns, updates
from .task import Point, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        needle.TASK,
        names.TASK,
        chains.TASK,
        updates.TASK,
        turns.TASK,
        late.TASK,
        dense.TASK,
        shared.TASK,
        long.TASK,
    )
}

__all__ = ["TASKS", "Point", "Task"]
