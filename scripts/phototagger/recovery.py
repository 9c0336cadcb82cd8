"""After an apply or undo that was cut off: what of it took place, and nothing left lying about."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from phototagger import names
from phototagger.changeset import Changeset, Entry
from phototagger.files import sha256_file
from phototagger.locks import folder_locks


def recover(changeset: Changeset) -> dict[str, list[Path]]:
    """Find out what of a changeset that was cut off took place, and remove temporary files.

    Returns the files that were about to be created and were not, by rel_path. Entries of photos
    that are away stay as they are.
    """
    voided: dict[str, list[Path]] = {}
    for path in changeset.making:
        discard(path)
    for number, temporary in list(changeset.undoing.items()):
        discard(changeset.entries[number].target.with_name(temporary))
    for entry in changeset.of("intent"):
        if is_away(entry):
            logging.warning("%s: not there; left as it is for now", entry.target.parent)
            continue
        with folder_locks([entry.target.parent]):
            if _took_place(entry):
                changeset.mark("done", [entry])
            else:
                changeset.mark("void", [entry])
                if entry.before is None:
                    voided.setdefault(entry.rel_path, []).append(entry.target)
            discard(entry.leftover)
    return voided


def is_away(entry: Entry) -> bool:
    """Whether neither the file nor its photo is there, as when their disk is not mounted or their
    folder was moved: then nobody can say what became of the file."""
    return not (os.path.lexists(entry.target) or os.path.lexists(names.decode(entry.photo)))


def _took_place(entry: Entry) -> bool:
    """Whether the file was put in its place; if it is neither old nor new, the temporary file that
    is gone says so."""
    try:
        current = sha256_file(entry.target)
    except FileNotFoundError:
        current = None
    except OSError:
        return True  # never forget what may have been changed
    if current == entry.after:
        return True
    if current == (entry.before and entry.before.sha256):
        return False
    return entry.after is not None and not os.path.lexists(entry.leftover)


def discard(path: Path) -> None:
    """Remove a temporary file; one that cannot be removed now is no reason to stop."""
    with suppress(OSError):
        path.unlink()
