"""`why PHOTO`: a photo is found by any of its names, and its story told stage by stage."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tables_for_tests import SETUP, Library, failed, make_library

from phototagger import config, history, names, plan, runtoken
from phototagger.cli import main, why
from phototagger.cli.events import RunState
from phototagger.machine import Machine
from phototagger.plan import Photo, Root, Roots, Shard

PHOTOS = [f"{folder}/IMG_{n:02}.jpg" for folder in ("2023", "2024/Lisbon") for n in range(6)]
BAD, BLIND, FAILED, TAGGED = PHOTOS[1], PHOTOS[2], PHOTOS[3], PHOTOS[4]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A finished run with a photo for every kind of trouble; the current folder is the work's."""
    for rel_path in PHOTOS:
        path = tmp_path / "photos" / rel_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, ns=(1, 1))  # as planned
    made = make_library(
        tmp_path / "work",
        PHOTOS,
        problems={BAD: ("thumbs", "truncated"), BLIND: ("embed", "embed_failed")},
        own={TAGGED: {"tagged": True}},
        fields=("caption",),
        answers={(FAILED, "caption"): failed("answer_loop", "it goes on and on")},
    ).run()
    root = Root("photos", str(tmp_path / "photos"))
    replace(made.machine, roots=Roots([root])).write(made.results / "plan/machine.json")
    settings = config.load(None, {}, {})
    frozen = {"config": settings.as_dict(), "facts": {"setups": {SETUP: {}}}}
    (made.results / "plan/config.json").write_text(json.dumps(frozen))
    monkeypatch.chdir(made.work)
    return made


def ask(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["why", *arguments])
    assert (ended.value.code or 0) == code


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    ask("--quick", "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def states(answer: dict) -> dict[str, str]:
    return {row["stage"]: row["state"] for row in answer["stages"]}


def leave_counts(library: Library, rel_path: str, stage: str, **values) -> Path:
    planned = history.Plan(library.shards, Roots([]), library.results / "plan/shards")
    log = history.log_path(stage, planned.find(rel_path).shard.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"INFO {stage} began\n")
    log.with_suffix(".json").write_text(json.dumps(values))
    return log


# ------------------------------------------------------------------------------------ finding it


def test_every_photo_is_found_in_its_shard(library):
    planned = history.Plan(library.shards, Roots([]), library.results / "plan/shards")
    for rel_path in PHOTOS:
        place = planned.find(rel_path)
        listed = plan.read_listing(library.results / f"plan/shards/{place.shard.name}.tsv")
        assert listed[place.number - 1].rel_path == place.photo.rel_path == rel_path
    for unknown in ("", "0", "2023/IMG_99.jpg", "zz/last.jpg"):
        assert planned.find(unknown) is None


def test_few_listings_are_opened(tmp_path, monkeypatch):
    photos = [Photo(f"{n:05}.jpg", 1, 1) for n in range(2000)]
    shards = plan.write_shards(tmp_path, plan.partition(photos, 8))
    planned = history.Plan(shards, Roots([]), tmp_path)
    opened = []
    real = planned._path
    monkeypatch.setattr(planned, "_path", lambda shard: opened.append(shard) or real(shard))
    assert len(shards) > 200
    assert planned.find("01234.jpg").photo.rel_path == "01234.jpg"
    assert len(opened) <= 11


@pytest.mark.parametrize(
    "name",
    [
        "../photos/2024/Lisbon/IMG_05.jpg",
        "2024/Lisbon/IMG_05.jpg",
        "./2024/Lisbon/IMG_05.jpg",
        "Lisbon/IMG_05.jpg",
    ],
)
def test_a_photo_has_many_names(name, library, capsys):
    assert told(capsys, name)["photo"] == "2024/Lisbon/IMG_05.jpg"


def test_a_file_is_found_from_where_it_is_and_through_links(library, capsys, monkeypatch):
    work = library.work
    (work.parent / "link").symlink_to(work.parent / "photos")
    monkeypatch.chdir(work.parent / "link/2023")
    assert told(capsys, "IMG_05.jpg", "--workdir", str(work))["photo"] == "2023/IMG_05.jpg"


def test_names_that_are_no_text(library, capsys):
    for typed in ("caf\udce9.jpg", "a\nb.jpg", "2023/\x1b[31m.jpg", "C:\\x.jpg"):
        ask("--quick", typed, code=2)
        shown = capsys.readouterr().err
        assert "no such photo" in shown and names.encode(typed) in shown


def test_a_photo_in_a_bucket_is_found_by_its_url(library, capsys):
    machine = Machine.load(library.results / "plan/machine.json")
    bucket = Roots([Root("photos", "s3://lib/photos")])
    replace(machine, roots=bucket).write(library.results / "plan/machine.json")
    url = f"s3://lib/photos/{PHOTOS[0]}"
    for name in (PHOTOS[0], url):
        answer = told(capsys, name, "--workdir", str(library.work))
        assert (answer["photo"], answer["file"]) == (PHOTOS[0], url)
    ask("--quick", url)
    assert "in a bucket, not looked at" in capsys.readouterr().out
    ask("--quick", "s3://lib/photos/none.jpg", code=2)


def test_a_name_that_several_have_is_no_name(library, capsys):
    ask("--quick", "IMG_05.jpg", code=2)
    shown = capsys.readouterr().err
    assert "2 photos end with that: 2023/IMG_05.jpg, 2024/Lisbon/IMG_05.jpg" in shown
    ask("--quick", "MG_05.jpg", code=2)
    assert "no such photo" in capsys.readouterr().err


def test_a_folder_without_a_plan_is_a_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ask("a.jpg", code=2)
    assert "no plan here yet; run: photo-tagger run" in capsys.readouterr().err
    ask("a.jpg", "--workdir", "nowhere", code=2)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("path", "section", "reason"),
    [
        ("2023/notes.txt", {}, "none of photos.extensions"),
        ("2023/.hidden/a.jpg", {}, ".hidden is hidden"),
        ("2023/a.jpg_original", {}, "never photos"),
        ("2023/raw/a.jpg", {"exclude": ["2023/raw/*"]}, "leaves it out with '2023/raw/*'"),
        ("2023/new.jpg", {"recursive": False}, "photos.recursive is off"),
        ("zz.jpg", {"max_images": 12}, "first 12 only"),
        ("2023/new.jpg", {}, "came after the plan"),
        ("../else/a.jpg", {}, "outside of the photos' folders"),
        ("own/results/a.jpg", {}, "a folder of the program's own"),
    ],
)
def test_why_a_file_is_not_in_the_plan(path, section, reason, library):
    file = library.work.parent / "photos" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    settings = config.load(None, {}, {"photos": section})
    root = Root("photos", str(library.work.parent / "photos"))
    planned = history.Plan(library.shards, Roots([root]), library.results / "plan/shards")
    own = [library.work.parent / "photos/own"]
    assert reason in history.why_not(file, planned, settings, own)


