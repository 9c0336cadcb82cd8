"""Writing what was decided: in chunks, under the folders' locks, journal first.

Per chunk: lock the folders, read and decide, have ExifTool make the new files in one process, put
the previous bytes and the intents on disk, write temporary files beside the targets, and put each
in its place if the target still is what was read. So every file is the old or the new one, whole,
at any moment, and what was cut off is finished by the next apply.
"""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from phototagger import names, originals, replacing, xmp
from phototagger.aliases import Aliases
from phototagger.changeset import (
    Before,
    Changeset,
    Entry,
    create,
    exclusive,
    unfinished,
)
from phototagger.comparing import Job, Options, Planned, Planner, Refused, Report
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.library import Library
from phototagger.locks import folder_locks
from phototagger.manifest import Proposed
from phototagger.recovery import discard, recover
from phototagger.replacing import ChangedError, sync
from phototagger.tokencache import TokenCache
from phototagger.tokens import NOTHING, Tokens
from phototagger.xmp import Packet

CHUNK = 256  # photos per round of the journal
_PROCESSES = min(2, os.cpu_count() or 1)  # ExifTool side by side; the disk is the next limit
_AT_ONCE = 8  # files that the disk is asked for together, which it makes one of
_FOLDERS = 64  # folders locked at once, each an open file
LARGEST_WRITTEN = 1 << 20  # bytes of a sidecar; PhotoPrism reads no larger one


@dataclass(frozen=True)
class Outcome:
    """What was done. Counts: files by action (create, update, remove, keep; for an undo restored,
    removed), photos `refused` for which there was nothing to do, and `failed` ones."""

    changeset: str | None  # None: nothing was changed
    counts: Counter[str] = field(default_factory=Counter)


def apply(library: Library, options: Options, report: Report) -> Outcome:
    """Write what `compare` would plan, calling `report` for each file and each photo refused.

    An apply that was cut off is finished first, in its changeset.

    Raises UserError if somebody else applies here, ExifTool is missing, or a backup is needed;
    JournalError if the journal cannot be written: all files are whole then.
    """
    _check_backup(library, options)
    with exclusive(library.results), Planner(library, options) as planner:
        run = _Run(library, options, planner, report)
        try:
            run.resume()
            rows = planner.rows()
            while chunk := list(islice(rows, CHUNK)):
                run.chunk(chunk)
            run.close()
        except BaseException:
            with suppress(Exception):
                if run.changeset is not None:
                    recover(run.changeset)
            raise
        return Outcome(run.changeset.id if run.changeset else None, run.counts)


def _check_backup(library: Library, options: Options) -> None:
    if options.backup is None:
        if options.mode == "embed":
            raise UserError("mode embed writes into photos: name a folder for copies (--backup)")
        return
    if library.machine.roots.rel_path(options.backup) is not None:
        raise UserError(f"--backup {options.backup}: is a folder of photos; name one outside them")


# --------------------------------------------------------------------------------------- a run


@dataclass
class _Step:
    """A job on its way: new content, or a temporary file that holds it."""

    job: Job
    temporary: Path
    content: bytes | None = None  # None: removed, or a photo
    after: str | None = None
    backup: str | None = None
    entry: Entry | None = None
    said: Tokens = NOTHING  # what the plan thinks of the sidecar as it is

    @property
    def removes(self) -> bool:
        return self.job.planned.action == "remove"


