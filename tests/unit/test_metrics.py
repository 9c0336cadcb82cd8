"""Counts of jobs as metrics of a run."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from phototagger.metrics import append_metrics, covered, quantile, stages_since


def counts(results: Path, name: str, finished_at: float, finished: bool = True, **values) -> None:
    path = results / "logs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"finished": finished, **values}))
    os.utime(path, (finished_at, finished_at))


def a_run(started: float, run_id: str = "r1") -> SimpleNamespace:
    clip = SimpleNamespace(model="demo-clip")
    config = SimpleNamespace(clip=clip)
    return SimpleNamespace(started=started, token=None, run_id=run_id, config=config)


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


def test_a_run_finds_its_jobs_whatever_the_clocks_of_nodes_say(tmp_path):
    counts(tmp_path, "thumbs/aa", 100 - 3600, run="mine", photos=4, computed=4, seconds=1)
    counts(tmp_path, "thumbs/bb", 100 + 3600, run="yours", photos=7, computed=7, seconds=1)
    counts(tmp_path, "thumbs/cc", 101, photos=2, computed=2, seconds=1)  # of an older version
    assert stages_since(tmp_path, 100, "mine")["thumbs"].photos == 6


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


def field(done: int, seconds: list[float] | None = None, **values) -> dict:
    return {"done": done, "cached": 0, "failed": 0, "skipped": 0, "seconds": seconds, **values}


def asked(setup: str, fields: dict, **values) -> dict:
    extra = {"setup": setup, "profile": "travel", "server": "b1", "model": f"{setup}-model"}
    return {"extra": {**extra, "requests": 5, "retries": {}, "fields": fields, **values}}


def test_answers_add_up_per_field_and_setup(tmp_path):
    seconds = {"seconds": 2, "photos": 10}
    caption = field(9, [1.0, 2.0], failed=1, prompt_tokens=100, completion_tokens=10, busy=9.5)
    more = field(
        4,
        [3.0, 3.0],
        cached=2,
        skipped=6,
        inherited=1,
        prompt_tokens=40,
        completion_tokens=4,
        busy=6,
    )
    keywords = field(10, None, cached=10)
    first = asked("x", {"caption": caption}, retries={"timeout": 2, "429": 1}, raised=1)
    counts(tmp_path, "describe/x/aa", 110, **seconds, **first)
    counts(tmp_path, "describe/x/bb", 112, **seconds, **asked("x", {"caption": more}, reseeds=3))
    nothing = asked("y_llama.cpp", {"keywords": keywords}, requests=0, server=None)
    counts(tmp_path, "describe/y_llama.cpp/aa", 112, **seconds, **nothing)
    old = asked("z", {"caption": field(1)})
    counts(tmp_path, "describe/z/aa", 90, **seconds, **old)  # before this run
    stage = stages_since(tmp_path, 100)["describe"]
    assert (stage.jobs, stage.photos, stage.seconds) == (3, 30, 4.0)
    assert (stage.requests, stage.reseeds, stage.raised) == (10, 3, 1)
    assert stage.retries == {"429": 1, "timeout": 2}
    assert (stage.prompt_tokens, stage.completion_tokens) == (140, 14)
    assert list(stage.fields) == ["caption", "keywords"]
    found = stage.fields["caption"]
    assert (found.done, found.cached, found.failed, found.skipped) == (13, 2, 1, 6)
    assert (found.inherited, found.tokens, found.busy, found.setup) == (1, 154, 15.5, "x")
    assert 1.0 < found.seconds_p50 < 3.0
    assert stage.fields["keywords"].seconds_p50 is None


def test_history_names_what_described_the_photos(tmp_path):
    fields = {name: field(1, [0.5, 0.7]) for name in ("keywords", "caption")}
    counts(tmp_path, "describe/x/aa", time.time(), photos=1, **asked("x", fields))
    append_metrics(a_run(time.time() - 5), tmp_path)
    entry = json.loads((tmp_path / "metrics.json").read_text())["last"]
    assert entry["setup"] == {"caption": "x", "keywords": "x"}
    assert entry["models"] == {"clip": "demo-clip", "caption": "x-model", "keywords": "x-model"}
    assert (entry["profile"], entry["server"]) == ("travel", {"x": "b1"})
    described = entry["stages"]["describe"]["fields"]["caption"]
    assert (described["seconds_p50"], described["seconds_p95"]) == (0.5, 0.7)


def test_a_run_that_asked_nothing_says_so(tmp_path):
    counts(tmp_path, "thumbs/aa", time.time(), photos=1)
    append_metrics(a_run(time.time() - 5), tmp_path)
    entry = json.loads((tmp_path / "metrics.json").read_text())["last"]
    assert (entry["setup"], entry["profile"], entry["server"]) == ({}, None, {})
    assert entry["models"] == {"clip": "demo-clip"}
    assert "requests" not in entry["stages"]["thumbs"]


latencies = st.tuples(st.integers(1, 500), st.floats(0, 60), st.floats(0, 60))


@given(st.lists(latencies.map(lambda x: (x[0], min(x[1:]), max(x[1:]))), min_size=1, max_size=6))
def test_quantiles_lie_between_those_of_the_jobs(jobs):
    p50, p95 = quantile(jobs, 0.5), quantile(jobs, 0.95)
    assert p50 <= p95
    assert min(j[1] for j in jobs) - 1e-3 <= p50 <= max(j[1] for j in jobs) + 1e-3
    assert min(j[2] for j in jobs) - 1e-3 <= p95 <= max(j[2] for j in jobs) + 1e-3


def test_quantiles_of_one_job_are_its_own():
    assert quantile([(7, 0.25, 1.5)], 0.5) == 0.25
    assert quantile([(7, 0.25, 1.5)], 0.95) == 1.5
    assert quantile([(900, 1.0, 2.0), (100, 10.0, 60.0)], 0.5) < 1.2  # few slow ones move little


def test_what_two_jobs_computed_ahead_makes_no_negative_number(tmp_path):
    for name in ("embed/aa", "embed/bb"):
        counts(tmp_path, name, 110, photos=4, computed=4, seconds=1, extra={"ahead": 4})
    stage = stages_since(tmp_path, 100)["embed"]
    assert (stage.photos, stage.computed, stage.cached) == (8, 16, 0)