def test_a_photo_that_went_is_told_from_a_name_that_never_was(library, capsys):
    rel_path = PHOTOS[0]
    (library.work.parent / "photos" / rel_path).unlink()
    assert told(capsys, rel_path)["file_state"] == "gone"
    shard = next(s for s in library.shards if s.photos)  # the next plan is without it
    listing = library.results / f"plan/shards/{shard.name}.tsv"
    photos = [photo for photo in plan.read_listing(listing) if photo.rel_path != rel_path]
    listing.write_bytes(plan.format_listing(photos))
    assert "no such file any more" in told(capsys, rel_path)["because"]
    ask("--quick", "2023/IMG_77.jpg", code=2)


# ------------------------------------------------------------------------------------- its story


def test_a_good_photo_is_done_everywhere(library, capsys):
    answer = told(capsys, PHOTOS[0])
    assert set(states(answer).values()) == {"done"}
    assert list(states(answer)) == list(history.OUTPUTS)
    asked = next(row for row in answer["stages"] if row["stage"] == "describe")
    assert asked["setup"] == SETUP
    assert asked["answers"][0]["seconds"] == 0.25
    assert answer["stages"][-1]["proposal"] == f"results/sidecars/{PHOTOS[0]}.xmp"


def test_problems_say_what_to_do_and_what_follows(library, capsys):
    answer = told(capsys, BAD)
    assert states(answer) == {
        stage: "problem" if stage == "thumbs" else "skipped" for stage in history.OUTPUTS
    }
    assert answer["stages"][0]["problem"]["kind"] == "truncated"
    assert "copy it again" in answer["stages"][0]["problem"]["what_to_do"]
    answer = told(capsys, BLIND)
    assert states(answer)["thumbs"] == "done" and states(answer)["embed"] == "problem"
    assert states(answer)["record"] == "skipped"
    answer = told(capsys, TAGGED)
    assert states(answer)["record"] == "done" and states(answer)["describe"] == "skipped"


def test_an_answer_that_was_not_kept_is_told_with_its_cost(library, capsys):
    ask("--quick", FAILED)
    shown = capsys.readouterr().out
    line = "caption: failed, answer_loop: it goes on and on (1 attempt, 0.2 s, 320 tokens)"
    assert line in shown
    assert "try another setup, or a higher temperature" in shown


def test_another_file_of_the_same_picture_is_named(tmp_path, library, capsys):
    shard = place_of(PHOTOS[0]).name
    path = library.results / f"records/{shard}.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["inherited_from"] = PHOTOS[5]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    row = next(r for r in told(capsys, PHOTOS[0])["stages"] if r["stage"] == "record")
    assert row["because"] == f"it has the labels and answers of {PHOTOS[5]}, the same picture"


