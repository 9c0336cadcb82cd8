"""Files that are whole or not there, on disks that are full, lost or may only be read."""

import errno
import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from phototagger import files, job
from phototagger.clocks import set_back
from phototagger.errors import TransientError, UserError
from phototagger.files import atomic, explain, keep, write_atomic


def failing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def replace(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_one_line_that_names_the_file(tmp_path, monkeypatch, number):
    path = tmp_path / "table.parquet"
    path.write_text("before")
    failing(monkeypatch, number)
    with pytest.raises(OSError) as caught:
        write_atomic(path, "after")
    told = explain(caught.value)
    assert isinstance(told, TransientError)
    assert str(told).startswith(f"{path}: {os.strerror(number).lower()}; ")
    assert "run again" in str(told)
    assert os.listdir(tmp_path) == ["table.parquet"]
    assert path.read_text() == "before"


def test_what_a_library_says_without_a_name_gets_one(tmp_path):
    with pytest.raises(OSError) as caught, atomic(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "Error writing bytes to file")
    assert str(explain(caught.value)).startswith(f"{tmp_path / 'x'}: no space left on device")


def test_what_stays_is_no_reason_to_try_again_and_what_is_ours_is_a_traceback():
    told = explain(PermissionError(errno.EACCES, "Permission denied", "/shared/results/x"))
    assert isinstance(told, UserError)
    assert not isinstance(told, TransientError)
    for error in (ValueError("x"), OSError("image file is truncated"), FileNotFoundError(2, "x")):
        assert explain(error) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_cache_that_may_only_be_read_is_told_of_once(tmp_path, monkeypatch, caplog, number):
    failing(monkeypatch, number)
    monkeypatch.setattr(files, "_warned", set())
    with caplog.at_level(logging.WARNING):
        assert not keep(tmp_path / "ab/1", b"1")
        assert not keep(tmp_path / "ac/2", b"2")
    assert len(caplog.records) == 1
    assert str(tmp_path) in caplog.text


def test_a_full_cache_is_not_taken_for_a_read_only_one(tmp_path, monkeypatch):
    failing(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        keep(tmp_path / "ab/1", b"1")


# ------------------------------------------------------------------------------------------ a job


def snakemake(tmp_path: Path, **given: list[str]) -> SimpleNamespace:
    return SimpleNamespace(log=[str(tmp_path / "logs/x.log")], rule="thumbs", **given)


@pytest.mark.parametrize(("number", "final"), [(errno.ENOSPC, False), (errno.EACCES, True)])
def test_a_job_ends_with_that_line(tmp_path, capfd, number, final):
    given = snakemake(tmp_path)
    with pytest.raises(SystemExit) as ended, job.job(given):
        raise OSError(number, os.strerror(number), "/shared/x")
    assert ended.value.code == 1
    error = capfd.readouterr().err
    assert error.startswith(f"thumbs: /shared/x: {os.strerror(number).lower()}; ")
    assert error.count("\n") == 1
    counts = job.read_counts(tmp_path / "logs/x.json")
    assert counts["final"] is final


def test_a_node_whose_clock_is_a_little_behind_waits(tmp_path, monkeypatch):
    source, waited = tmp_path / "in", []
    source.write_text("")
    os.utime(source, (time.time() + 20,) * 2)
    monkeypatch.setattr(job.time, "sleep", waited.append)
    with job.job(snakemake(tmp_path, input=[str(source)])):
        pass
    assert 18 < waited[0] <= 20


def test_a_node_whose_clock_is_an_hour_behind_says_so(tmp_path, capfd):
    source = tmp_path / "in"
    source.write_text("")
    os.utime(source, (time.time() + 3600,) * 2)
    with pytest.raises(SystemExit), job.job(snakemake(tmp_path, input=[str(source)])):
        pytest.fail("it must not begin")
    assert "its clock is 3,6" in capfd.readouterr().err
    assert job.read_counts(tmp_path / "logs/x.json")["final"] is False


def test_results_of_the_future_are_brought_back(tmp_path):
    soon, late, folder = tmp_path / "soon", tmp_path / "late", tmp_path / "folder"
    folder.mkdir()
    stamp = folder / ".snakemake_timestamp"
    for path, ahead in ((soon, 3600), (late, 7200), (stamp, 3600)):
        path.write_text("")
        os.utime(path, (time.time() + ahead,) * 2)
    old = tmp_path / "old"
    old.write_text("")
    os.utime(old, (1000, 1000))
    assert set_back([soon, late, folder, old, tmp_path / "gone"], tmp_path) == [soon, late, stamp]
    assert soon.stat().st_mtime_ns == late.stat().st_mtime_ns <= time.time_ns() + 10**9
    assert old.stat().st_mtime == 1000


def test_a_hostile_name_stays_on_one_line():
    name = "/photos/a\x1b[2J\nb\udce9.jpg"
    told = str(explain(OSError(errno.EIO, "Input/output error", name)))
    assert told.startswith("/photos/a\\u001b[2J\\nb\\xe9.jpg: input/output error; ")
    told.encode()
