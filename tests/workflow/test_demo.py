"""The demo as a person runs it: real photos, a model with a meaning, the command line."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from phototagger import models
from phototagger.clip import local_text_config
from phototagger.demo import make_demo_photos
from phototagger.tables import read_table
from workflow.library import Library, make_library

COMMAND = [sys.executable, "-m", "phototagger.cli"]


def photo_tagger(work: Path, *arguments: str, code: int = 0) -> str:
    """Output of a command in a work directory, which must end with that exit code."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PHOTO_TAGGER__")}
    result = subprocess.run(
        [*COMMAND, *arguments], cwd=work, env=environment, capture_output=True, text=True
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def demo(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a finished run over the demo photos."""
    work = tmp_path_factory.mktemp("demo")
    make_demo_photos(work / "photos")
    photo_tagger(work, "run", "photos")
    return work


def records(work: Path) -> dict[str, dict]:
    lines = (work / "results/records.jsonl").read_text().splitlines()
    return {Path(record["rel_path"]).stem: record for record in map(json.loads, lines)}


def test_labels_mean_something(demo):
    found = records(demo)
    top = {name: record["labels"][0]["label"] for name, record in found.items()}
    assert top["Chelsea the cat"] == "cat"
    assert top["Rocket at dusk"] == "rocket"
    assert top["Espresso"] in ("coffee", "cup")
    assert top["Dahlia"] == "flower"
    assert top["Motorcycle left"] == top["Motorcycle right"] == "motorcycle"
    assert "cat" in [k["keyword"] for k in found["Chelsea the cat"]["keywords"]]


def test_the_rotated_photo_is_upright(demo):
    found = records(demo)
    turned, straight = found["Motorcycle right"], found["Motorcycle left"]
    assert turned["orientation"] == 6
    assert (turned["width"], turned["height"]) == (straight["width"], straight["height"])


def vectors(path: Path, key: str) -> dict[str, list[float]]:
    table = read_table(path)
    return dict(zip(table[key].to_pylist(), table["embedding"].to_pylist(), strict=True))


def test_embeddings_are_open_clips_and_cosines_are_numpys(demo, demo_models):
    import open_clip
    import torch
    from PIL import Image

    folder = models.model_folder(demo_models, "demo-clip")
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", pretrained_text=False, **local_text_config(folder)
    )
    model.eval()
    stored = {}
    for path in (demo / "results/embeddings").iterdir():
        table = read_table(path)
        stored |= dict(
            zip(table["sha256"].to_pylist(), table["embedding"].to_pylist(), strict=True)
        )
    labels = read_table(demo / "results/labels/embeddings.parquet")
    texts = dict(zip(labels["label"].to_pylist(), labels["embedding"].to_pylist(), strict=True))
    for record in records(demo).values():
        with Image.open(demo / "cache/thumbs" / record["thumb"]) as thumb:
            pixels = preprocess(thumb)
        with torch.inference_mode():
            direct = model.encode_image(pixels[None])[0].numpy()
        vector = np.array(stored[record["sha256"]])
        assert np.abs(vector - direct).max() <= 1e-5
        for score in record["labels"]:
            text = np.array(texts[score["label"]])
            cosine = vector @ text / np.linalg.norm(vector) / np.linalg.norm(text)
            assert abs(cosine - score["cosine"]) <= 2e-6


def test_search_finds_by_words_and_by_likeness(demo, tmp_path):
    first = photo_tagger(demo, "search", "a cat", "-k", "1")
    assert "Chelsea the cat.jpg" in first
    page = tmp_path / "found.html"
    like = photo_tagger(
        demo, "search", "--like", "photos/At home/Motorcycle left.png", "--html", str(page)
    )
    lines = [line for line in like.splitlines() if "Motorcycle" in line]
    assert len(lines) == 2
    assert page.stat().st_size > 10_000
    photo_tagger(demo, "search", code=2)


def test_again_there_is_nothing_to_do_and_status_says_so(demo):
    started = time.monotonic()
    assert "up to date" in photo_tagger(demo, "run")
    assert time.monotonic() - started < 15
    assert "up to date" in photo_tagger(demo, "status")
    stale = photo_tagger(demo, "run", "--dry-run", "--set", "score.threshold=0.5")
    assert "threshold" in stale


def test_usage_errors_exit_with_2(demo):
    assert "unknown 'treshold'" in photo_tagger(demo, "run", "--set", "score.treshold=1", code=2)
    assert "demo-clip" in photo_tagger(demo, "run", "--clip-model", "none", code=2)
    assert "no such folder" in photo_tagger(demo, "run", "/nowhere", code=2)
    photo_tagger(demo, "run", "--no-such-option", code=2)


def test_nothing_is_written_beside_the_photos(demo):
    made = {path for path in (demo / "photos").rglob("*") if path.is_file()}
    assert len(made) == 14
    assert not [path for path in made if path.suffix == ".xmp"]


def test_ctrl_c_leaves_a_state_that_resumes(tmp_path, wiring):
    library = Library(tmp_path / "work", make_library(tmp_path / "photos", 300), wiring)
    library.work.mkdir()
    command = [*COMMAND, "run", str(library.photos), "--cores", "2"]
    run = subprocess.Popen(
        command, cwd=library.work, env=library.environment(), stdout=subprocess.DEVNULL
    )
    wait_for(lambda: list((library.results / "thumbs").glob("*.parquet")))
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 1
    assert not (library.results / "records.jsonl").exists()
    done = subprocess.run(command, cwd=library.work, env=library.environment(), check=False)
    assert done.returncode == 0
    assert json.loads((library.results / "check.json").read_text())["records"] == 300


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_job_fails_the_run_and_is_named(tmp_path, wiring):
    library = Library(tmp_path / "work", make_library(tmp_path / "photos", 10), wiring)
    (library.work / "cache").mkdir(parents=True)
    (library.work / "cache/thumbs").write_text("in the way")
    result = subprocess.run(
        [*COMMAND, "run", str(library.photos)],
        cwd=library.work,
        env=library.environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "thumbs" in result.stdout + result.stderr
    assert not list(library.results.glob("thumbs/*"))


def test_originals_keep_their_bytes_and_times(demo):
    def state() -> dict[Path, tuple[str, int]]:
        return {
            path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in (demo / "photos").rglob("*.*")
        }

    before = state()
    make_demo_photos(demo / "photos")  # writes only what differs
    assert state() == before
