"""Disks that are full or read-only, clocks that differ, locks that do not hold, no network.

A run ends with one clear line, or with the results of an undisturbed one; after the fault has
passed, the next run gives those.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workflow.library import Library, make_library, make_photo

PHOTOS = 8
SKEW = 3600  # seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, wiring: dict[str, str]) -> Library:
    base = tmp_path_factory.mktemp("undisturbed")
    library = Library(base / "work", make_library(base / "photos", PHOTOS, 4), dict(wiring))
    library.snakemake()
    return library


@pytest.fixture
def fresh(undisturbed: Library, tmp_path: Path) -> Library:
    """A work directory of its own for the same photos and settings."""
    return Library(tmp_path / "work", undisturbed.photos, dict(undisturbed.settings))


@pytest.fixture
def finished(undisturbed: Library, tmp_path: Path) -> Library:
    """A copy of the undisturbed one and of its photos, which may be changed."""
    shutil.copytree(undisturbed.work, tmp_path / "work")
    shutil.copytree(undisturbed.photos, tmp_path / "photos")
    return Library(tmp_path / "work", tmp_path / "photos", dict(undisturbed.settings))


@pytest.fixture
def disk() -> Iterator[Callable[..., Path]]:
    """Mounts a small disk; `remount` it with other options to mend or break it."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str, remount: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"remount,{options}" if remount else options
        command = ["mount", "-t", "tmpfs", "-o", options, "photo-tagger-test", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("disks can be mounted by root only")
        if not remount:
            mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def patched(library: Library, folder: Path, code: str) -> dict[str, str]:
    """The environment of Pythons that run `code` first."""
    (folder / "first").mkdir()
    (folder / "first/sitecustomize.py").write_text(code)
    environment = library.environment()
    return environment | {"PYTHONPATH": f"{folder}/first:{environment['PYTHONPATH']}"}


def said(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tables(library: Library) -> dict[str, str]:
    return {path.name: digest(path) for path in (library.results / "thumbs").glob("*.parquet")}


def left_behind(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.tmp*") if path.is_file()]


# -------------------------------------------------------------------------------------- full disk


@pytest.mark.parametrize(
    ("folder", "size"),
    [("cache", "40k"), ("results", "8k"), ("results", "36k")],  # the plan, a job
    ids=["cache", "results, planning", "results, a job"],
)
def test_a_full_disk_ends_in_one_line_and_costs_nothing(fresh, undisturbed, disk, folder, size):
    place = disk(fresh.work / folder, f"size={size}")
    failed = fresh.snakemake("thumbs_all", check=False)
    assert failed.returncode
    text = said(failed)
    assert "no space left on device; make room there and run again" in text
    assert "Traceback" not in text
    assert left_behind(fresh.results, place) == []
    if folder == "cache":
        [counts] = fresh.jobs("thumbs")
        assert counts["error"].startswith(f"{folder}/")
        assert not counts["final"]  # trying again can help
    disk(place, "size=64m", remount=True)
    fresh.snakemake("thumbs_all")
    assert tables(fresh) == tables(undisturbed)
    assert len(list((fresh.work / "cache/thumbs").rglob("*.jpg"))) == PHOTOS


# -------------------------------------------------------------------------------- read-only cache


def test_a_read_only_cache_is_used_as_it_is(finished, undisturbed, disk):
    """What it has is not made again, what it lacks is made and not kept, and that is said once."""
    cache = finished.work / "cache"
    kept = finished.work / "kept"
    cache.rename(kept)
    disk(cache, "size=64m")
    shutil.copytree(kept, cache, dirs_exist_ok=True)
    new = make_photo(finished.photos / "shoot 00" / "IMG_9999.jpg", 4711)
    before = sorted(cache.rglob("*"))
    disk(cache, "ro", remount=True)
    finished.clear_counts()
    finished.snakemake("collect", "sidecars_all")
    assert finished.computed("thumbs") == finished.computed("embed") == 1
    assert sorted(cache.rglob("*")) == before
    [log] = (finished.results / "logs/thumbs").glob("*.log")
    warnings = [line for line in log.read_text().splitlines() if "cannot be written" in line]
    assert "Read-only file system" in warnings[0]
    assert len(warnings) <= 2  # thumbnails; sizes and times
    assert "IMG_9999.jpg" in (finished.results / "records.jsonl").read_text()
    new.unlink()
    finished.snakemake("collect", "sidecars_all")
    same = {k: v for k, v in finished.promised().items() if k.startswith(("records", "sidecars"))}
    assert same.items() <= undisturbed.promised().items()


# ----------------------------------------------------------------------------------------- clocks


# The clock of processes. The times of files are the file server's, as on NFS, also where a program
# asks for the present one: libfaketime would change that.
CLOCK = """
import os, time
real, skew = time.time, float(os.environ["SKEW"])
time.time = lambda: real() + skew
"""


@pytest.mark.parametrize("skew", [SKEW, -SKEW])
def test_a_run_whose_clock_is_an_hour_off(finished, tmp_path, skew):
    """The main process and its jobs."""
    shutil.copy(finished.photos / "shoot 00/IMG_0002.jpg", finished.photos / "shoot 00/more.jpg")
    environment = patched(finished, tmp_path, CLOCK) | {"SKEW": str(skew)}
    result = subprocess.run(
        finished.command("collect"), env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, said(result)[-3000:]
    assert "more.jpg" in (finished.results / "records.jsonl").read_text()
    [counts] = finished.jobs("collect")
    assert abs(counts["started"] - skew - time.time()) < SKEW / 2  # the clock was off
    assert "Nothing to be done" in said(finished.snakemake("collect"))


# Jobs on a node with another clock, and a file system that takes the times of files from there.
NODE = """
import os, sys, time
from pathlib import Path
if any("/.snakemake/scripts/" in word for word in sys.orig_argv):
    real, replace = time.time, Path.replace
    time.time = lambda: real() - 3600
    def stamped(self, target):
        replace(self, target)
        os.utime(target, (time.time(), time.time()))
    Path.replace = stamped
"""


def test_a_node_whose_clock_stamps_files_an_hour_early(finished, tmp_path):
    shoot = finished.photos / "shoot 00"
    shutil.copy(shoot / "IMG_0002.jpg", shoot / "more.jpg")
    failed = subprocess.run(
        finished.command("thumbs_all"),
        env=patched(finished, tmp_path, NODE),
        capture_output=True,
        text=True,
    )
    assert failed.returncode
    assert "s behind that of the node that wrote the inputs; set the clocks" in said(failed)
    assert "Traceback" not in said(failed)
    finished.snakemake("thumbs_all")
    assert sum(job["photos"] for job in finished.jobs("thumbs")) == PHOTOS + 1


def test_results_of_the_future_hide_no_change(finished):
    """A run that was cut off, after one on a computer whose clock is an hour ahead."""
    later = time.time() + SKEW
    for path in sorted(finished.results.rglob("*")):
        os.utime(path, (later, later))
    shoot, records = finished.photos / "shoot 00", finished.results / "records.jsonl"
    shutil.copy(shoot / "IMG_0003.jpg", shoot / "more.jpg")
    finished.snakemake("collect", "--until", "record")  # and no further
    assert "more.jpg" not in records.read_text()
    finished.snakemake("collect")
    assert "more.jpg" in records.read_text()
    assert "Nothing to be done" in said(finished.snakemake("collect"))


# ---------------------------------------------------------------------------------------- network


def test_a_node_without_a_network(fresh, tmp_path):
    """Photos and labels are embedded, and nothing waits for anybody."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("a network can be taken away by root only")
    command = ["unshare", "-n", *fresh.command("embed_all", "labels")]
    fresh.work.mkdir()
    environment = {k: v for k, v in fresh.environment().items() if not k.startswith("HF_")}
    scratch = {"PHOTO_TAGGER__SCRATCH": "$NODE_DISK", "NODE_DISK": str(tmp_path / "disk")}
    result = subprocess.run(command, env=environment | scratch, capture_output=True, text=True)
    assert result.returncode == 0, said(result)[-3000:]
    assert fresh.computed("embed") == PHOTOS
    copies = list((tmp_path / "disk").rglob("model.safetensors"))
    assert len(copies) == 1  # one copy, for both rules
