"""When a job of a batch system has to stop asking."""

import time

import pytest

from phototagger.allocation import Allocation
from phototagger.errors import TransientError
from phototagger.processes import Process
from phototagger.timeleft import LEAVING, RESERVE, SLOWEST, TimeLeft


def test_without_an_end_there_is_always_enough():
    for left in (TimeLeft.of(None), TimeLeft.of(Allocation("pbs-1", "n", Process(1, "")))):
        left.answered(1e9)
        left.check()
        assert left.until_leaving() is None


def test_a_reserve_is_kept():
    TimeLeft(time.time() + RESERVE + 5).check()
    left = TimeLeft.of(Allocation("slurm-1", "n", Process(1, ""), time.time() + RESERVE - 5))
    with pytest.raises(TransientError, match=r"the allocation ends in 5\d s; what was answered"):
        left.check()
    assert RESERVE - LEAVING - 6 < left.until_leaving() < RESERVE - LEAVING


def test_slow_answers_need_more():
    left = TimeLeft(time.time() + RESERVE + 60)
    left.answered(10)
    left.check()
    left.answered((RESERVE + 70) / SLOWEST)
    left.answered(1)
    assert not left.is_enough()


def test_what_is_over_is_over():
    left = TimeLeft(time.time() - 100)
    assert left.until_leaving() == 0
    assert "ends in 0 s" in str(left.over())
