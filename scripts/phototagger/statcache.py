"""The SHA-256 of files by size and mtime, so that what did not change need not be read again.

`<cache>/stat/ab/<sha1 of the folder>.json` holds {name: [size, mtime_ns, sha256]} of one folder.
It may be deleted at any time; two jobs that write the same folder's file lose nothing but time,
and so does one whose cache cannot be written. Sizes and times are those that the photos' own file
system tells, and are compared for equality only: no computer's clock is involved.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from phototagger.files import keep
from phototagger.flocks import wait_for_lock

_INTERVAL = 10.0  # seconds between saves: what a kill -9 can cost
PATIENCE = 5.0  # seconds to wait for another writer, who needs milliseconds

Entry = tuple[int, int, str]


class StatCache:
    """Thread-safe; saved on leaving the `with` block and every few seconds by `save_if_due`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[str, dict[str, Entry]] = {}
        self._new: dict[str, dict[str, Entry]] = {}
        self._saved = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> "StatCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def get(self, path: Path, info: os.stat_result) -> str | None:
        """The SHA-256 of a file with this size and mtime, if it was hashed before."""
        folder, name = os.path.split(os.path.abspath(path))
        with self._lock:
            if folder not in self._known:
                self._known[folder] = self._read(folder)
            entry = self._new.get(folder, {}).get(name) or self._known[folder].get(name)
        if entry is None or tuple(entry[:2]) != (info.st_size, info.st_mtime_ns):
            return None
        return entry[2]

    def put(self, path: Path, info: os.stat_result, sha256: str) -> None:
        folder, name = os.path.split(os.path.abspath(path))
        with self._lock:
            entries = self._new.setdefault(folder, {})
            entries[name] = (info.st_size, info.st_mtime_ns, sha256)

    def save_if_due(self) -> None:
        if time.monotonic() - self._saved >= _INTERVAL:
            self.save()

    def save(self) -> None:
        """Add what is new to the files, and leave out names that no longer exist."""
        with self._lock:
            new, self._new = self._new, {}
            self._saved = time.monotonic()
            for folder, entries in new.items():
                with self._one_writer():
                    merged = self._read(folder) | entries
                    with suppress(OSError):
                        present = set(os.listdir(folder))
                        merged = {k: v for k, v in merged.items() if k in present}
                    keep(self._path(folder), json.dumps(merged, sort_keys=True))
                self._known[folder] = merged

    def _path(self, folder: str) -> Path:
        name = hashlib.sha1(os.fsencode(folder)).hexdigest()
        return self._folder / name[:2] / f"{name}.json"

    def _read(self, folder: str) -> dict[str, Entry]:
        try:
            entries = json.loads(self._path(folder).read_bytes())
            return {name: (int(v[0]), int(v[1]), str(v[2])) for name, v in entries.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Between processes. Where there are no locks, or none that other computers see, the last
        writer wins: what the other one knew is hashed once more."""
        with ExitStack() as held:
            with suppress(OSError):  # also of a cache that may only be read
                self._folder.mkdir(parents=True, exist_ok=True)
                file = held.enter_context((self._folder / ".lock").open("a"))
                wait_for_lock(file.fileno(), PATIENCE)
            yield
