"""What an `apply` changed, and the bytes that were there before: `results/changes/<id>/`.

* `journal.jsonl`    what was going to be done and what of it was, one line at a time
* `before/<sha256>`  the previous bytes of files that were replaced or removed

A change is on disk (fsync) as an intent, with the previous bytes, before the file system sees any
of it. So after `kill -9` or a power failure at any moment the journal names every file that may
have changed and every temporary file that may be left; which changes took place can be told from
the files' SHA-256. A last line that was cut off is ignored and overwritten.

Operations: `begin`, `making` (paths of temporary files of which no intent can be known yet),
`intent` (an entry), `done`, `void` (did not take place), `undoing` (with the temporary name),
`undone`, `closed` (nothing is under way; more may follow when undone).
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phototagger import heldlock, names
from phototagger.errors import UserError, one_of
from phototagger.replacing import sync

FOLDER = Path("changes")  # below the results
LOCK = Path("plan/.changes.lock")
_VERSION = 1
_AT_ONCE = 8  # files that the disk is asked for together
_ID = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")


@dataclass(frozen=True)
class Before:
    """A file as it was."""

    sha256: str
    mode: int  # permission bits
    mtime_ns: int
    backup: str | None = None  # encoded path of a copy elsewhere; None: in `before/`


@dataclass(frozen=True)
class Entry:
    """One file that is created (`before` is None), replaced, or removed (`after` is None)."""

    number: int  # within the changeset
    rel_path: str  # of the photo
    photo: str  # absolute path of the photo, encoded (see `names`) like the next
    path: str  # of the file: absolute, symlinks resolved
    temporary: str  # name of the temporary file in the same folder
    before: Before | None
    after: str | None  # SHA-256

    @property
    def target(self) -> Path:
        return Path(names.decode(self.path))

    @property
    def leftover(self) -> Path:
        return self.target.with_name(self.temporary)


class JournalError(UserError):
    """The journal cannot be written, so nothing more can be changed safely."""


class Changeset:
    """One apply. Made by `create` or `open_changeset`; the caller holds `exclusive`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.id = folder.name
        self.run_id: str | None = None
        self.entries: list[Entry] = []
        self.states: list[str] = []  # of the entries: intent, done, void, undone
        self.undoing: dict[int, str] = {}  # entry -> temporary name
        self.making: list[Path] = []
        self.closed = False
        self._journal = folder / "journal.jsonl"
        self._end = 0  # of the last whole line
        self._read()

    # ------------------------------------------------------------------------------- reading

    def _read(self) -> None:
        try:
            content = self._journal.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"{self._journal}: cannot be read ({error.strerror}); make it readable"
            ) from error
        self._end = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._end].splitlines(), 1):
            try:
                self._replay(json.loads(line))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self._journal}, line {number}: damaged ({error}); restore the file from a "
                    f"backup, or move {self.folder} away: what it records cannot be undone then"
                ) from error

    def _replay(self, line: dict[str, Any]) -> None:
        operation = line.pop("op")
        self.closed = operation == "closed"
        if operation == "begin":
            if line["version"] != _VERSION:
                raise ValueError(f"version {line['version']}")
            self.run_id = line["run_id"]
        elif operation == "intent":
            before = line.pop("before")
            entry = Entry(**line, before=Before(**before) if before else None)
            if entry.number != len(self.entries):
                raise ValueError(f"entry {entry.number} out of order")
            self.entries.append(entry)
            self.states.append("intent")
        elif operation == "making":
            self.making += [Path(names.decode(path)) for path in line["paths"]]
        elif operation == "undoing":
            self.undoing[line["number"]] = line["temporary"]
        elif operation in ("done", "void", "undone"):
            for number in line["numbers"]:
                self.states[number] = operation
                self.undoing.pop(number, None)
        elif operation == "closed":
            self.making.clear()
        else:
            raise ValueError(f"operation {operation!r}")

    def of(self, *states: str) -> list[Entry]:
        """The entries in one of these states, in the order in which they were made."""
        return [e for e, state in zip(self.entries, self.states, strict=True) if state in states]

    @property
    def is_being_undone(self) -> bool:
        return bool(self.undoing) or "undone" in self.states

    @property
    def undoable(self) -> bool:
        return any(state in ("intent", "done") for state in self.states)

    # ------------------------------------------------------------------------------- writing

    def append(self, lines: Iterable[dict[str, Any]], *, sync: bool = True) -> None:
        """Add lines, on disk on return if `sync`. Raises JournalError, with nothing added."""
        lines = list(lines)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        try:
            descriptor = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(descriptor, self._end)  # a line that was cut off
                _write_at(descriptor, text, self._end)
                if sync:
                    os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, self._end)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _journal_error(self._journal, error) from error
        self._end += len(text)
        for line in lines:
            self._replay(dict(line))

    def keep(self, contents: Sequence[bytes]) -> None:
        """Have previous bytes on disk in `before/`. Raises JournalError."""
        folder = self.folder / "before"
        try:
            if not folder.is_dir():
                folder.mkdir()
                sync(self.folder)  # the journal's name, too
            written = []
            for content in contents:
                path = folder / hashlib.sha256(content).hexdigest()
                if not (path.exists() and path.read_bytes() == content):  # one that was cut off
                    path.write_bytes(content)
                    written.append(path)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(sync, written))
            if written:
                sync(folder)
        except OSError as error:
            raise _journal_error(folder, error) from error

    def begin(self, run_id: str) -> None:
        self.append([{"op": "begin", "version": _VERSION, "run_id": run_id}])

    def intend(self, entries: Sequence[Entry]) -> None:
        self.append({"op": "intent"} | asdict(entry) for entry in entries)

    def mark(self, state: str, entries: Iterable[Entry]) -> None:
        """Record that entries are `done`, `void` or `undone`."""
        if numbers := [entry.number for entry in entries]:
            self.append([{"op": state, "numbers": numbers}], sync=False)

    def close(self) -> None:
        if not self.closed:
            self.append([{"op": "closed"}])

    def before_bytes(self, before: Before) -> bytes:
        """The previous bytes. Raises OSError, or ValueError if they are not what they were."""
        path = self.folder / "before" / before.sha256
        if before.backup is not None:
            path = Path(names.decode(before.backup))
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != before.sha256:
            raise ValueError(f"{path}: not the bytes that were kept")
        return content