def test_jobs_are_told_with_node_seconds_and_share(library, capsys):
    counts = {"photos": 4, "computed": 1, "cached": 3, "seconds": 2.0, "finished": True}
    counts |= {"host": "h", "node": "gpu1", "job": "slurm-12", "attempt": 2}
    leave_counts(library, PHOTOS[0], "embed", **counts)
    job = told(capsys, PHOTOS[0])["stages"][1]["job"]
    assert (job["node"], job["job"], job["seconds_per_photo"]) == ("gpu1", "slurm-12", 0.5)
    ask("--quick", PHOTOS[0])
    shown = capsys.readouterr().out
    assert "on gpu1 (slurm-12), attempt 2, 2.0 s for 4 photos (0.5 s each): 1 computed" in shown


@pytest.mark.parametrize(
    ("counts", "state", "because"),
    [
        ({"error": "the lens cap is on", "final": True}, "failed", "the lens cap is on"),
        ({"finished": False, "error": None}, "killed", "its job ended without a word"),
    ],
)
def test_failed_jobs_say_why_and_where_to_read(counts, state, because, library, capsys):
    log = leave_counts(library, PHOTOS[0], "score", photos=4, seconds=1.0, **counts)
    row = told(capsys, PHOTOS[0])["stages"][2]
    assert (row["state"], row["because"], row["log"]) == (state, because, str(log))
    ask("--quick", PHOTOS[0])
    assert f"log: {log}" in capsys.readouterr().out
    ask("--log", "score", PHOTOS[0])
    shown = capsys.readouterr()
    assert shown.out == "INFO score began\n" and shown.err == f"{log}\n"
    ask("--log", "scores", PHOTOS[0], code=2)
    assert f"valid are: describe, embed, record, score, sidecars, thumbs, {SETUP}" in (
        capsys.readouterr().err
    )


def test_a_photo_that_is_new_in_its_shard_is_done_nowhere_yet(library, capsys):
    place = history.Plan(library.shards, Roots([]), library.results / "plan/shards").find(PHOTOS[0])
    listing = library.results / f"plan/shards/{place.shard.name}.tsv"
    photos = plan.read_listing(listing)
    listing.write_bytes(plan.format_listing([*photos, Photo("2023/IMG_00b.jpg", 1, 1)]))
    assert set(states(told(capsys, "2023/IMG_00b.jpg")).values()) == {"not yet"}


def test_a_stage_without_output_is_not_done_yet(library, capsys):
    for path in (library.results / "scores").glob("*"):
        path.unlink()
    assert states(told(capsys, PHOTOS[0]))["score"] == "not yet"


# ------------------------------------------------------------------------- stale, and running now


def place_of(rel_path: str) -> Shard:
    shards, _ = plan.read_index(Path("results/plan/index.json"))
    return history.Plan(shards, Roots([]), Path("results/plan/shards")).find(rel_path).shard


def an_event(rule: str, shard: str, reason: str = "") -> dict:
    log = str(history.log_path(rule, shard))
    wildcards = {"shard": shard}
    return {"event": "job_info", "job": 1, "rule": rule, "wildcards": wildcards, "log": [log]} | {
        "reason": reason,
        "time": 1.0,
    }


def test_what_is_stale_is_told_with_its_reason(library, capsys, monkeypatch):
    shard = place_of(PHOTOS[0])
    state = RunState()
    reason = f"Updated input files: results/plan/shards/{shard.name}.tsv"
    state.apply(an_event("thumbs", shard.name, reason))
    monkeypatch.setattr(why, "_dry_run", lambda request: state)
    ask("--json", PHOTOS[0])
    answer = json.loads(capsys.readouterr().out)
    first = answer["stages"][0]
    assert (first["state"], first["because"]) == (
        "stale",
        "photos or sidecars were added, changed or removed",
    )
    assert answer["stages"][1]["state"] == "done" and answer["stale_looked_for"]


# Holds the work directory's lock, as a run does, until its input ends.
HOLDER = """
import sys
from phototagger.cli.child import locked
with locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_while_a_run_goes_on_it_is_only_looked_at(library, capsys, monkeypatch):
    monkeypatch.setattr(why, "_dry_run", lambda _: pytest.fail("no dry run beside a run"))
    shard = place_of(PHOTOS[0])
    events = [
        an_event("embed", shard.name) | {"job": 1},
        an_event("score", shard.name) | {"job": 2},
    ]
    Path("results/logs").mkdir(exist_ok=True)
    Path("results/logs/events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    runtoken.publish("now")
    counts = {"run": "now", "computed": 2, "cached": 1, "problems": 0, "skipped": 0}
    leave_counts(library, PHOTOS[0], "embed", node="gpu1", job="slurm-9", **counts)
    leave_counts(library, PHOTOS[0], "score", run="before", finished=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        ask(PHOTOS[0])
    finally:
        process.communicate("", 20)
    shown = capsys.readouterr().out
    photos = shard.photos
    assert f"embed     running: 3 of {photos} photos of the shard on gpu1 (slurm-9)" in shown
    assert "score     waiting: for a node, or to start" in shown
    assert f"A run is under way (process {process.pid} on " in shown
