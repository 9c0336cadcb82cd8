"""Events to photos: the state of a run, its display, and reasons in words."""

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from phototagger import runtoken
from phototagger.cli.events import (
    KILLED,
    NOT_BEGUN,
    Failure,
    Follower,
    Job,
    RunState,
    Stage,
    group_failures,
    last_words,
    live_count,
    plain_error,
)
from phototagger.cli.progress import Bars, Lines, describe, queue
from phototagger.cli.status import PHOTOS_CHANGED, Words, rows, show_running
from phototagger.cli.summary import count_problems, show_summary, top_labels

SHARDS = {"a": 10, "b": 20, "c": 60}


def info(
    job: int,
    shard: str | None,
    rule: str = "thumbs",
    log: Path | None = None,
    setup: str | None = None,
) -> dict:
    wildcards = {"shard": shard} if shard else {}
    wildcards |= {"setup": setup} if setup else {}
    logs = [str(log)] if log else []
    return {
        "event": "job_info",
        "job": job,
        "rule": rule,
        "wildcards": wildcards,
        "log": logs,
        "reason": "Missing output files: x",
        "time": 100.0,
    }


def state_of(*events: dict, jobs: int = 3) -> RunState:
    state = RunState(dict(SHARDS))
    for event in [{"event": "run_info", "jobs": {"thumbs": jobs, "total": jobs}}, *events]:
        state.apply(event)
    return state


def test_all_shards_stale_is_all_photos():
    assert state_of().stage("thumbs") == Stage(0, 90)


def test_some_shards_stale_is_guessed_until_they_start():
    assert state_of(jobs=2).stage("thumbs") == Stage(0, 60)
    assert state_of(info(1, "a"), jobs=2).stage("thumbs") == Stage(0, 10 + 40)
    assert state_of(info(1, "a"), info(2, "b"), jobs=2).stage("thumbs") == Stage(0, 30)


def test_finished_jobs_are_done_and_failed_ones_are_not(tmp_path):
    log = tmp_path / "b.log"
    log.write_text("INFO began\nERROR no light\nTraceback\n")
    state = state_of(
        info(1, "a"),
        {"event": "job_finished", "job": 1},
        info(2, "b", log=log),
        {"event": "job_error", "job": 2, "rule": "thumbs", "log": [str(log)]},
    )
    assert state.stage("thumbs") == Stage(10, 90)
    assert state.failures == [Failure("thumbs", "b", log, "no light")]
    assert state.running() == []


def test_running_jobs_count_their_photos(tmp_path):
    log = tmp_path / "c.log"
    counts = {"computed": 5, "cached": 2, "problems": 1, "skipped": 0, "photos": 60}
    (tmp_path / "c.json").write_text(json.dumps(counts))
    assert state_of(info(1, "c", log=log)).stage("thumbs") == Stage(8, 90)
    os.utime(tmp_path / "c.json", (50, 50))  # left by an earlier run
    assert state_of(info(1, "c", log=log)).stage("thumbs") == Stage(0, 90)


def test_live_counts_may_be_missing_or_odd(tmp_path):
    job = Job("thumbs", "a", tmp_path / "a.log", "", 0.0)
    assert live_count(job) == 0
    (tmp_path / "a.json").write_text("[]")
    assert live_count(job) == 0


def describing(*jobs: tuple[str, str], planned: int) -> RunState:
    events = [info(n, shard, "describe", setup=setup) for n, (shard, setup) in enumerate(jobs)]
    state = state_of(*events, jobs=0)
    state.planned = {"describe": planned}
    return state


def test_photos_count_once_per_model_setup():
    assert describing(planned=6).stage("describe") == Stage(0, 180)
    assert describing(("a", "x"), planned=6).stage("describe") == Stage(0, 180)
    assert describing(("a", "x"), ("a", "y"), planned=2).stage("describe") == Stage(0, 20)
    every = [(shard, setup) for shard in SHARDS for setup in "xy"]
    state = describing(*every, planned=6)
    state.apply({"event": "job_finished", "job": 0})
    assert state.stage("describe") == Stage(10, 180)


