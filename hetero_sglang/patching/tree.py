"""A folder that holds the package `sglang`: whether its source is as released or patched, and the ways between."""

import enum
import os
import shutil
from pathlib import Path

from hetero_sglang.errors import HeteroError
from hetero_sglang.patching import series
from hetero_sglang.patching.hashes import Hashes, encode, read
from hetero_sglang.sglang.version import TESTED

MANIFEST = "sglang/hetero-patches.json"  # the files' hashes; there from before the first change to after the last
BACKUP = ".hetero-backup"
NEW = ".hetero-new"  # not yet in its place


class State(enum.Enum):
    """What a tree's files are, taken together."""

    PRISTINE = "as released"
    PATCHED = "patched, with backups"
    UNKEPT = "patched, without backups"  # by other means than `apply`
    INTERRUPTED = "left by an interrupted apply or revert"
    OTHER = "neither as released nor patched"


class Tree:
    """Files come into their place by a rename each, behind a manifest: what interrupts that is undone by `revert`."""

    def __init__(self, root: Path) -> None:
        """Raises HeteroError unless the folder holds the package. `release`: the one that its files are of, most of
        them at least."""
        self.root = root
        self.manifest = root / MANIFEST
        if not (root / "sglang" / "srt").is_dir():
            raise HeteroError(
                f"{root} holds no package sglang; name the one that does (site-packages, or python in a source tree)."
            )
        self.release = min(TESTED, key=lambda release: len(self._foreign(series.hashes(release))))

    def state(self) -> tuple[State, list[str]]:
        """And the files that are neither as released nor patched. Raises HeteroError where one cannot be read."""
        kept = self.manifest.exists()
        hashes = self._hashes()
        now = {path: self._digest(self.root / path) for path in hashes}
        others = self._foreign(hashes)
        patched = [path for path, found in now.items() if found == hashes[path].after]
        if others:
            return State.OTHER, others
        if kept:
            return (State.PATCHED if len(patched) == len(now) else State.INTERRUPTED), []
        if patched:
            return (State.UNKEPT, []) if len(patched) == len(now) else (State.OTHER, patched)
        return State.PRISTINE, []

    def apply(self) -> int:
        """Patches every file, or none, and says how many; the former ones lie beside them. Raises HeteroError for a
        tree that is not as released, and where files cannot be written."""
        state, others = self.state()
        if state is not State.PRISTINE:
            raise HeteroError(self.refusal(state, others))
        hashes, made = series.hashes(self.release), series.patched(self.root, self.release)
        if wrong := [path for path in {**hashes, **made} if series.digest(made.get(path, b"")) != hashes[path].after]:
            raise HeteroError(f"the patches make something else of {_named(wrong)}; install hetero-sglang anew.")
        try:
            self._write(self.manifest, encode(hashes).encode())
            os.replace(_beside(self.manifest, NEW), self.manifest)
            for path, pair in hashes.items():
                if pair.before:
                    self._keep(self.root / path)
            for path in hashes:
                self._write(self.root / path, made[path])
            for path in hashes:
                os.replace(_beside(self.root / path, NEW), self.root / path)
        except BaseException as error:
            self._restore(hashes)
            if isinstance(error, OSError):
                where = error.filename or self.root
                raise HeteroError(f"{where} cannot be written ({error.strerror}); nothing was changed.") from None
            raise
        return len(hashes)

    def revert(self) -> int:
        """Puts back every file as it was, also after an interrupted apply, and says how many. Raises HeteroError where
        there is nothing to revert, or no way to."""
        state, others = self.state()
        if state not in (State.PATCHED, State.INTERRUPTED):
            raise HeteroError(self.refusal(state, others))
        hashes = self._hashes()
        patched = [path for path, pair in hashes.items() if self._digest(self.root / path) == pair.after]
        backups = {path: self._digest(_beside(self.root / path, BACKUP)) for path in patched}
        if lost := [path for path, found in backups.items() if found != hashes[path].before]:
            raise HeteroError(f"the backup of {_named(lost)} is not what it was; {self._anew()}.")
        self._restore(hashes)
        return len(hashes)

    def _restore(self, hashes: Hashes) -> None:
        try:
            for path, pair in reversed(hashes.items()):
                self._put_back(self.root / path, pair.before)
            _beside(self.manifest, NEW).unlink(missing_ok=True)
            self.manifest.unlink(missing_ok=True)
        except OSError as error:
            raise HeteroError(
                f"{error.filename} cannot be put back ({error.strerror}); see to that and run "
                f"`hetero-sglang patch revert`."
            ) from None

    def _put_back(self, file: Path, before: str | None) -> None:
        backup = _beside(file, BACKUP)
        _beside(file, NEW).unlink(missing_ok=True)
        if before is None:
            file.unlink(missing_ok=True)
        elif backup.exists() and self._digest(file) != before:
            os.replace(backup, file)
        backup.unlink(missing_ok=True)

    def _hashes(self) -> Hashes:
        """Those that the files were patched with, or else would be."""
        return read(self.manifest) if self.manifest.exists() else series.hashes(self.release)

    def _foreign(self, hashes: Hashes) -> list[str]:
        """The files that are neither as released nor patched."""
        return [path for path, pair in hashes.items() if self._digest(self.root / path) not in pair]

    def _keep(self, file: Path) -> None:
        new = _beside(file, NEW)
        new.unlink(missing_ok=True)
        shutil.copy2(file, new, follow_symlinks=False)  # with its time, by which its bytecode is known
        os.replace(new, _beside(file, BACKUP))

    def _write(self, file: Path, content: bytes) -> None:
        new = _beside(file, NEW)
        with new.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        if file.exists():
            shutil.copymode(file, new)

    def _digest(self, file: Path) -> str | None:
        """None: there is no such file."""
        try:
            return series.digest(file.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HeteroError(f"{file} cannot be read ({error.strerror}); see to it.") from None

    def refusal(self, state: State, others: list[str]) -> str:
        """Why a tree in this state is left alone."""
        return {
            State.PRISTINE: f"{self.root} is as SGLang {self.release} was released; there is nothing to revert.",
            State.PATCHED: f"{self.root} is patched already; `hetero-sglang patch revert` takes the patches out.",
            State.UNKEPT: f"{self.root} is patched already, without backups; take the patches out as they came in.",
            State.INTERRUPTED: f"{self.root} was left by an interrupted run; `hetero-sglang patch revert` mends it.",
            State.OTHER: f"{len(others)} files of {self.root} are not those of SGLang {self.release} "
            f"({_named(others)}); {self._anew()}.",
        }[state]

    def _anew(self) -> str:
        revert = f", delete {MANIFEST}" if self.manifest.exists() else ""
        return f"install SGLang {self.release} anew{revert} and begin again"


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
