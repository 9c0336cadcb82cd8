"""What would be written beside the photos (or into them): proposals joined with what is there.

`compare` reads and decides, photo by photo; `applying` writes what was decided, `undoing` takes it
back. A photo that cannot be dealt with is a `Refused` with its reason, and costs no other photo
anything.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from phototagger import beside, names, originals, proposal, xmp
from phototagger import merge as merging
from phototagger.aliases import Aliases
from phototagger.decisions import read_decisions
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.library import AGAIN, Library
from phototagger.manifest import Proposed, sidecar_path
from phototagger.replacing import ChangedError, Seen, see, seen_as
from phototagger.statcache import StatCache
from phototagger.xmp import KEYWORD_LISTS, Packet, Values

_FOLDERS_KEPT = 64  # listings in memory; a folder's photos may be interrupted by its subfolders'


@dataclass(frozen=True)
class Options:
    """How to publish; meanings are those of `metadata` in the configuration's schema."""

    naming: str = "ext"
    mode: str = "sidecar"
    merge: merging.Options = field(default_factory=merging.Options)
    both: bool = False  # update two sidecars of a photo although they differ
    backup: Path | None = None  # folder for copies of what is replaced
    iptc: str = "present"
    only_approved: bool = False
    paths: tuple[Path, ...] = ()  # photos or folders; empty: all


@dataclass(frozen=True)
class Planned:
    """What is to be done with one file."""

    rel_path: str
    path: Path  # of the file; a symlink is followed when it is written
    action: str  # create, update, remove, keep
    before: Packet | None
    after: merging.Merged
    embed: bool
    changes: tuple[merging.Change, ...]


@dataclass(frozen=True)
class Refused:
    """A photo for which nothing is done, and why."""

    rel_path: str
    path: Path | None
    kind: str
    message: str  # one line, with the way out
    failure: bool = True  # False: there is merely nothing to do here


Report = Callable[[Planned | Refused], None]


@dataclass(frozen=True)
class Job:
    """A plan, with what is needed to carry it out."""

    planned: Planned
    photo: Path
    target: Path  # the file itself, symlinks resolved
    seen: Seen | None  # None: there is none yet


def compare(library: Library, options: Options) -> Iterator[Planned | Refused]:
    """Decide for every photo, in path order; reads only. Raises UserError."""
    with Planner(library, options) as planner:
        for row in planner.rows():
            for found in planner.decide(row):
                yield found.planned if isinstance(found, Job) else found


# -------------------------------------------------------------------------------------- planner


