"""The tokens of sidecars by size and mtime, so that a plan need not read 100,000 of them again.

One file per library, `<cache>/sidecars-read/<SHA-1 of the roots>.json`: {folder: {name: "size
mtime_ns human ours"}}. It may be deleted at any time; two that write it lose nothing but time.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from phototagger.beside import Folder, read_packet
from phototagger.files import write_atomic
from phototagger.plan import Roots
from phototagger.tokens import NOTHING, RECIPE, Tokens, joined, tokens_of
from phototagger.xmp import Packet


class TokenCache:
    """What sidecars say, for `plan.scan` and for whoever changes them.

    `by`: whose values count (person, photo-tagger).
    """

    def __init__(
        self,
        cache: Path,
        roots: Roots,
        extensions: Sequence[str],
        by: Collection[str] = ("person",),
    ):
        key = hashlib.sha1("\0".join(root.path for root in roots.roots).encode()).hexdigest()
        self._path = cache / "sidecars-read" / f"{key}.json"
        self._extensions = tuple(extensions)
        self._by = by
        self._known = self._load()
        self._scanned: dict[str, dict[str, str]] = {}
        self._changed = False

    def of_folder(self, folder: str, entries: Iterable[os.DirEntry[str]]) -> dict[str, str]:
        """Photo -> token, of the photos in a folder that have sidecars which say something."""
        by_name = {entry.name: entry for entry in entries}
        known = self._known.get(folder, {})
        now = self._scanned.setdefault(folder, {})
        persons_only = "photo-tagger" not in self._by
        tokens = {}
        for photo, sidecars in Folder(Path(folder), self._extensions, by_name).by_photo.items():
            found = []
            for name in sidecars:
                try:
                    info = by_name[name].stat()
                except OSError:  # a link to nowhere
                    continue
                entry = known.get(name, "")
                state = _state(info)
                if not entry.startswith(state):
                    entry = state + " ".join(tokens_of(read_packet(Path(folder, name))))
                    self._changed = True
                now[name] = entry
                found.append(entry)
            if persons_only and len(found) == 1:  # mostly, and faster
                token = found[0].split(" ")[2]
            else:
                token = joined([_tokens(entry) for entry in found], self._by)
            if token:
                tokens[photo] = token
        return tokens

    def of(self, path: Path) -> Tokens:
        """The tokens of one sidecar; of one that is not there, they say nothing."""
        folder, name = os.path.split(os.path.abspath(path))
        try:
            info = os.stat(path)
        except OSError:
            return NOTHING
        entry = self._known.get(folder, {}).get(name, "")
        if entry.startswith(_state(info)):
            return _tokens(entry)
        return tokens_of(read_packet(path))

    def keep(self, path: Path, before: Tokens, after: Packet) -> None:
        """A sidecar was written that says what `before` (see `of`) said, and what is ours.

        Without that the copies of a person's keywords, made from one place to another, would look
        like something new.
        """
        folder, name = os.path.split(os.path.abspath(path))
        with suppress(OSError):
            kept = Tokens(before.human, tokens_of(after).ours)
            entry = _state(os.stat(path)) + " ".join(kept)
            self._known.setdefault(folder, {})[name] = entry
            self._changed = True

    def save(self) -> None:
        """Write what is new; after a scan, without what is no longer there."""
        content = self._scanned or self._known
        gone = {f: len(e) for f, e in content.items()} != {
            f: len(e) for f, e in self._known.items()
        }
        if self._changed or gone:
            with suppress(OSError):  # a cache that cannot be written costs time only
                write_atomic(self._path, json.dumps({"recipe": RECIPE, "folders": content}))
        self._known, self._changed = content, False

    def _load(self) -> dict[str, dict[str, str]]:
        try:
            content = json.loads(self._path.read_bytes())
            folders = content["folders"] if content["recipe"] == RECIPE else {}
            whole = all(e.count(" ") == 3 for entries in folders.values() for e in entries.values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}
        return folders if whole else {}


def _state(info: os.stat_result) -> str:
    return f"{info.st_size} {info.st_mtime_ns} "


def _tokens(entry: str) -> Tokens:
    return Tokens(*entry.split(" ")[2:])