def refused(tmp_path: Path, *shards: str, cause: str = "the model is blind") -> RunState:
    """A run in which `describe` fails for every shard, each log naming its own shard."""
    state = state_of(*(info(n, s, "describe", setup="m") for n, s in enumerate(shards)))
    for number, shard in enumerate(shards):
        log = tmp_path / f"{shard}.log"
        log.write_text(f"ERROR results/{shard}.jsonl: {cause}\n")
        state.apply({"event": "job_error", "job": number, "rule": "describe", "log": [str(log)]})
    return state


# ------------------------------------------------------------ jobs on nodes, tried again, in groups


def leave(tmp_path: Path, shard: str, **counts) -> Path:
    log = tmp_path / f"{shard}.log"
    log.write_text("INFO began\n")
    log.with_suffix(".json").write_text(json.dumps({"run": "now", **counts}))
    return log


def error(job: int, log: Path, said: str = "") -> dict:
    event = {"event": "job_error", "job": job, "rule": "thumbs", "log": [str(log)]}
    return event | {"said": said}


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunState:
    """The state of a run whose jobs name it in their counts."""
    monkeypatch.chdir(tmp_path)
    runtoken.publish("now")
    state = state_of()
    state.token = "now"
    return state


def apply(state: RunState, *events: dict) -> None:
    for event in events:
        state.apply(event)


def test_what_is_tried_again_has_not_failed(tracked, tmp_path):
    log = leave(tmp_path, "a", error="the server is gone")
    log.write_text("ERROR the server is gone\n")
    apply(tracked, info(1, "a", log=log), error(1, log))
    assert [failure.cause for failure in tracked.failures] == ["the server is gone"]
    apply(tracked, info(1, "a", log=log))
    assert tracked.failures == [] and len(tracked.running()) == 1
    apply(tracked, {"event": "job_finished", "job": 1})
    assert tracked.failures == [] and tracked.stage("thumbs").done == 10


@pytest.mark.parametrize(
    ("said", "told"),
    [("", ""), ("SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. Reason", "; SLURM: TIMEOUT")],
)
def test_a_killed_job_is_told_as_killed(said, told, tracked, tmp_path):
    log = leave(tmp_path, "a", finished=False, error=None)
    apply(tracked, info(1, "a", log=log), error(1, log, said))
    assert [failure.cause for failure in tracked.failures] == [KILLED + told]


def test_the_log_of_an_earlier_run_is_no_reason(tracked, tmp_path):
    log = leave(tmp_path, "a", run="before", finished=True)
    apply(tracked, info(1, "a", log=log), error(1, log, "SLURM status is: 'NODE_FAIL'"))
    assert [failure.cause for failure in tracked.failures] == [f"{NOT_BEGUN}; SLURM: NODE_FAIL"]


def test_of_a_group_only_who_failed_is_told(tracked, tmp_path):
    done = leave(tmp_path, "a", finished=True)
    bad = leave(tmp_path, "b", error="no light")
    bad.write_text("ERROR no light\n")
    never = tmp_path / "c.log"
    logs = {1: done, 2: bad, 3: never}
    apply(tracked, *(info(n, path.stem, log=path) for n, path in logs.items()))
    apply(tracked, {"event": "group_error", "group": "g", "jobs": [1, 2, 3]})
    apply(tracked, *(error(n, path) for n, path in reversed(logs.items())))
    assert [(failure.shard, failure.cause) for failure in tracked.failures] == [("b", "no light")]
    assert tracked.stage("thumbs").done == 0  # what the group made is deleted


def test_jobs_that_wait_are_told_from_those_at_work(tracked, tmp_path):
    at_work = leave(tmp_path, "a", node="gpu1", host="n17")
    elsewhere = leave(tmp_path, "b", host="n18")
    waits = leave(tmp_path, "c", run="before", node="gpu9")
    for number, log in enumerate((at_work, elsewhere, waits)):
        apply(tracked, info(number, log.stem, log=log))
    assert [job.shard for job in tracked.waiting()] == ["c"]
    assert queue(tracked, now=200.0) == "2 jobs running, 1 waiting"
    assert queue(tracked, now=101.0) == ""  # a moment after they were submitted
    assert tracked.places() == {"gpu1": {"thumbs": 1}, "n18": {"thumbs": 1}}
    tracked.submits = False  # on this machine none waits
    assert queue(tracked, now=200.0) == ""
    tracked.submits = True
    leave(tmp_path, "c", node="gpu2")
    assert queue(tracked, now=200.0) == ""