class _Run:
    def __init__(self, library: Library, options: Options, planner: Planner, report: Report):
        self.library = library
        self.options = options
        self.planner = planner
        self.counts: Counter[str] = Counter()
        self.changeset: Changeset | None = None
        machine = library.machine
        self._tokens = TokenCache(machine.cache, machine.roots, library.extensions)
        self._aliases = Aliases(machine.cache)
        self._report = report
        self._reported: set[Path] = set()  # of the chunk

    def resume(self) -> None:
        """Settle what was cut off, and go on with the last of it if it was an apply."""
        for changeset in unfinished(self.library.results):
            if changeset.run_id is None:
                changeset.begin(self.library.run_id)
            self.planner.announced = recover(changeset)
            self.changeset = None if changeset.is_being_undone else changeset
            if changeset.is_being_undone and not changeset.of("intent"):
                changeset.close()

    def close(self) -> None:
        if self.changeset is not None and not self.changeset.of("intent"):
            self.changeset.close()
        self._tokens.save()

    def chunk(self, rows: list[Proposed]) -> None:
        folders = {row: self.planner.folders_of(row) for row in rows}
        for part in _few_folders(rows, folders):
            self._reported.clear()
            again = self._attempt(part, set().union(*(folders[row] for row in part)), last=False)
            if again:
                wanted = set().union(*(self.planner.folders_of(row) for row in again))
                self._attempt(again, wanted, last=True)

    def _attempt(self, rows: list[Proposed], folders: set[Path], *, last: bool) -> list[Proposed]:
        """Decide and write; returns the rows of which something changed meanwhile."""
        again: dict[str, Proposed] = {}
        by_path = {row.rel_path: row for row in rows}

        def changed(job: Job) -> None:
            if not last:
                again[job.planned.rel_path] = by_path[job.planned.rel_path]
                return
            message = "another program writes this file at the same time; apply again"
            self._refuse(job, "changed_meanwhile", message)

        with folder_locks(folders):
            self.planner.forget()
            locked = {os.path.realpath(folder) for folder in folders}
            steps = []
            for row in rows:
                for found in self.planner.decide(row):
                    if isinstance(found, Refused):
                        if found.kind == "changed_meanwhile" and not last:
                            again[row.rel_path] = row
                        else:
                            self._tell(found)
                    elif found.planned.action == "keep":
                        self._tell(found.planned)
                    elif str(found.target.parent) not in locked:  # a link made just now
                        changed(found)
                    else:
                        name = replacing.temporary_name()
                        steps.append(_Step(found, found.target.with_name(name)))
            if steps:
                self._write(steps, changed)
        return list(again.values())

    # ------------------------------------------------------------------------------- writing

    def _write(self, steps: list[_Step], changed: Callable[[Job], None]) -> None:
        steps = self._sidecars_made(steps)
        photos = [step for step in steps if step.job.planned.embed]
        if not steps:
            return
        if self.changeset is None:
            self.changeset = create(self.library.results, self.library.run_id)
        if photos:
            made = self._photos_made(photos, self.changeset)
            steps = [s for s in steps if not s.job.planned.embed or s in made]
        if self.options.backup is not None:
            steps = [step for step in steps if self._back_up(step, self.options.backup)]
        self.changeset.keep(
            [s.job.seen.content for s in steps if s.job.seen and not s.job.planned.embed]
        )
        self._intend(steps, self.changeset)
        ready = [step for step in steps if self._guard(step, self._prepare)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            settled = [(step, pool.submit(self._settle, step)) for step in ready]
        ready = [s for s, future in settled if self._guard(s, lambda _, f=future: f.result())]
        going = {id(step) for step in ready}
        void = [step for step in steps if id(step) not in going]
        done = []
        for step in ready:
            try:
                placed = self._guard(step, self._place)
            except ChangedError:
                changed(step.job)
                placed = False
            (done if placed else void).append(step)
        for step in void:
            discard(step.temporary)
        for folder in {step.job.target.parent for step in done}:
            with suppress(OSError):
                sync(folder)
        self.changeset.mark("void", [s.entry for s in void if s.entry])
        self.changeset.mark("done", [s.entry for s in done if s.entry])
        for step in done:
            self._verify(step)

    def _sidecars_made(self, steps: list[_Step]) -> list[_Step]:
        """The steps without sidecars that could not be made or need not be written."""
        to_make = [s for s in steps if not s.removes and not s.job.planned.embed]
        items = [
            xmp.Item(
                step.job.planned.rel_path,
                step.job.seen.content if step.job.seen else None,
                step.job.planned.after.values,
                replace(step.job.planned.after.marks, run_id=self.library.run_id),
                step.job.planned.before,
            )
            for step in to_make
        ]
        left = [step for step in steps if step.removes or step.job.planned.embed]
        results = list(xmp.write_all(items, _PROCESSES))
        for step, result in zip(to_make, results, strict=True):
            size = len(step.job.seen.content) if step.job.seen else 0
            if isinstance(result, xmp.WriteFailure):
                message = result.message.removeprefix(f"{step.job.planned.rel_path}: ")
                message += "; nothing was changed"
                self._refuse(step.job, "would_lose", message)
            elif len(result) > LARGEST_WRITTEN >= size:
                message = (
                    f"would be {len(result):,} bytes, which programs do not read; fewer fields"
                )
                self._refuse(step.job, "too_large", message)
            elif step.job.seen and result == step.job.seen.content:
                self._tell(replace(step.job.planned, action="keep"))
            else:
                step.content, step.after = result, hashlib.sha256(result).hexdigest()
                left.append(step)
        order = {id(step): number for number, step in enumerate(steps)}
        return sorted(left, key=lambda step: order[id(step)])

    def _photos_made(self, steps: list[_Step], changeset: Changeset) -> list[_Step]:
        """Whole new photos as temporary files beside the photos; those that succeeded."""
        paths = [names.encode(step.temporary) for step in steps]
        changeset.append([{"op": "making", "paths": paths}])
        items = [
            originals.Embedding(
                step.job.target,
                step.temporary,
                step.job.planned.after.values,
                replace(step.job.planned.after.marks, run_id=self.library.run_id),
                step.job.planned.before,
            )
            for step in steps
        ]
        made = []
        for step, error in zip(steps, originals.write(items, iptc=self.options.iptc), strict=True):
            if error is not None:
                discard(step.temporary)
                self._refuse(step.job, "would_lose", f"{error}; the photo is as it was")
            elif self._guard(step, _take_digest):
                made.append(step)
        return made

    def _back_up(self, step: _Step, folder: Path) -> bool:
        """Copy the file as it is to the folder for copies."""
        if step.job.seen is None:
            return True
        relative = names.decode(step.job.planned.rel_path)
        place = (folder / self.changeset.id / relative).with_name(step.job.planned.path.name)

        def copy(step: _Step) -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            number, path = 1, place
            while os.path.lexists(path):  # of a round that was cut off
                number += 1
                path = place.with_name(f"{place.name}.{number}")
            replacing.copy(step.job.target, path, step.job.seen)
            step.backup = names.encode(os.path.abspath(path))

        try:
            return self._guard(step, copy)
        except ChangedError:
            discard(step.temporary)
            self._refuse(step.job, "changed_meanwhile", "changed while it was copied; apply again")
            return False

    def _intend(self, steps: list[_Step], changeset: Changeset) -> None:
        first = len(changeset.entries)
        for number, step in enumerate(steps, first):
            seen = step.job.seen
            backup = step.backup if step.job.planned.embed else None
            before = Before(seen.sha256, seen.mode, seen.mtime_ns, backup) if seen else None
            step.entry = Entry(
                number,
                step.job.planned.rel_path,
                names.encode(os.path.abspath(step.job.photo)),
                names.encode(step.job.target),
                step.temporary.name,
                before,
                step.after,
            )
        changeset.intend([step.entry for step in steps if step.entry])

    def _prepare(self, step: _Step) -> None:
        if step.content is not None:
            replacing.write_temporary(step.temporary, step.content)

    def _settle(self, step: _Step) -> None:
        if not step.removes:
            replacing.settle(step.temporary, step.job.target if step.job.seen else None)

    def _place(self, step: _Step) -> None:
        planned = step.job.planned
        if planned.embed:  # what is known of the picture is still known of it
            self._aliases.note(step.after, step.job.seen.sha256)
        else:
            step.said = self._tokens.of(planned.path)
        if step.removes:
            replacing.remove(step.job.target, step.job.seen)
        else:
            replacing.place(step.temporary, step.job.target, step.job.seen)

    def _verify(self, step: _Step) -> None:
        """Read back what was written."""

        def look(step: _Step) -> None:
            if not step.removes and sha256_file(step.job.target) != step.after:
                message = "does not read back as written; look at the disk, then undo"
                self._refuse(step.job, "would_lose", message)
                return
            planned = step.job.planned
            if not step.removes and not planned.embed:
                written = Packet(planned.after.values, planned.after.marks)
                self._tokens.keep(planned.path, step.said, written)
            self._tell(planned)

        self._guard(step, look)

    def _guard(self, step: _Step, do: Callable[[_Step], None]) -> bool:
        """Do it; if the file system does not let us, the photo is refused."""
        try:
            do(step)
        except OSError as error:
            discard(step.temporary)
            self._refuse(step.job, *refusal(error))
            return False
        return True

    # ------------------------------------------------------------------------------- telling

    def _refuse(self, job: Job, kind: str, message: str) -> None:
        self._tell(Refused(job.planned.rel_path, job.planned.path, kind, message))

    def _tell(self, what: Planned | Refused) -> None:
        if isinstance(what, Planned):
            if what.path in self._reported:  # a second attempt, of which this was no part
                return
            self._reported.add(what.path)
            self.counts[what.action] += 1
        else:
            self.counts["failed" if what.failure else "refused"] += 1
        self._report(what)


def _take_digest(step: _Step) -> None:
    step.after = sha256_file(step.temporary)


def refusal(error: OSError) -> tuple[str, str]:
    """Kind and message for what the file system answered."""
    if error.errno in replacing.NO_SPACE:
        return "no_space", f"{error.strerror}; free some space, then do it again"
    if error.errno == errno.ENAMETOOLONG:
        return "too_long", "its name is too long for this disk; give the photo a shorter one"
    return "unwritable", f"cannot be written ({error.strerror}); make the folder writable"


def _few_folders(
    rows: Iterable[Proposed], folders: dict[Proposed, set[Path]]
) -> Iterator[list[Proposed]]:
    """The rows in parts whose folders can all be locked at once."""
    part: list[Proposed] = []
    held: set[Path] = set()
    for row in rows:
        if part and len(held | folders[row]) > _FOLDERS:
            yield part
            part, held = [], set()
        part.append(row)
        held |= folders[row]
    if part:
        yield part
