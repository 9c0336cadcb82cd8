"""Limits on how many jobs start per second."""

from types import SimpleNamespace

import pytest
from snakemake.scheduling.job_scheduler import JobRateLimiter, JobScheduler
from snakemake.settings.types import MaxJobsPerTimespan

from phototagger import pace


def limited(text: str) -> SimpleNamespace:
    return SimpleNamespace(job_rate_limiter=JobRateLimiter(MaxJobsPerTimespan.parse_choice(text)))


def test_what_limits_nothing_is_taken_away():
    scheduler = limited("10000/1s")
    assert pace.lift(scheduler)
    assert scheduler.job_rate_limiter is None


@pytest.mark.parametrize("text", ["10/1m", "100/1s", "10000/1m"])
def test_a_real_limit_stays(text):
    scheduler = limited(text)
    assert not pace.lift(scheduler)
    assert scheduler.job_rate_limiter is not None


def test_no_limit_to_begin_with():
    assert not pace.lift(SimpleNamespace(job_rate_limiter=None))
    assert not pace.lift(None)
    assert not pace.lift(SimpleNamespace(job_rate_limiter=SimpleNamespace(renamed=1)))


def test_snakemake_still_has_what_is_taken_away():
    """Another version may name it otherwise: then `pace` has to be looked at again."""
    assert "job_rate_limiter" in JobScheduler.schedule.__code__.co_names
