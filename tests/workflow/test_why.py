"""`why` after a real run: a photo that cannot be read, one that changed, one that moved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workflow.library import Library, make_library


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, wiring: dict[str, str]) -> Library:
    """Eight photos, one of them cut off, and a run as a person starts it."""
    folder = tmp_path_factory.mktemp("why")
    photos = make_library(folder / "photos", 8, per_folder=4)
    bad = photos / "shoot 01/IMG_0005.jpg"
    bad.write_bytes(bad.read_bytes()[:700])
    library = Library(folder / "work", photos, {**wiring, "PHOTO_TAGGER__PLAN__SHARD_SIZE": "4"})
    photo_tagger(library, "run", str(photos), "--cores", "2")
    return library


def photo_tagger(library: Library, *arguments: str) -> str:
    library.work.mkdir(exist_ok=True)
    environment = library.environment()
    del environment["PHOTO_TAGGER__PHOTOS__ROOTS"]
    result = subprocess.run(
        [sys.executable, "-m", "phototagger.cli", *arguments],
        cwd=library.work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def why(library: Library, photo: Path | str, *flags: str) -> dict:
    return json.loads(photo_tagger(library, "why", str(photo), "--json", *flags))


def states(answer: dict) -> dict[str, str]:
    return {row["stage"]: row["state"] for row in answer["stages"]}


def test_the_story_of_photos_is_true(finished):
    answer = why(finished, "IMG_0005.jpg")
    assert states(answer) == {"thumbs": "problem"} | dict.fromkeys(
        ("embed", "score", "record", "sidecars"), "skipped"
    )
    assert "truncated" in (finished.work / answer["stages"][0]["log"]).read_text()
    answer = why(finished, finished.photos / "shoot 00/IMG_0000.jpg")
    assert set(states(answer).values()) == {"done"}
    assert (finished.work / answer["stages"][-1]["proposal"]).exists()
    for row in answer["stages"]:
        assert row["job"]["host"] == os.uname().nodename
        assert row["job"]["finished"] and row["job"]["seconds"] >= 0


def test_stale_and_moved_photos_are_told_from_the_others(finished):
    changed, moved = (finished.photos / f"shoot 00/IMG_000{n}.jpg" for n in (1, 2))
    shutil.copy(finished.photos / "shoot 01/IMG_0004.jpg", changed)
    new = moved.rename(finished.photos / "shoot 01/IMG_0009.jpg")
    assert why(finished, moved)["because"].startswith("there is no such file any more")
    answer = why(finished, changed)
    assert answer["stages"][0]["state"] == "stale"
    assert "changed" in answer["stages"][0]["because"]
    assert set(states(why(finished, new)).values()) == {"not yet"}
    assert "check" in answer["tables"]
    photo_tagger(finished, "run", "--cores", "2")
    for photo in (changed, new):
        assert set(states(why(finished, photo, "--quick")).values()) == {"done"}
    jobs = [row["job"] for row in why(finished, new, "--quick")["stages"]]
    assert jobs[0]["computed"] == 0  # it is known by its content
