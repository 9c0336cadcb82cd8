"""Which run a job belongs to.

Jobs may run on other machines, and clocks differ: whether counts are of this run is not told by
comparing times, but by a token. The main process writes it to `results/plan/run.json` before the
first job starts; every job copies it into its counts.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = Path("results/plan/run.json")
VARIABLE = "PHOTO_TAGGER_RUN"  # environment: the token, if the command line has chosen one


def new() -> str:
    """32 hexadecimal digits."""
    return os.environ.get(VARIABLE) or uuid.uuid4().hex


def publish(token: str, path: Path = PATH) -> None:
    """Have jobs belong to this run from now on.

    Written in place, unlike everything else: an NFS client asks the server what a file says each
    time it is opened, but for up to a minute goes on to find a name's old file after a rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (json.dumps({"run": token}) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current(path: Path = PATH) -> str | None:
    """The token of the run that is under way, or of the last one; None if there was none."""
    try:
        return json.loads(path.read_text("utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def belongs(counts: Mapping[str, Any], written: float, token: str | None, started: float) -> bool:
    """Whether a job's counts are of the run with that token.

    Where one of the two is not known (counts of an older version), times decide: when the counts
    were `written`, and when the run `started`, in seconds since the epoch.
    """
    if token and (theirs := counts.get("run")):
        return theirs == token
    return written >= started
