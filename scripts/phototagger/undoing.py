"""Taking back what an apply did: previous bytes, mode and time, or no file where there was none.

What has been edited since is left alone and named: its previous bytes stay in the changeset.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from phototagger import names, replacing
from phototagger.applying import CHUNK, Outcome, refusal
from phototagger.changeset import (
    FOLDER,
    Before,
    Changeset,
    Entry,
    exclusive,
    latest,
    open_changeset,
    unfinished,
)
from phototagger.comparing import Refused
from phototagger.errors import UserError
from phototagger.locks import folder_locks
from phototagger.recovery import is_away, recover
from phototagger.replacing import ChangedError, Seen, see, sync


@dataclass(frozen=True)
class Restored:
    """A file that is as it was before."""

    rel_path: str
    path: Path
    action: str  # restored (previous bytes), removed (there was none)


UndoReport = Callable[[Restored | Refused], None]


def pending(
    results: Path, name: str | None = None, paths: Sequence[Path] = ()
) -> tuple[str, list[Entry]]:
    """The changeset and the entries that `undo` would take back, once it is known what took place
    of those that were cut off. Raises UserError and JournalError as `undo` does."""
    with exclusive(results):
        _settle(results)
    changeset = _find(results, name)
    return changeset.id, _wanted(changeset, paths)


def undo(
    results: Path,
    name: str | None = None,
    paths: Sequence[Path] = (),
    report: UndoReport = lambda _: None,
) -> Outcome:
    """Take back a changeset (the last one if none is named), or what of it concerns `paths`
    (photos, sidecars or folders). What was cut off goes on.

    Raises UserError if there is no such changeset or nothing in it, or somebody else is at work
    here; JournalError if the journal cannot be written.
    """
    with exclusive(results):
        _settle(results)
        changeset = _find(results, name)
        if changeset.of("intent"):  # of photos that were away then
            recover(changeset)
        entries = _wanted(changeset, paths)
        if not entries:
            what = "none of it concerns these paths" if paths else "nothing of it is left to undo"
            raise UserError(
                f"{results / FOLDER / changeset.id}: {what}; photo-tagger undo --list shows what "
                "else there is"
            )
        by_target: dict[Path, list[Entry]] = {}
        for entry in entries:
            by_target.setdefault(entry.target, []).append(entry)
        work = _Undo(changeset, report)
        targets = sorted(by_target)
        try:
            for start in range(0, len(targets), CHUNK):
                work.chunk({t: by_target[t] for t in targets[start : start + CHUNK]})
        except BaseException:
            with suppress(Exception):
                recover(changeset)
            raise
        if not changeset.of("intent"):
            changeset.close()
        return Outcome(changeset.id, work.counts)


def _settle(results: Path) -> None:
    """Find out what took place of changesets that were cut off, and clear up after them."""
    for changeset in unfinished(results):
        recover(changeset)
        if not changeset.of("intent"):
            changeset.close()


def _find(results: Path, name: str | None) -> Changeset:
    if name is not None:
        return open_changeset(results, name)
    if (changeset := latest(results)) is None:
        raise UserError(f"{results / FOLDER}: nothing was applied that could be undone")
    return changeset


def _wanted(changeset: Changeset, paths: Sequence[Path]) -> list[Entry]:
    tops = [top for path in paths for top in {os.path.abspath(path), os.path.realpath(path)}]
    return [
        entry
        for entry in changeset.of("done", "intent")
        if not tops or any(_concerns(entry, top) for top in tops)
    ]


def _concerns(entry: Entry, top: str) -> bool:
    own = (names.decode(entry.path), names.decode(entry.photo))
    return top in own or any(path.startswith(f"{top.rstrip('/')}/") for path in own)


# ----------------------------------------------------------------------------------------- undo


@dataclass
class _Step:
    """One file on its way back."""

    entries: list[Entry]  # those that are taken back by it, last first
    goal: Before | None
    seen: Seen | None
    temporary: str = ""

    @property
    def last(self) -> Entry:
        return self.entries[0]

    @property
    def target(self) -> Path:
        return self.last.target


class _Undo:
    def __init__(self, changeset: Changeset, report: UndoReport):
        self.counts: Counter[str] = Counter()
        self._changeset = changeset
        self._report = report

    def chunk(self, by_target: dict[Path, list[Entry]]) -> None:
        with folder_locks({target.parent for target in by_target}):
            steps = [s for entries in by_target.values() if (s := self._plan(entries[::-1]))]
            there = [step for step in steps if _is_there(step)]
            self._finish(there)
            todo = [step for step in steps if step not in there]
            for step in todo:
                step.temporary = replacing.temporary_name()
            self._changeset.append(
                {"op": "undoing", "number": step.last.number, "temporary": step.temporary}
                for step in todo
            )
            todo = [step for step in todo if self._prepare(step)]
            todo = [step for step in todo if self._guard(step, self._settle)]
            done = [step for step in todo if self._guard(step, self._place)]
            for folder in {step.target.parent for step in done}:
                with suppress(OSError):
                    sync(folder)
            self._finish(done)

    def _plan(self, entries: list[Entry]) -> _Step | None:
        """How far one file can go back; `entries` are the last first."""
        last = entries[0]
        if is_away(last):
            message = "neither it nor its photo is there; mount or move them back, then undo again"
            self._refuse(last, "photo_missing", message)
            return None
        try:
            seen = see(last.target)
            seen = seen and replace(seen, content=b"")  # of 256 photos, that would be gigabytes
        except ChangedError:
            self._edited(last)
            return None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._refuse(last, "unreadable", f"cannot be read ({reason}); make it readable")
            return None
        step = _Step([last], last.before, seen)
        for earlier in entries[1:]:
            if earlier.after != (step.goal and step.goal.sha256):
                break  # somebody edited it between these two
            step.entries.append(earlier)
            step.goal = earlier.before
        current = seen and seen.sha256
        if current != last.after and not _is_there(step):
            self._edited(last)
            return None
        if len(step.entries) < len(entries):
            self._edited(entries[len(step.entries)])
        return step

    def _prepare(self, step: _Step) -> bool:
        if step.goal is None:
            return True
        try:
            content = self._changeset.before_bytes(step.goal)
        except (OSError, ValueError) as error:
            message = f"its previous bytes are not there ({error}); restore them from a backup"
            self._refuse(step.last, "unreadable", message)
            return False
        return self._guard(
            step, lambda step: replacing.write_temporary(self._temporary(step), content)
        )

    def _settle(self, step: _Step) -> None:
        if step.goal is not None:
            like = step.target if step.seen else None
            temporary = self._temporary(step)
            replacing.settle(temporary, like, step.goal.mode, step.goal.mtime_ns)

    def _place(self, step: _Step) -> None:
        if step.goal is not None:
            replacing.place(self._temporary(step), step.target, step.seen)
        elif step.seen is not None:
            replacing.remove(step.target, step.seen)

    @staticmethod
    def _temporary(step: _Step) -> Path:
        return step.target.with_name(step.temporary)

    def _guard(self, step: _Step, do: Callable[[_Step], None]) -> bool:
        try:
            do(step)
        except ChangedError:
            self._edited(step.last)
        except OSError as error:
            self._refuse(step.last, *refusal(error))
        else:
            return True
        with suppress(OSError):
            self._temporary(step).unlink()
        return False

    def _finish(self, steps: list[_Step]) -> None:
        self._changeset.mark("undone", [entry for step in steps for entry in step.entries])
        for step in steps:
            action = "restored" if step.goal else "removed"
            self.counts[action] += 1
            self._report(Restored(step.last.rel_path, step.target, action))

    def _edited(self, entry: Entry) -> None:
        message = "edited since"
        if entry.before is not None:
            kept = entry.before.backup or names.encode(
                self._changeset.folder / "before" / entry.before.sha256
            )
            message += f"; what it was before is {kept}"
        self._refuse(entry, "changed_meanwhile", message)

    def _refuse(self, entry: Entry, kind: str, message: str) -> None:
        self.counts["failed"] += 1
        self._report(Refused(entry.rel_path, entry.target, kind, message))


def _is_there(step: _Step) -> bool:
    """Whether the file is back already, by an undo that was cut off or by hand."""
    return (step.seen and step.seen.sha256) == (step.goal and step.goal.sha256)
