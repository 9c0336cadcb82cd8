"""Snakemake's limit on how many jobs start per second, taken away where it limits nothing.

With any such limit Snakemake 9.27 (`JobScheduler.schedule`) looks for jobs to start once a second
for every job that has ended so far: the end of a job makes it look, and each look sets a timer for
one more. After a thousand jobs that takes a core. Its command line has no value for "no limit".
"""

from typing import Any

NO_LIMIT = 1000  # jobs per second; no machine and no cluster starts as many


def lift(scheduler: Any) -> bool:
    """Take away the limit of a scheduler that has not begun yet; returns whether it was lifted.

    A limit that means something, as in `--max-jobs-per-timespan 10/1m`, stays; so does one that
    another version of Snakemake keeps elsewhere, which costs time, and nothing else.
    """
    limit = getattr(scheduler, "job_rate_limiter", None)
    jobs, seconds = (getattr(limit, name, None) for name in ("max_jobs", "timespan"))
    if jobs is None or seconds is None or jobs < NO_LIMIT * seconds:
        return False
    scheduler.job_rate_limiter = None
    return True
