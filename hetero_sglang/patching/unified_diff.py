"""Unified diffs, applied strictly: every line is where the diff says, or nothing is."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hetero_sglang.errors import HeteroError

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NO_FILE = "/dev/null"


@dataclass(frozen=True)
class Hunk:
    """`old` lines from `line` on (the first is 1) become the `new` ones; each ends with its newline."""

    line: int
    old: list[str]
    new: list[str]


@dataclass(frozen=True)
class FileDiff:
    """What changes in the file at `path`; `creates`: there is none before."""

    path: str
    creates: bool
    hunks: list[Hunk]


def parse(text: str) -> list[FileDiff]:
    """The diffs of all files in a patch; what stands above the first is for people. Raises HeteroError."""
    lines = iter(enumerate(_lines(text), 1))
    found: list[FileDiff] = []
    for number, line in lines:
        if line.startswith("--- "):
            _, target = next(lines, (number, ""))
            source = _path(line, "--- ", "a/")
            found.append(FileDiff(_path(target, "+++ ", "b/"), source == NO_FILE, []))
            if source not in (NO_FILE, found[-1].path):
                raise HeteroError(f"line {number} of a patch renames {source}, which none may; write it anew.")
        elif line.startswith("@@") and found:
            found[-1].hunks.append(_hunk(line, number, lines))
        elif found:
            raise HeteroError(f"line {number} of a patch, {line.rstrip()[:40]!r}, is of no hunk; write the patch anew.")
    return found


def apply(diff: FileDiff, content: str | None) -> str:
    """The file's content afterwards; None: there is no such file. Raises HeteroError naming a line that differs."""
    if diff.creates != (content is None):
        raise HeteroError(f"{diff.path} is {'there already' if diff.creates else 'missing'}, against its patch.")
    lines = _lines(content or "")
    made: list[str] = []
    done = 0
    for hunk in diff.hunks:
        start = hunk.line - 1 if hunk.old else hunk.line  # lines that only come in come behind the named one
        if start < done or lines[start : start + len(hunk.old)] != hunk.old:
            raise HeteroError(f"{diff.path} is not what its patch expects from line {hunk.line} on.")
        made += lines[done:start] + hunk.new
        done = start + len(hunk.old)
    return "".join(made + lines[done:])


def _lines(text: str) -> list[str]:
    return io.StringIO(text, newline="\n").readlines()  # splitlines() would also split at form feeds and their like


def _path(line: str, mark: str, prefix: str) -> str:
    name = line.removeprefix(mark).split("\t")[0].strip()
    if line.startswith(mark) and (name == NO_FILE or name.startswith(prefix)) and ".." not in name.split("/"):
        return name if name == NO_FILE else name.removeprefix(prefix)
    raise HeteroError(f"{line.rstrip()[:60]!r} in a patch names no file below {prefix}; write the patch anew.")


def _hunk(head: str, number: int, lines: Iterator[tuple[int, str]]) -> Hunk:
    match = HUNK.match(head)
    if match is None:
        raise HeteroError(f"line {number} of a patch, {head.rstrip()[:40]!r}, heads no hunk; write the patch anew.")
    wanted = int(match[2] or 1), int(match[4] or 1)
    hunk = Hunk(int(match[1]), [], [])
    while (len(hunk.old), len(hunk.new)) != wanted:
        number, line = next(lines, (number, ""))
        if line[:1] not in ("-", "+", " ") or len(hunk.old) > wanted[0] or len(hunk.new) > wanted[1]:
            raise HeteroError(f"line {number} of a patch does not fit the count above it; write the patch anew.")
        if line[0] in "- ":
            hunk.old.append(line[1:])
        if line[0] in "+ ":
            hunk.new.append(line[1:])
    return hunk
