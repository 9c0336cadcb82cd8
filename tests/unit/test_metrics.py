"""Counts of jobs as metrics of a run."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from phototagger.metrics import append_metrics, covered, stages_since


def counts(results: Path, name: str, finished_at: float, finished: bool = True, **values) -> None:
    path = results / "logs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"finished": finished, **values}))
    os.utime(path, (finished_at, finished_at))


def a_run(started: float, run_id: str = "r1") -> SimpleNamespace:
    clip = SimpleNamespace(model="demo-clip")
    return SimpleNamespace(started=started, run_id=run_id, config=SimpleNamespace(clip=clip))


def test_stages_add_up_and_parallel_seconds_count_once(tmp_path):
    counts(tmp_path, "embed/aa", 110, photos=4, computed=4, seconds=2)
    counts(tmp_path, "thumbs/aa", 104, photos=10, computed=7, cached=2, problems=1, seconds=4)
    counts(tmp_path, "thumbs/bb", 106, photos=10, computed=10, seconds=4)
    counts(tmp_path, "thumbs/cc", 99, photos=10, computed=10, seconds=4)  # before this run
    counts(tmp_path, "thumbs/dd", 105, finished=False, photos=10, computed=3, seconds=1)
    counts(tmp_path, "labels", 101, seconds=1)
    stages = stages_since(tmp_path, 100)
    assert list(stages) == ["thumbs", "embed", "labels"]
    thumbs = stages["thumbs"]
    assert (thumbs.jobs, thumbs.photos, thumbs.computed, thumbs.cached) == (2, 20, 17, 2)
    assert (thumbs.problems, thumbs.seconds) == (1, 6.0)
    assert thumbs.photos_per_second == 3.3


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)), max_size=8))
def test_covered_is_the_number_of_seconds_in_any_span(spans):
    spans = [(low, low + length) for low, length in spans]
    seconds = {second for low, high in spans for second in range(low, high)}
    assert covered(spans) == len(seconds)


def test_runs_are_appended(tmp_path):
    started = time.time() - 5
    counts(tmp_path, "thumbs/aa", time.time(), photos=3, computed=1, cached=2, seconds=0.5)
    append_metrics(a_run(started, "r1"), tmp_path)
    append_metrics(a_run(time.time() + 1, "r2"), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["run_id"] for entry in metrics["history"]] == ["r1", "r2"]
    assert metrics["last"] == metrics["history"][1]
    assert metrics["history"][0]["model"] == "demo-clip"
    assert metrics["history"][0]["stages"]["thumbs"]["cached"] == 2
    assert metrics["history"][0]["seconds"] >= 5
    assert metrics["last"]["stages"] == {}


def test_a_broken_history_is_kept_aside(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    for number, broken in enumerate(["{half", '{"history": 3}', "[]", b"\xff\xfe"], start=1):
        path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
        caplog.clear()
        append_metrics(a_run(time.time()), tmp_path)
        assert f"metrics.json.corrupt-{number}" in caplog.text
        aside = (tmp_path / f"metrics.json.corrupt-{number}").read_bytes()
        assert aside == (broken if isinstance(broken, bytes) else broken.encode())
        assert len(json.loads(path.read_text())["history"]) == 1
