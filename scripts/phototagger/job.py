"""What every rule's script does around its work: a log, a progress file, a count of photos.

    with job(snakemake) as stats:
        thumbs(Path(snakemake.input.listing), ..., stats=stats)

The log gets what is logged, written to stderr by libraries, and the traceback of a crash. The
counts go to `<log>.json` beside the log, when the job starts and then at most once a second, so
that a person (or the command line's progress bar) can watch photos, not jobs, and read later where
and when a job ran and how it ended:

* `finished: true`  done
* `error`           failed; with `final` trying again cannot help
* neither           running, or killed (out of memory, `kill -9`, power)
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from phototagger import allocation, buckets, runtoken
from phototagger.errors import TransientError, UserError
from phototagger.files import explain, write_atomic

CLOCK_PATIENCE = 30.0  # seconds that a node's clock may be behind
_INTERVAL = 1.0
_TERMINATED = 128 + signal.SIGTERM  # exit status


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
    error: str | None = None  # why it failed
    final: bool = False  # it failed, and would fail again
    run: str | None = None  # see `runtoken`
    started: float = 0.0  # seconds since the epoch, by the clock of `host`
    host: str | None = None
    job: str | None = None  # the batch system's name for it; None outside of one
    node: str | None = None  # the batch system's name for `host`
    attempt: int = 1
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
    """The counts beside a job's log; of a log that goes to a bucket, where it would be else."""
    url = buckets.url_of_local_copy(log)
    local = Path("results", url.rpartition("/results/")[2]) if url else log
    return local.with_suffix(".json")


def read_counts(path: Path) -> dict[str, Any]:
    """What a job left there, or is writing at the moment; empty if there is nothing of the kind."""
    try:
        counts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return counts if isinstance(counts, dict) else {}


def is_under_way(path: Path, run: str | None) -> bool:
    """Whether the job that writes its counts there is one of this run, and has not ended yet."""
    counts = read_counts(path)
    ended = counts.get("finished") or counts.get("error")
    return bool(counts) and counts.get("run") == run and not ended


def leave(*_: object) -> None:
    """Handler of SIGTERM: unwind, so that temporary files go and the counts say why.

    Once: Slurm sends it twice, and a second exception would end the unwinding in the middle.
    """
    signal.signal(signal.SIGTERM, _nothing)
    sys.exit(_TERMINATED)


def _nothing(*_: object) -> None:
    """Instead of SIG_IGN, which processes that are started meanwhile would inherit."""


@contextmanager
def job(snakemake: Any) -> Iterator[Stats]:
    """Run a rule's work with its log and its counts; on an error, one line and exit status 1.

    A second attempt at what cannot help to try again fails at once, with the same message.
    """
    log = Path(snakemake.log[0])
    newest_input = _newest(getattr(snakemake, "input", ()))
    signal.signal(signal.SIGTERM, leave)
    stderr = os.dup(2)
    with _opened(log, snakemake.rule) as file:
        os.dup2(file.fileno(), 2)
        logging.basicConfig(
            stream=file, level=logging.INFO, format="%(levelname)s %(message)s", force=True
        )
        logging.captureWarnings(True)
        stats = _new_stats(stats_path(log), snakemake)
        try:
            before = read_counts(stats_path(log))
            stats.write()
            _give_up(stats, before)
            _wait_for_clock(newest_input, stats_path(log))
            yield stats
            stats.finished = True
            stats.write()
        except Exception as error:
            told = error if isinstance(error, UserError) else explain(error)
            if told:  # one line, no traceback
                logging.error("%s", told)
                _fail(stats, str(told), final=not isinstance(told, TransientError))
                os.write(stderr, f"{snakemake.rule}: {told}\n".encode(errors="backslashreplace"))
                sys.exit(1)
            with suppress(OSError):
                file.write(traceback.format_exc())
            cause = f"{type(error).__name__}: {error}"
            _fail(stats, cause, final=False)
            text = f"{snakemake.rule}: {cause} (see {log})\n"
            os.write(stderr, text.encode(errors="backslashreplace"))
            sys.exit(1)
        except (SystemExit, KeyboardInterrupt) as stop:
            logging.error("%s", cause := _why_stopped(stop))
            _fail(stats, cause, final=False)
            raise
        else:
            logging.info("done %s", json.dumps(stats.as_dict()))
        finally:
            if url := buckets.url_of_local_copy(log):
                _deliver(stats.path, url.rpartition("/")[0])
            os.dup2(stderr, 2)
            os.close(stderr)


def _deliver(counts: Path | None, folder: str) -> None:
    """Have the counts where the log goes; no job fails because nobody could be told of it."""
    if counts is None:
        return
    try:
        buckets.write(folder, {counts.name: counts.read_bytes()})
    except (OSError, UserError) as error:
        logging.warning("counts: %s", error)


@contextmanager
def _opened(log: Path, rule: str) -> Iterator[TextIO]:
    """The job's log. What cannot be written to it at the end (a full disk) is no failure."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        sys.exit(f"{rule}: {explain(error) or error}")
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _newest(paths: Iterable[str]) -> int:
    """The latest mtime (ns) of those that are there."""
    times = [0]
    for path in paths:
        with suppress(OSError):
            times.append(os.stat(path).st_mtime_ns)
    return max(times)


def _wait_for_clock(newest_input: int, written: Path) -> None:
    """Be sure that what is written now is newer than the inputs; else Snakemake refuses it.

    `written` was written just now. Only on a file system that takes times from its clients, and on
    a node whose clock is behind, can it be older. A little is waited for.

    Raises TransientError: another node may have another clock.
    """
    behind = (newest_input - written.stat().st_mtime_ns) / 1e9
    if behind > CLOCK_PATIENCE:
        raise TransientError(
            f"{os.uname().nodename}: its clock is {behind:,.0f} s behind that of the node that "
            "wrote the inputs; set the clocks of the nodes (NTP), and run again"
        )
    if behind > 0:
        time.sleep(behind)


def _new_stats(path: Path, snakemake: Any) -> Stats:
    place = allocation.current()
    return Stats(
        path=path,
        run=runtoken.current(),
        started=round(time.time(), 3),
        host=os.uname().nodename,
        job=place.id if place else None,
        node=place.node if place else None,
        attempt=getattr(getattr(snakemake, "resources", None), "attempt", 1),
    )


def _give_up(stats: Stats, before: Mapping[str, Any]) -> None:
    """Raise what the attempt before this one ended with, if it would only come again."""
    again = before.get("run") == stats.run and before.get("attempt") == stats.attempt - 1
    if again and before.get("final"):
        raise UserError(before.get("error") or "failed before; see the first attempt")


def _fail(stats: Stats, cause: str, final: bool) -> None:
    stats.finished, stats.error, stats.final = False, cause, final
    with suppress(OSError):  # a full disk, perhaps the one that is the cause
        stats.write()


def _why_stopped(stop: BaseException) -> str:
    if isinstance(stop, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if getattr(stop, "code", None) == _TERMINATED:
        return "stopped by SIGTERM (time limit, preemption or a person)"
    return f"ended with status {getattr(stop, 'code', None)}"