def _journal_error(path: Path, error: OSError) -> JournalError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    way_out = "free some space" if full else "make it writable"
    return JournalError(
        f"{path}: cannot be written ({error.strerror}); {way_out} and run the same again: "
        "every file is as it was or whole, and what was changed is recorded"
    )


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


# -------------------------------------------------------------------------------------- folder


@contextmanager
def exclusive(results: Path) -> Iterator[None]:
    """Be the only one that applies or undoes in a work directory.

    Raises UserError if somebody else does, JournalError if there can be no journal.
    """
    folder = results / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = results / LOCK
        lock.parent.mkdir(parents=True, exist_ok=True)
        holding = heldlock.hold(lock)
        holding.__enter__()
    except heldlock.TakenError as error:
        raise UserError(
            f"{folder}: another apply or undo is under way ({error.who}); wait for it to end"
        ) from error
    except OSError as error:
        raise _journal_error(folder, error) from error
    with ExitStack() as stack:
        stack.push(holding.__exit__)
        yield


def create(results: Path, run_id: str) -> Changeset:
    """A new changeset, later in order than all others. Raises JournalError."""
    known = changesets(results)
    name, number = time.strftime("%Y%m%d-%H%M%S"), 1
    if known and _order(name) <= _order(known[-1]):  # the clock was set back, or the same second
        name, number = _order(known[-1])
        number += 1
    folder = results / FOLDER / (name if number == 1 else f"{name}-{number}")
    try:
        folder.mkdir(parents=True)
        sync(folder.parent)
    except OSError as error:
        raise _journal_error(folder, error) from error
    changeset = Changeset(folder)
    changeset.begin(run_id)
    return changeset


def changesets(results: Path) -> list[str]:
    """The ids, oldest first."""
    try:
        found = [entry.name for entry in os.scandir(results / FOLDER) if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(filter(_ID.fullmatch, found), key=_order)


def open_changeset(results: Path, name: str) -> Changeset:
    """Raises UserError listing those that there are."""
    known = changesets(results)
    if name not in known:
        raise one_of(f"{results / FOLDER}", name, known)
    return Changeset(results / FOLDER / name)


def latest(results: Path) -> Changeset | None:
    """The last changeset of which something can be undone."""
    for name in reversed(changesets(results)):
        if (changeset := Changeset(results / FOLDER / name)).undoable:
            return changeset
    return None


def unfinished(results: Path) -> list[Changeset]:
    """Those that were cut off, oldest first; only ends of journals are read to find them."""
    folders = (results / FOLDER / name for name in changesets(results))
    return [Changeset(folder) for folder in folders if not _ends_closed(folder / "journal.jsonl")]


def _ends_closed(journal: Path) -> bool:
    end = (json.dumps({"op": "closed"}) + "\n").encode()
    try:
        with journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - len(end)))
            return file.read() == end
    except FileNotFoundError:
        return False


def _order(name: str) -> tuple[str, int]:
    base, number = _ID.fullmatch(name).groups()
    return base, int(number or 1)