class Planner:
    """Decides about photos one by one, remembering folder listings and SHA-256 of photos."""

    def __init__(self, library: Library, options: Options):
        self.library = library
        self.options = options
        self._aliases = Aliases(library.machine.cache)
        self._decisions = read_decisions(library.results, self._aliases.first)
        self._hashes = StatCache(library.machine.cache / "stat")
        self._folders: dict[Path, beside.Folder] = {}
        self._writer: dict[Path, str] = {}  # file -> the one photo that it is written for
        self._stack = ExitStack()
        # What an apply that was cut off was about to create: with naming `both`, half of that is no
        # reason to leave it at one.
        self.announced: Mapping[str, tuple[Path, ...]] = {}

    def __enter__(self) -> "Planner":
        self._stack.enter_context(self._hashes)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a cache that cannot be written costs time only
            self._stack.close()

    def rows(self) -> Iterator[Proposed]:
        """The photos that were asked for. Raises UserError if a path is of no photo folder."""
        tops = [self._rel_path(path) for path in self.options.paths]
        for row in self.library.rows():
            if not tops or any(_below(row.rel_path, top) for top in tops):
                yield row

    def _rel_path(self, path: Path) -> str:
        """The rel_path of a photo or folder as a person named it; "" if it holds all photos."""
        roots = self.library.machine.roots
        named = os.path.abspath(path.expanduser())
        for root in roots.roots:
            top = os.path.abspath(names.decode(root.path))
            prefix = f"{root.name}/" if len(roots.roots) > 1 else ""
            if named == top or named.startswith(f"{top.rstrip('/')}/"):
                inside = names.encode(named[len(top) :].strip("/"))
                return (prefix + inside).rstrip("/")
        found = roots.rel_path(path)
        if found is None:
            folders = ", ".join(root.path for root in roots.roots)
            raise UserError(f"{path}: not in a folder of this work directory ({folders})")
        return found.removesuffix(".").rstrip("/")

    def forget(self) -> None:
        """Look at the folders anew."""
        self._folders.clear()

    def locate(self, rel_path: str) -> Path:
        return self.library.machine.roots.locate(rel_path)

    def folders_of(self, row: Proposed) -> set[Path]:
        """The folders in which files may be written for a photo."""
        photo = self.locate(row.rel_path)
        found = {photo.parent, _resolved(photo).parent} if self._embeds(photo) else {photo.parent}
        try:
            paths = self._targets(row, photo).paths
        except OSError:
            return found
        return found | {_resolved(path).parent for path in paths if path.is_symlink()}

    # ------------------------------------------------------------------------------ one photo

    def decide(self, row: Proposed) -> Iterator[Job | Refused]:
        """One job per file of a photo, or the reason why there is none."""
        if self.options.only_approved and not row.sidecar_sha256:
            return  # nothing that could be approved
        if found := self._left_alone(row):
            yield found
            return
        photo = self.locate(row.rel_path)
        try:
            current = self._sha256(photo)
            if self._aliases.first(current) != self._aliases.first(row.photo_sha256):
                message = f"the photo has changed since the run; `{AGAIN}` again"
                raise _Stop("photo_changed", message, photo)
            ours, embedded = self._proposal(row)
            targets = self._targets(row, photo)
            if self._embeds(photo):
                yield self._embedding(row, photo, ours, current)
        except _Stop as stop:
            yield Refused(row.rel_path, stop.path, stop.kind, stop.message)
            return
        except FileNotFoundError:
            message = f"the photo is gone; `{AGAIN}` again"
            yield Refused(row.rel_path, photo, "photo_missing", message)
            return
        except OSError as error:
            message = f"cannot be read ({error.strerror}); make it readable"
            yield Refused(row.rel_path, photo, "unreadable", message)
            return
        if self._embeds(photo):
            yield from self._withdrawn(row, photo, targets.paths)
        elif not targets.kind:
            yield from self._sidecars(row, photo, targets.paths, ours, embedded)
        elif row.sidecar_sha256:
            message, failure = targets.message or targets.kind, targets.kind != "no_sidecar"
            yield Refused(row.rel_path, None, targets.kind, message, failure)

    def _left_alone(self, row: Proposed) -> Refused | None:
        """Why a photo's files are not even looked at."""

        def refused(kind: str, message: str) -> Refused:
            return Refused(row.rel_path, None, kind, message, failure=False)

        picture = self._aliases.first(row.photo_sha256)
        if row.sidecar_sha256 and self._decisions.rejected(picture):
            return refused("rejected", "rejected in the review")
        if self.options.only_approved and not self._decisions.approved(picture, row.sidecar_sha256):
            return refused("unapproved", "this proposal is not approved")
        if row.failed:  # what is there may still be right
            message = "its proposal could not be written; results/logs/sidecars says why"
            return refused("no_proposal", message)
        return None

    def _sidecars(
        self,
        row: Proposed,
        photo: Path,
        paths: tuple[Path, ...],
        ours: Packet,
        embedded: Values,
    ) -> Iterator[Job | Refused]:
        try:
            read = {path: self._read(row, path) for path in paths}
            read |= {
                path: (path, None, None)
                for path in self.announced.get(row.rel_path, ())
                if path not in read and not os.path.lexists(path)
            }
        except _Stop as stop:
            yield Refused(row.rel_path, stop.path, stop.kind, stop.message)
            return
        packets = [packet for _, _, packet in read.values() if packet]
        if not self.options.both and any(_said(p) != _said(packets[0]) for p in packets[1:]):
            both = " and ".join(path.name for path in read)
            message = (
                f"{names.encode(both)} differ; make them equal, delete one, or have both updated "
                "(--both)"
            )
            yield Refused(row.rel_path, next(iter(read)), "conflict", message)
            return
        theirs = _with_keywords(embedded, packets if len(packets) > 1 else ())
        for path, (target, seen, packet) in read.items():
            merged = merging.merge(ours, packet, theirs, self.options.merge, carry=embedded.keys())
            action = _action(packet, merged)
            if action == "keep" and seen is None:
                continue
            changes = () if action == "keep" else merging.changes(packet, merged)
            planned = Planned(row.rel_path, path, action, packet, merged, False, changes)
            yield Job(planned, photo, target, seen)

    def _withdrawn(
        self, row: Proposed, photo: Path, paths: tuple[Path, ...]
    ) -> Iterator[Job | Refused]:
        """Sidecars from before the photo itself was written into: programs would prefer them."""
        for path in paths:
            try:
                target, seen, packet = self._read(row, path)
            except _Stop as stop:
                yield Refused(row.rel_path, stop.path, stop.kind, stop.message, failure=False)
                continue
            if packet is None or packet.marks.empty:
                continue
            merged = merging.merge(Packet(), packet, {}, self.options.merge)
            if (action := _action(packet, merged)) != "keep":
                changes = merging.changes(packet, merged)
                planned = Planned(row.rel_path, path, action, packet, merged, False, changes)
                yield Job(planned, photo, target, seen)

    def _embedding(self, row: Proposed, photo: Path, ours: Packet, sha256: str) -> Job:
        target = _resolved(photo)
        self._claim(row, target, photo, "photo")
        info = target.stat()
        try:
            packet = originals.current(target)
        except ValueError as error:  # NotXmpError, NotEmbeddableError
            message = f"cannot be written into ({error}); use mode sidecar for it"
            raise _Stop("not_xmp", message, photo) from error
        merged = merging.merge(ours, packet, {}, self.options.merge)
        action = _action(packet, merged)
        if action in ("create", "remove"):  # the photo itself stays
            action = "update"
        changes = () if action == "keep" else merging.changes(packet, merged)
        planned = Planned(row.rel_path, photo, action, packet, merged, True, changes)
        return Job(planned, photo, target, seen_as(info, sha256))

    def _embeds(self, photo: Path) -> bool:
        return self.options.mode == "embed" and photo.name.lower().endswith(originals.EMBEDS)

    def _sha256(self, photo: Path) -> str:
        info = photo.stat()
        known = self._hashes.get(photo, info)
        if known is None:
            known = sha256_file(photo)
            self._hashes.put(photo, info, known)
            with suppress(OSError):
                self._hashes.save_if_due()
        return known

    def _proposal(self, row: Proposed) -> tuple[Packet, Values]:
        """What is ours, and what is embedded in the photo."""
        if row.sidecar_sha256 is None:
            return Packet(), {}
        path = sidecar_path(self.library.results / "sidecars", row.rel_path)
        again = f"`{AGAIN}` again"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _Stop(
                "proposal_changed", f"its proposal cannot be read ({error.strerror}); {again}", path
            ) from error
        if hashlib.sha256(content).hexdigest() != row.sidecar_sha256:
            raise _Stop("proposal_changed", f"its proposal is not what was made; {again}", path)
        return proposal.split(xmp.parse(content), self.library.fields)

    def _targets(self, row: Proposed, photo: Path) -> beside.Targets:
        folder = self._folders.get(photo.parent)
        if folder is None:
            if len(self._folders) >= _FOLDERS_KEPT:
                del self._folders[next(iter(self._folders))]
            folder = beside.Folder(photo.parent, self.library.extensions)
            self._folders[photo.parent] = folder
        prefix = row.rel_path.rpartition("/")[0]

        def leader_of(name: str) -> str:
            rel_path = f"{prefix}/{names.encode(name)}" if prefix else names.encode(name)
            leader = self.library.leaders.get(rel_path, rel_path)
            return names.decode(leader.rpartition("/")[2])

        return beside.targets(folder, photo.name, self.options.naming, leader_of=leader_of)

    def _claim(self, row: Proposed, target: Path, path: Path, what: str) -> None:
        """Be the one photo that a file is written for. Raises _Stop if another one is."""
        writer = self._writer.setdefault(target, row.rel_path)
        if writer != row.rel_path:
            message = f"this file is the {what} of {writer}; give it its own"
            raise _Stop("shared_stem", message, path)

    def _check_link(self, row: Proposed, path: Path, target: Path) -> None:
        """Raises _Stop if a link leads to the sidecar of another photo, asked for or not."""
        with suppress(OSError):
            folder = beside.Folder(target.parent, self.library.extensions)
            photo = self.locate(row.rel_path)
            here = os.path.realpath(photo.parent) == str(target.parent)
            for name, sidecars in folder.by_photo.items():
                if target.name in sidecars and not (here and name == photo.name):
                    whose = names.encode(target.parent / name)
                    message = f"this file is the sidecar of {whose}; give it its own"
                    raise _Stop("shared_stem", message, path)

    def _read(self, row: Proposed, path: Path) -> tuple[Path, Seen | None, Packet | None]:
        """The file behind a sidecar's name, its bytes and what they hold. Raises _Stop."""
        target = _resolved(path)
        if path.is_symlink():
            self._check_link(row, path, target)
        self._claim(row, target, path, "sidecar")
        try:
            seen = see(target, limit=beside.LARGEST)
            if seen is None and path.is_symlink():
                raise _Stop(
                    "unreadable", "a link to a file that is not there; remove the link", path
                )
            return target, seen, xmp.parse(seen.content) if seen else None
        except ChangedError as error:
            raise _Stop("changed_meanwhile", "being written to; do it again later", path) from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                message = "too long a name for this disk; give the photo a shorter one"
                raise _Stop("too_long", message, path) from error
            message = f"cannot be read ({error.strerror}); make it readable"
            raise _Stop("unreadable", message, path) from error
        except ValueError as error:  # also NotXmpError
            message = f"not XMP ({error}); mend it, or move it away for a new one"
            raise _Stop("not_xmp", message, path) from error