def test_clocks_of_nodes_do_not_hide_what_is_done(tracked, tmp_path):
    counts = {"computed": 5, "cached": 0, "problems": 0, "skipped": 0}
    log = leave(tmp_path, "c", **counts)
    os.utime(log.with_suffix(".json"), (50, 50))  # before the run began, it says
    apply(tracked, info(1, "c", log=log))
    assert tracked.stage("thumbs").done == 5


def test_failures_of_equal_cause_are_one_line(tmp_path):
    state = refused(tmp_path, "abc", "bcd", "cde")
    state.failures.append(Failure("describe", "zzz", None, "another"))
    groups = group_failures(state.failures)
    assert [len(group) for group in groups] == [3, 1]
    assert describe(groups[0]) == (
        "failed: describe, 3 shards, m: results/abc.jsonl: the model is blind"
        f" (first log: {tmp_path / 'abc.log'})"
    )
    assert describe(groups[1]) == "failed: describe, shard zzz: another"


def test_last_words(tmp_path):
    log = tmp_path / "x.log"
    assert "killed" in last_words(log)
    log.write_text("")
    assert "killed" in last_words(log)
    log.write_text("one\nValueError: two\n")
    assert last_words(log) == "ValueError: two"
    log.write_text("ERROR first\nERROR a.tsv: cause; way out\nlater\n")
    assert last_words(log) == "a.tsv: cause; way out"
    log.write_text("INFO x\nERROR it ended; the last lines of log:\n  | one\n  |   two\nINFO y\n")
    assert last_words(log) == "it ended; the last lines of log:\n  | one\n  |   two"


def test_plain_error_drops_the_traceback():
    mistake = 'UserError in file "/x/Snakefile", line 5:\nmodel: unknown\n  File "/x", line 5, in y'
    assert plain_error(mistake) == "model: unknown"
    assert plain_error("WorkflowError:\nTwo\nlines") == "WorkflowError: Two lines"


def test_a_follower_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    follower = Follower(path)
    assert list(follower.new()) == []
    path.write_text('{"event": "a"}\n{"eve')
    assert list(follower.new()) == [{"event": "a"}]
    with path.open("a") as file:
        file.write('nt": "b"}\nnot json\n{"event": "c"}\n')
    assert list(follower.new()) == [{"event": "b"}, {"event": "c"}]


# ----------------------------------------------------------------------------------------- display


def test_lines_are_few_without_a_terminal():
    output = io.StringIO()
    lines = Lines(Console(file=output), interval=1000)
    state = state_of(info(1, "a"), info(2, "b"), info(3, "c"))
    lines.update(state)
    for job in (1, 2, 3):
        state.apply({"event": "job_finished", "job": job})
        lines.update(state)
        lines.update(state)
    assert output.getvalue().splitlines() == [
        "thumbs: 10 of 90 photos",
        "thumbs: 90 of 90 photos",
    ]


def test_failures_are_printed_once():
    output = io.StringIO()
    lines = Lines(Console(file=output))
    state = state_of()
    state.failures.append(Failure("embed", "a", Path("l.log"), "[bold] cause"))
    lines.update(state)
    lines.update(state)
    assert output.getvalue() == "failed: embed, shard a: [bold] cause (log: l.log)\n"


def test_a_repeated_cause_is_counted_at_the_end(tmp_path):
    output = io.StringIO()
    lines = Lines(Console(file=output))
    state = refused(tmp_path, "abc", "bcd")
    both, state.failures = state.failures, state.failures[:1]
    lines.update(state)
    state.failures = both
    lines.update(state)
    assert output.getvalue().count("\n") == 1
    lines.close()
    told = [line.split(": ")[1] for line in output.getvalue().splitlines()]
    assert told == ["describe, shard abc, m", "describe, 2 shards, m"]


