"""Results that seem to come from the future, because a node's clock was ahead when it wrote them.

Most network file systems take the time of a file from their server, some (Lustre, Spectrum Scale)
from the computer that writes. Snakemake redoes what is older than its inputs: a result with a time
an hour ahead would hide for an hour that an input has changed. So before a run decides what is
stale, such results get the present time, by the clock that stamps files here.
"""

import os
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

FOLDER = Path("results/plan")
TOLERANCE = 1_000_000_000  # ns; file systems round
_STAMP = ".snakemake_timestamp"  # Snakemake's time of a folder


def set_back(outputs: Iterable[Path], folder: Path = FOLDER) -> list[Path]:
    """Give outputs (and the plan) of the future the time of a new file in `folder`; returns those.

    All get the same, so that none seems older than another.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            now = os.fstat(file.fileno()).st_mtime_ns
    except OSError:  # nothing can be written here; what a run has to say to that, it will
        return []
    ahead = []
    for output in chain(outputs, folder.glob("shards/*.tsv"), folder.glob("*.json")):
        path = output / _STAMP if output.is_dir() else output
        try:
            if os.stat(path).st_mtime_ns > now + TOLERANCE:
                os.utime(path, ns=(now, now))
                ahead.append(path)
        except OSError:
            continue
    return ahead