class _Stop(Exception):  # noqa: N818 (never leaves this module)
    """Why nothing is done for a photo."""

    def __init__(self, kind: str, message: str, path: Path | None = None):
        super().__init__(message)
        self.kind, self.message, self.path = kind, message, path


def _below(rel_path: str, top: str) -> bool:
    """Whether a photo is what a person named: itself, by its sidecar, or by a folder above it."""
    if top.lower().endswith(beside.SIDECAR):
        base = top[: -len(beside.SIDECAR)]
        if base in (rel_path, os.path.splitext(rel_path)[0]):
            return True
    return not top or rel_path == top or rel_path.startswith(f"{top}/")


def _resolved(path: Path) -> Path:
    """The file itself: the folder's own path, and behind a link what it leads to."""
    return Path(os.path.realpath(path))


def _said(packet: Packet) -> tuple[object, ...]:
    """What two sidecars of a photo must agree in: what is merged, in whatever order; develop
    settings and the like are each program's own."""
    values = {t: set(v) if t in KEYWORD_LISTS else v for t, v in packet.values.items()}
    return values, packet.marks.without_run(), packet.languages


def _with_keywords(embedded: Values, packets: Sequence[Packet]) -> Values:
    """What is embedded, and a person's keywords in all sidecars of the photo."""
    joined = dict(embedded)
    for packet in packets:
        for tag in KEYWORD_LISTS.keys() & packet.theirs.keys():
            joined[tag] = [*joined.get(tag, ()), *packet.theirs[tag]]
    return joined


def _action(before: Packet | None, after: merging.Merged) -> str:
    if before is None:
        return "create" if after.values else "keep"
    if after.equals(before):
        return "keep"
    return "remove" if after.is_empty and not (before.rest or before.languages) else "update"