def test_bars_print_each_cause_once_when_they_close(tmp_path):
    output = io.StringIO()
    bars = Bars(Console(file=output, force_terminal=True, width=200))
    bars.update(refused(tmp_path, "abc", "bcd"))
    bars.close()
    last = output.getvalue().rpartition("failed: ")
    assert last[2].startswith("describe, 2 shards, m: ")
    assert "abc, m" not in output.getvalue()


def test_bars_count_photos_on_a_terminal():
    output = io.StringIO()
    bars = Bars(Console(file=output, force_terminal=True, width=90))
    state = state_of(info(1, "a"))
    state.apply({"event": "job_finished", "job": 1})
    bars.update(state)
    bars.close()
    assert "10/90" in output.getvalue()


# ---------------------------------------------------------------------------------- end and status


def test_summary_counts_labels_and_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    records = [["cat", "sofa"], ["cat"], [], ["sofa", "boat"]]
    lines = [json.dumps({"over_threshold": [{"label": x} for x in labels]}) for labels in records]
    (results / "records.jsonl").write_text("\n".join(lines) + "\n")
    (results / "problems.csv").write_text('rel_path,message\na.jpg,"two\nlines"\n')
    (results / "tags.csv").touch()
    assert top_labels(results / "records.jsonl", 2) == [("cat", 2), ("sofa", 2)]
    assert count_problems(results / "problems.csv") == 1
    assert count_problems(results / "none.csv") == 0
    output = io.StringIO()
    show_summary(Console(file=output), 0.0, everything=True)
    shown = output.getvalue()
    assert "Top labels: cat (2), sofa (2), boat (1)" in shown
    assert f"one row per photo:      {results / 'tags.csv'}" in shown
    assert "photo-tagger diff" not in shown  # nothing is proposed
    assert "report.html" not in shown
    assert "1 photo with problems:" in shown


def test_summary_has_a_row_per_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "results/logs/describe/a.b_llama.cpp/aa.json"
    log.parent.mkdir(parents=True)
    field = {"done": 40, "cached": 12, "failed": 3, "skipped": 7, "prompt_tokens": 1000}
    field |= {"completion_tokens": 234, "seconds": [0.52, 4.019], "busy": 20.0}
    nothing = {"done": 0, "cached": 0, "failed": 0, "skipped": 50, "seconds": None}
    extra = {"requests": 31, "retries": {"429": 2, "timeout": 1}, "setup": "a.b_llama.cpp"}
    extra["fields"] = {"keywords": nothing, "caption": field}
    log.write_text(json.dumps({"finished": True, "photos": 50, "seconds": 2, "extra": extra}))
    output = io.StringIO()
    show_summary(Console(file=output, width=120), 0.0, everything=False)
    rows = [line.replace("\u2502", " ").split() for line in output.getvalue().splitlines()]
    assert ["describe", "50", "0", "0", "0", "2.0", "25"] in rows
    caption = ["caption", "40", "12", "3", "7", "1,234", "0.52", "4.02"]
    keywords = ["keywords", "0", "0", "0", "50", "0"]
    assert rows.index(caption) + 1 == rows.index(keywords)
    assert "a.b_llama.cpp: 31 requests, 3 retries (429: 2, timeout: 1)." in output.getvalue()


def test_two_setups_are_told_apart_in_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for setup, name in (("one", "caption"), ("two", "keywords")):
        log = tmp_path / f"results/logs/describe/{setup}/aa.json"
        log.parent.mkdir(parents=True)
        extra = {"requests": 4, "setup": setup, "fields": {name: {"done": 4}}}
        log.write_text(json.dumps({"finished": True, "photos": 4, "extra": extra}))
    output = io.StringIO()
    show_summary(Console(file=output, width=120), 0.0, everything=False)
    rows = [line.replace("\u2502", " ").split() for line in output.getvalue().splitlines()]
    assert ["caption", "4", "0", "0", "0", "0", "one"] in rows
    assert ["keywords", "4", "0", "0", "0", "0", "two"] in rows
    assert "Model servers: 8 requests." in output.getvalue()


