"""What every rule's script does around its work: a log, a progress file, a count of photos.

    with job(snakemake) as stats:
        thumbs(Path(snakemake.input.listing), ..., stats=stats)

The log gets what is logged, written to stderr by libraries, and the traceback of a crash. The
counts go to `<log>.json` beside the log, rewritten at most once a second while the job runs, so
that a person (or the command line's progress bar) can watch photos, not jobs.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phototagger.errors import UserError
from phototagger.files import write_atomic

_INTERVAL = 1.0


@dataclass
class Stats:
    """Counts of one job; the four after `photos` add up to it when it is done."""

    photos: int = 0  # photos the job is responsible for
    computed: int = 0  # decoded, embedded, written ...: the expensive thing was done
    cached: int = 0  # known already, nothing expensive done
    problems: int = 0  # quarantined in this stage
    skipped: int = 0  # not attempted: an earlier stage quarantined them
    seconds: float = 0.0
    finished: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # "ahead": computed for other jobs
    path: Path | None = None
    _started: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    @property
    def done(self) -> int:
        return self.computed + self.cached + self.problems + self.skipped

    def progress(self) -> None:
        """Publish the counts, at most once a second; cheap enough to call for every photo."""
        if time.monotonic() - self._written >= _INTERVAL:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        self.seconds = round(self._written - self._started, 3)
        if self.path:
            write_atomic(self.path, json.dumps(self.as_dict()) + "\n")

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["path"], values["_started"], values["_written"]
        return values


def stats_path(log: Path) -> Path:
    """The counts beside a job's log."""
    return log.with_suffix(".json")


@contextmanager
def job(snakemake: Any) -> Iterator[Stats]:
    """Run a rule's work with its log and its counts; on an error, one line and exit status 1."""
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind, so temporary files go
    stderr = os.dup(2)
    with log.open("w", encoding="utf-8", errors="backslashreplace") as file:
        os.dup2(file.fileno(), 2)
        logging.basicConfig(
            stream=file, level=logging.INFO, format="%(levelname)s %(message)s", force=True
        )
        logging.captureWarnings(True)
        stats = Stats(path=stats_path(log))
        try:
            yield stats
        except UserError as error:
            logging.error("%s", error)
            os.write(stderr, f"{snakemake.rule}: {error}\n".encode(errors="backslashreplace"))
            sys.exit(1)
        except Exception as error:
            file.write(traceback.format_exc())
            text = f"{snakemake.rule}: {type(error).__name__}: {error} (see {log})\n"
            os.write(stderr, text.encode(errors="backslashreplace"))
            sys.exit(1)
        else:
            stats.finished = True
            stats.write()
            logging.info("done %s", json.dumps(stats.as_dict()))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