def test_a_photo_with_several_problems_counts_once(tmp_path):
    path = tmp_path / "problems.csv"
    rows = ["a.jpg,describe", "a.jpg,describe", '"b,\n.jpg",thumbs', "c.jpg,describe"]
    path.write_text("\n".join(["rel_path,stage", *rows]) + "\n")
    assert count_problems(path) == 3
    path.write_text("rel_path,stage\n")
    assert count_problems(path) == 0


def test_reasons_are_put_into_words():
    frozen = {
        "facts": {"model_digest": "m0", "pack": "p0", "roots": "r0"},
        "threshold": 0.31,
        "config": {"score": {"topk": 7}, "thumbs": {"size": 512}},
    }
    words = Words(frozen, {"d0": "a"})
    params = "Params have changed since last execution: Union of ...: before: {} now: {} "

    def said(reason: str) -> set[str]:
        return words.reasons(reason)

    assert said("Missing output files: a; Input files updated by another job") == {"not done yet"}
    assert said("Input files updated by another job: b") == {"follows from an earlier stage"}
    assert said(params.format("'d9'", "'d0'")) == {PHOTOS_CHANGED}
    assert said(params.format("5,'m1'", "7,'m0'")) == {
        "score.topk changed",
        "the CLIP model changed",
    }
    assert said(params.format("0.2", "0.31")) == {"score.threshold changed"}
    again = params.format("''", "'again-1764000000'")
    assert said(again) == {"a model server failed on some"}
    assert said(params.format("'x'", "'y'")) == {"the program or its settings changed"}
    assert said("something new") == {"something new"}


def test_changes_of_setup_and_prompts_have_their_words():
    setups = {
        "x": {"setup_digest": "s1", "prompt_digest": "p1", "recipe": "r1"},
        "y": {"setup_digest": "s2", "prompt_digest": "p1", "recipe": "r2"},
    }
    words = Words({"facts": {"model_digest": "m0", "setups": setups}}, {"d0": "a"})
    params = "Params have changed since last execution: before: {} now: {} "

    def said(*now: str) -> set[str]:
        return words.reasons(params.format("'old'", ",".join(f"'{value}'" for value in now)))

    assert said("s2", "r2") == {"the model setup changed"}
    assert said("p1", "r1") == {"the prompts changed"}
    assert said("r2") == {"what the model is asked changed"}
    assert said("r1", "d0") == {
        "what the model is asked changed",
        PHOTOS_CHANGED,
    }


def test_status_counts_a_photo_once_per_setup_and_leaves_a_stage_out_that_is_off():
    words = Words({"facts": {"setups": {"x": {}, "y": {}}}}, {})
    row = {rule: done for rule, done, _ in rows(describing(planned=0), words)}
    assert row["describe"] == "180 of 180"
    state = describing(("a", "x"), ("a", "y"), ("c", "y"), planned=3)
    assert ("describe", "100 of 180", "not done yet") in rows(state, words)
    assert "describe" not in [rule for rule, _, _ in rows(state_of(), Words({}, {}))]


def test_status_counts_photos_of_stale_shards():
    state = state_of(info(1, "a"), info(2, "c"), info(3, None, "export"), info(4, None, "all"))
    assert rows(state, Words({}, {}))[:2] == [
        ("thumbs", "20 of 90", "not done yet"),
        ("embed", "90 of 90", "-"),
    ]
    assert rows(state, Words({}, {}))[5:] == [("export", "", "not done yet")]


def test_status_shows_a_run_from_elsewhere(tracked, tmp_path, capsys):
    (tmp_path / "results/plan/index.json").write_text(
        json.dumps({"run_id": "r", "shards": [{"name": "a", "digest": "d", "photos": 10}]})
    )
    counts = {"computed": 4, "cached": 0, "problems": 0, "skipped": 0}
    log = leave(tmp_path, "a", node="gpu1", **counts)
    events = [{"event": "run_info", "jobs": {"thumbs": 1}}, info(1, "a", log=log)]
    (tmp_path / "results/logs").mkdir()
    text = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "results/logs/events.jsonl").write_text(text)
    show_running({"pid": 7, "host": "login1", "started": time.time() - 120})
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "A run is under way: process 7 on login1, for 2 min.",
        "thumbs: 4 of 10 photos",
        "on gpu1: thumbs 1",
    ]
