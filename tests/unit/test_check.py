import csv
import json
import shutil
from dataclasses import replace

import pytest
from tables_for_tests import RUN_ID, SWITCHES, failed, make_library, skipped

from phototagger.errors import UserError
from phototagger.manifest import Proposed, write_manifest
from phototagger.manifestcheck import ManifestCheck

PHOTOS = [f"{folder}{i}.jpg" for folder in ("", "a/", "a/b/", 'c "|,\\n/') for i in range(5)]
PROBLEMS = {
    "0.jpg": ("thumbs", "truncated"),
    "a/b/4.jpg": ("thumbs", "empty"),
    "a/1.jpg": ("embed", "embed_failed"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    contents = {"1.jpg": "same", "a/2.jpg": "same"}
    work = tmp_path_factory.mktemp("finished")
    return make_library(work, PHOTOS, problems=PROBLEMS, contents=contents).run()


@pytest.fixture
def library(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished.work, work)
    return type(finished)(work, finished.shards)


def test_a_finished_library_passes_with_its_ledger(library):
    counts = library.check()
    with_keywords = counts.pop("keywords")
    assert 0 < with_keywords <= 17
    assert counts == {
        "folders": 4,
        "inherited": 0,
        "ok": True,
        "photos": 20,
        "problems": 3,
        "records": 17,
        "run_id": RUN_ID,
        "shards": len(library.shards),
        "sidecars": with_keywords,
        "sidecars_failed": 0,
        "stages": {
            "thumbs": {"in": 20, "done": 18, "skipped": 0, "quarantined": 2},
            "embed": {"in": 20, "done": 17, "skipped": 2, "quarantined": 1},
            "score": {"in": 20, "done": 17, "skipped": 3, "quarantined": 0},
            "record": {"in": 20, "done": 17, "skipped": 3, "quarantined": 0},
        },
        "tagged": 0,
    }


def test_the_outcome_is_the_same_bytes_every_time(library):
    library.check()
    first = (library.results / "check.json").read_bytes()
    library.check()
    assert (library.results / "check.json").read_bytes() == first
    assert str(library.work).encode() not in first


def test_an_empty_library_passes(tmp_path):
    assert make_library(tmp_path, []).run().check()["photos"] == 0


# ------------------------------------------------------------------------------------- tampering


def edit_lines(path, change):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))


def edit_record(library, change, which=0):
    def edit(lines):
        record = json.loads(lines[which])
        change(record)
        return [*lines[:which], json.dumps(record) + "\n", *lines[which + 1 :]]

    edit_lines(library.results / "records.jsonl", edit)


def edit_csv(path, change):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows = change(rows) or rows
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def records_lines(change):
    return lambda library: edit_lines(library.results / "records.jsonl", change)


def record_value(change):
    return lambda library: edit_record(library, change)


def problems(change):
    return lambda library: edit_csv(library.results / "problems.csv", change)


def tags(change):
    return lambda library: edit_csv(library.results / "tags.csv", change)


def medoids(change):
    return lambda library: edit_csv(library.results / "folder_medoids.csv", change)


def set_cell(row, column, value):
    def change(rows):
        rows[row][column] = value

    return change


def problem_as_record(library):
    def change(lines):
        record = json.loads(lines[0])
        record["rel_path"] = "0.jpg"
        return [json.dumps(record) + "\n", *lines]

    edit_lines(library.results / "records.jsonl", change)


def drop_last_shard_from_plan(library):
    index = json.loads(library.index.read_text())
    index["shards"].pop()
    library.index.write_text(json.dumps(index))


def change_listing(library):
    path = library.paths("plan/shards", ".tsv")[0]
    path.write_text(path.read_text().replace("\t1000\t", "\t1001\t", 1))


def remove_listing(library):
    library.paths("plan/shards", ".tsv")[1].unlink()


def drop_sidecar(library):
    for path in library.paths("sidecars-manifest", ".tsv"):
        if len(path.read_text().splitlines()) > 1:
            return edit_lines(path, lambda lines: lines[:-1])
    raise AssertionError


def manifest_rows(edit):
    """Change the cells of every row; the sidecar is the last."""

    def tamper(library):
        for path in library.paths("sidecars-manifest", ".tsv"):
            header, *rows = path.read_text().splitlines()
            cells = [edit(row.split("\t")) for row in rows]
            path.write_text("".join("\t".join(row) + "\n" for row in [[header], *cells]))

    return tamper


def extra_sidecar(library):
    path = library.paths("sidecars-manifest", ".tsv")[-1]
    path.write_text(path.read_text() + f"zzz.jpg\t{'0' * 64}\tzzz.jpg\t{'0' * 64}\n")


def rename_label(record):
    record["labels"][0]["label"] = "unicorn"


def raise_score(record):
    record["labels"][0]["cosine"] = round(record["labels"][0]["cosine"] + 0.000001, 6)


def worst_first(record):
    record["labels"].reverse()


def not_a_number(record):
    record["labels"][0]["cosine"] = float("nan")


TAMPERINGS = {
    "record deleted": (records_lines(lambda lines: lines[1:]), r"1\.jpg: planned, but neither"),
    "last record deleted": (records_lines(lambda lines: lines[:-1]), "planned, but neither"),
    "all records deleted": (records_lines(lambda lines: []), r"and \d+ more"),
    "record twice": (records_lines(lambda lines: [lines[0], *lines]), r"1\.jpg: 2 times"),
    "last record twice": (records_lines(lambda lines: [*lines, lines[-1]]), "2 times"),
    "records swapped": (records_lines(lambda x: [x[1], x[0], *x[2:]]), "not in the order"),
    "record cut off": (records_lines(lambda x: [*x[:-1], x[-1][:-5]]), "line 17"),
    "record renamed": (record_value(lambda r: r.update(rel_path="other.jpg")), "not in the plan"),
    "record without name": (record_value(lambda r: r.pop("rel_path")), "not in the plan"),
    "record without sha256": (record_value(lambda r: r.pop("sha256")), "sha256"),
    "sha256 null": (record_value(lambda r: r.update(sha256=None)), "sha256"),
    "unknown field": (record_value(lambda r: r.update(extra=1)), "extra"),
    "NaN": (record_value(not_a_number), "NaN"),
    "scores ascending": (record_value(worst_first), "not sorted from best to worst"),
    "score changed": (record_value(raise_score), "top1_score|two scores"),
    "label changed": (record_value(rename_label), "top1"),
    "width changed": (record_value(lambda r: r.update(width=17)), "width"),
    "photo also quarantined": (problem_as_record, r"0\.jpg: in .*records\.jsonl and in"),
    "problem dropped": (problems(lambda rows: [rows[0], *rows[2:]]), "planned, but neither"),
    "problem twice": (problems(lambda rows: [*rows, rows[-1]]), "2 times"),
    "problem unknown": (problems(set_cell(1, 0, "zz.jpg")), r"zz\.jpg: not in the plan"),
    "kind unknown": (problems(set_cell(1, 2, "bored")), "unknown kind 'bored'"),
    "stage unknown": (problems(set_cell(1, 1, "lunch")), "unknown stage 'lunch'"),
    "problems without header": (problems(lambda rows: rows[1:]), "columns are not"),
    "tags row deleted": (tags(lambda rows: rows[:-1]), "no row|rel_path is"),
    "tags row in the middle deleted": (tags(lambda rows: rows[:5] + rows[6:]), "rel_path is"),
    "tags row twice": (tags(lambda rows: [*rows, rows[-1]]), "a row without a record"),
    "tags rows swapped": (
        tags(lambda x: [x[0], x[2], x[1], *x[3:]]),
        r"add up: \S*tags\.csv: 1\.jpg: rel_path is '2\.jpg', but '1\.jpg' by its record\. Delete",
    ),
    "tags score": (tags(set_cell(3, 5, "0.999999")), "top1_score is '0.999999'"),
    "tags list": (tags(set_cell(3, 6, "cat")), "top5_labels is 'cat'"),
    "tags of another run": (tags(set_cell(2, 9, "fffffff")), "run_id is 'fffffff'"),
    "tags of another model": (tags(set_cell(2, 10, "other")), "model_name is 'other'"),
    "tags column missing": (tags(lambda rows: [row[:-1] for row in rows]), "columns are not"),
    "medoid dropped": (medoids(lambda rows: rows[:-1]), "has no medoid"),
    "medoid unknown": (medoids(set_cell(1, 1, "gone.jpg")), "not a record of folder"),
    "medoid quarantined": (medoids(set_cell(1, 1, "0.jpg")), "not a record of folder"),
    "medoid of another folder": (medoids(set_cell(1, 1, "a/0.jpg")), "not a record of folder"),
    "medoid twice": (medoids(lambda rows: [*rows, rows[-1]]), "two medoids"),
    "medoid NaN": (medoids(set_cell(1, 2, "nan")), "cosine is nan"),
    "sidecar dropped": (drop_sidecar, "not in the manifest"),
    "sidecar not made": (manifest_rows(lambda row: [*row[:3], ""]), "there is something to write"),
    "sidecar of another photo": (
        manifest_rows(lambda row: [row[0], "1" * 64, *row[2:]]),
        "of another record",
    ),
    "sidecar of another leader": (
        manifest_rows(lambda row: [*row[:2], "x.jpg", row[3]]),
        "of another record",
    ),
    "sidecar without record": (extra_sidecar, r"zzz\.jpg"),
    "shard dropped from the plan": (drop_last_shard_from_plan, "not in the plan"),
    "listing changed": (change_listing, "not the listing of the plan"),
    "listing gone": (remove_listing, "not a listing"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_and_nothing_is_written(library, name):
    tamper, message = TAMPERINGS[name]
    tamper(library)
    with pytest.raises(UserError, match=message) as caught:
        library.check()
    assert "\n" not in str(caught.value)
    assert "again" in str(caught.value)
    assert not (library.results / "check.json").exists()


def test_an_order_of_keywords_that_ranks_deny_is_found(library):
    records = (library.results / "records.jsonl").read_text().splitlines()
    which = next(i for i, line in enumerate(records) if len(json.loads(line)["keywords"]) > 1)
    edit_record(library, lambda record: record["keywords"].reverse(), which)
    with pytest.raises(UserError, match="has rank 2 instead of 1"):
        library.check()


def test_a_sidecar_that_could_not_be_written_is_counted(library):
    there = library.check()["sidecars"]
    manifest_rows(lambda row: [*row[:3], row[3] and "-"])(library)
    counts = library.check()
    assert (counts["sidecars"], counts["sidecars_failed"]) == (0, there)


def test_a_keyword_that_a_person_has_in_another_form_needs_no_sidecar(tmp_path):
    library = make_library(tmp_path, ["a.jpg"]).run()
    record = json.loads(library.paths("records", ".jsonl")[0].read_text().splitlines()[0])
    word = {"keyword": "caf\u00e9", "path": ["caf\u00e9"], "synonyms": []}
    record["keywords"] = [word | {"source": "vlm", "score": None}]
    record["embedded"] = {"XMP-dc:Subject": ["cafe\u0301"]}
    row = Proposed(record["rel_path"], record["sha256"], record["rel_path"], None)
    assert proposal_findings(tmp_path, record, row) == []
    named = replace(row, sidecar_sha256="0" * 64)
    assert "nothing to write" in str(proposal_findings(tmp_path, record, named))
    record["embedded"] = {}
    assert "something to write" in str(proposal_findings(tmp_path, record, row))


def proposal_findings(folder, record, row):
    write_manifest(folder / "m.tsv", [row])
    found = []
    proposals = ManifestCheck(found.append, [folder / "m.tsv"], SWITCHES, ())
    proposals.record(record)
    proposals.finish()
    return found


# ------------------------------------------------------------------------------------- described

OWN = {
    "2.jpg": {"own_caption": "Ours", "own_keywords": ["Tom", "cat"]},
    "a/0.jpg": {"own_keywords": ["harbour", "family"]},
}
ANSWERS = {
    ("1.jpg", "caption"): failed("answer_loop", 'it says "the the" 30 times'),
    ("1.jpg", "keywords"): failed("server_failed", "500"),
    ("1.jpg", "description"): failed("answer_truncated", "no end"),
    ("2.jpg", "caption"): skipped(),
    ("a/1.jpg", "caption"): failed("server_failed", "but the photo has no record"),
    ("a/2.jpg", "keywords"): failed("answer_empty", "nothing"),
    ("a/3.jpg", "keywords"): {"keywords": ["fur, cat", "Cat"], "notes": ["1 dropped"]},
}


@pytest.fixture(scope="module")
def finished_with_words(tmp_path_factory):
    fields = ("caption", "keywords", "description")
    work = tmp_path_factory.mktemp("words")
    options = {"problems": PROBLEMS, "own": OWN, "fields": fields, "answers": ANSWERS}
    return make_library(work, PHOTOS, **options).run()


@pytest.fixture
def described(finished_with_words, tmp_path):
    work = tmp_path / "described"
    shutil.copytree(finished_with_words.work, work)
    return type(finished_with_words)(work, finished_with_words.shards)


def test_the_ledger_of_fields(described):
    counts = described.check()
    assert {field: counts["stages"][field] for field in ("caption", "keywords", "description")} == {
        "caption": {"in": 20, "done": 15, "skipped": 4, "quarantined": 1},
        "keywords": {"in": 20, "done": 15, "skipped": 3, "quarantined": 2},
        "description": {"in": 20, "done": 16, "skipped": 3, "quarantined": 1},
    }
    assert (counts["records"], counts["problems"], counts["sidecars"]) == (17, 3, 17)
    rows = (described.results / "problems.csv").read_text().splitlines()[1:]
    assert len(rows) == 3 + 4
    assert [row for row in rows if row.startswith("1.jpg")] == [
        '1.jpg,describe,answer_loop,"caption: it says ""the the"" 30 times",'
        '"The model repeated itself; try another setup, or a higher temperature."',
        *rows[2:4],
    ]


def record_of(rel_path, change):
    def tamper(library):
        lines = (library.results / "records.jsonl").read_text().splitlines()
        which = [json.loads(line)["rel_path"] for line in lines].index(rel_path)
        edit_record(library, change, which)

    return tamper


def status(field, value):
    return lambda record: record["describe"][field].update(status=value)


def keyword_source(rank, source):
    return lambda record: record["keywords"][rank - 1].update(source=source)


def swap_keywords(record):
    keywords = record["keywords"]
    keywords[0], keywords[-1] = keywords[-1], keywords[0]
    for rank, keyword in enumerate(keywords, 1):
        keyword["rank"] = rank


def twice(record):
    record["keywords"].insert(1, record["keywords"][0] | {"source": "vlm"})
    for rank, keyword in enumerate(record["keywords"], 1):
        keyword["rank"] = rank


def no_row(row):
    return problems(lambda rows: [r for r in rows if r[0] != "1.jpg" or r[3][:7] != row])


def row_first(rows):
    which = next(i for i, row in enumerate(rows) if row[0] == "a/2.jpg")
    return [rows[0], rows[which], *rows[1:which], *rows[which + 1 :]]


def row_without_record(rows):
    new = ["0.jpg", "describe", "answer_loop", "caption: no", "try again"]
    return [rows[0], new, *rows[1:]]


DESCRIBED = {
    "caption lost": (record_of("3.jpg", lambda r: r.update(caption=None)), "None, but it was done"),
    "caption from nowhere": (
        record_of("1.jpg", lambda r: r.update(caption="x")),
        "'x', but it was failed",
    ),
    "caption of the photo": (
        record_of("2.jpg", lambda r: r.update(caption=r["own"]["caption"])),
        "'Ours', but it was skipped",
    ),
    "description lost": (record_of("3.jpg", lambda r: r.update(description=None)), "description"),
    "status done": (record_of("1.jpg", status("description", "done")), "but it was done"),
    "status failed": (record_of("3.jpg", status("keywords", "failed")), "models are"),
    "status skipped": (record_of("1.jpg", status("keywords", "skipped")), "but the problems are"),
    "model lost": (record_of("3.jpg", lambda r: r["models"].pop("keywords")), "models are"),
    "model changed": (record_of("3.jpg", lambda r: r["models"].update(caption="x")), "models are"),
    "field lost": (record_of("3.jpg", lambda r: r["describe"].pop("caption")), "describe has"),
    "stage lost": (record_of("3.jpg", lambda r: r.update(describe={})), "describe has nothing"),
    "note lost": (record_of("1.jpg", lambda r: r["notes"].pop()), "no note says 'description: no"),
    "own keyword lost": (record_of("2.jpg", lambda r: r["own"]["keywords"].pop()), "photo's own"),
    "own keyword as the model's": (record_of("a/0.jpg", keyword_source(2, "vlm")), "photo's own"),
    "keyword of a model that failed": (
        record_of("1.jpg", lambda r: twice(r) or r["keywords"].pop(0)),
        "order of their sources|found none|instead of 1",
    ),
    "sources mixed": (record_of("a/0.jpg", swap_keywords), "order of their sources|photo's own"),
    "keyword twice": (record_of("3.jpg", twice), "Cat stands twice"),
    "CLIP without score": (
        record_of("3.jpg", lambda r: r["keywords"][-1].update(score=None, source="clip")),
        "has no score",
    ),
    "row lost": (no_row("caption"), r"1\.jpg: failed are .'caption', 'keywords'.*problems are key"),
    "all rows lost": (problems(lambda rows: [r for r in rows if r[1] != "describe"]), "nothing"),
    "row twice": (problems(lambda rows: [*rows[:3], rows[2], *rows[3:]]), "but the problems are"),
    "row of another field": (problems(set_cell(2, 3, "title: no")), "but the problems are title"),
    "row with another reason": (
        problems(set_cell(2, 3, "caption: no")),
        "no note says 'caption: no",
    ),
    "row of an unknown kind": (problems(set_cell(2, 2, "bored")), "unknown kind 'bored'"),
    "rows out of order": (problems(row_first), "not in the order of the plan"),
    "row without a record": (problems(row_without_record), "'caption: no', but there is no such"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_tampering_with_words_is_found(described, name):
    tamper, message = DESCRIBED[name]
    tamper(described)
    with pytest.raises(UserError, match=message):
        described.check()


def test_the_fields_must_be_those_that_were_asked_for(library, described):
    assert "caption" not in library.check(fields=[])["stages"]
    described.check(fields=["description", "keywords", "caption"])
    for work, fields in ((library, ["caption"]), (described, []), (described, ["caption"])):
        with pytest.raises(UserError, match=r"nothing instead of|keywords"):
            work.check(fields=fields)


def test_a_library_without_records_still_names_its_fields(tmp_path):
    library = make_library(tmp_path, ["a.jpg"], problems={"a.jpg": ("thumbs", "empty")}).run()
    stages = library.check(fields=["caption"])["stages"]
    assert stages["caption"] == {"in": 1, "done": 0, "skipped": 1, "quarantined": 0}


def test_a_photo_with_nothing_but_its_own_keywords_needs_no_sidecar(tmp_path):
    own = {"a.jpg": {"own_keywords": ["Tom"]}, "b.jpg": {}}
    library = make_library(tmp_path, own, own=own)
    library.record()
    library.collect()

    def no_labels(lines):
        records = [json.loads(line) for line in lines]
        for record in records:
            record["over_threshold"] = []
            record["keywords"] = [k for k in record["keywords"] if k["source"] == "person"]
        return [json.dumps(record) + "\n" for record in records]

    for path in [*library.paths("records", ".jsonl"), library.results / "records.jsonl"]:
        edit_lines(path, no_labels)
    library.export()
    library.medoids()
    library.manifests()
    counts = library.check()
    assert (counts["keywords"], counts["sidecars"]) == (1, 0)
    manifest_rows(lambda row: [*row[:3], "0" * 64])(library)
    with pytest.raises(UserError, match=r"a\.jpg: listed, but there is nothing to write"):
        library.check()


# ------------------------------------------------------------------- tagged, and capture groups

SCORE = {"label": "cat", "cosine": 0.5, "probability": 0.5}
TAKEN = {"taken_at": "2024-05-01T12:00:00"}
MIXED = {
    "0.jpg": {},
    "a/IMG.CR3": TAKEN | {"format": "CR3"},
    "a/IMG.a.jpg": {},
    "a/IMG.jpg": TAKEN,
    "a/b.jpg": {"tagged": True, "own_keywords": ["Tom"]},
    "all tagged/c.jpg": {"tagged": True, "own_keywords": ["Tom"]},
    "z.jpg": {},
}


@pytest.fixture(scope="module")
def finished_mixture(tmp_path_factory):
    fields = ("caption", "keywords")
    text = "A picture of a/IMG.jpg."
    answers = {
        ("a/IMG.CR3", "caption"): {"text": text, "inherited_from": "a/IMG.jpg"},
        ("a/IMG.CR3", "keywords"): {"inherited_from": "a/IMG.jpg"},
    }
    work = tmp_path_factory.mktemp("mixture")
    broken = {"z.jpg": ("thumbs", "empty")}
    return make_library(
        work, MIXED, own=MIXED, fields=fields, answers=answers, problems=broken, shard_size=7
    ).run()


@pytest.fixture
def mixture(finished_mixture, tmp_path):
    work = tmp_path / "mixture"
    shutil.copytree(finished_mixture.work, work)
    return type(finished_mixture)(work, finished_mixture.shards)


def test_the_ledger_of_photos_that_are_tagged_or_inherit(mixture):
    counts = mixture.check()
    assert {name: counts[name] for name in ("photos", "records", "problems")} == {
        "photos": 7,
        "records": 6,
        "problems": 1,
    }
    assert (counts["tagged"], counts["inherited"]) == (2, 1)
    assert (counts["sidecars"], counts["folders"]) == (4, 3)
    assert counts["stages"] == {
        "thumbs": {"in": 7, "done": 6, "skipped": 0, "quarantined": 1},
        "embed": {"in": 7, "done": 4, "skipped": 3, "quarantined": 0},
        "score": {"in": 7, "done": 4, "skipped": 3, "quarantined": 0},
        "record": {"in": 7, "done": 6, "skipped": 1, "quarantined": 0},
        "caption": {"in": 7, "done": 4, "skipped": 3, "quarantined": 0},
        "keywords": {"in": 7, "done": 4, "skipped": 3, "quarantined": 0},
    }


def test_a_library_of_tagged_photos_passes(tmp_path):
    own = {name: {"tagged": True} for name in ("a.jpg", "b/c.jpg")}
    counts = make_library(tmp_path, own, own=own, fields=("caption",)).run().check(["caption"])
    assert (counts["tagged"], counts["sidecars"]) == (2, 0)
    assert counts["stages"]["caption"] == {"in": 2, "done": 0, "skipped": 2, "quarantined": 0}


def tagged_in_manifest(library):
    (path,) = library.paths("sidecars-manifest", ".tsv")
    row = f"a/b.jpg\t{'0' * 64}\ta/b.jpg\t\n"
    edit_lines(path, lambda lines: sorted([*lines, row], key=lambda line: line > "b"))


MIXED_TAMPERINGS = {
    "tagged with labels": (
        record_of("a/b.jpg", lambda r: r.update(labels=[SCORE])),
        "tagged already, but has labels",
    ),
    "tagged with a caption": (
        record_of("a/b.jpg", lambda r: r.update(caption="x")),
        "tagged already, but has caption",
    ),
    "tagged that inherits": (
        record_of("a/b.jpg", lambda r: r.update(inherited_from="a/IMG.jpg")),
        "but has inherited_from",
    ),
    "tagged with a keyword": (
        record_of("a/b.jpg", keyword_source(1, "vlm")),
        "photo's own|found none",
    ),
    "not tagged": (record_of("a/b.jpg", lambda r: r.update(tagged=False)), "describe has nothing"),
    "tagged in the manifest": (tagged_in_manifest, "manifest|no such record"),
    "medoid is tagged": (
        medoids(lambda rows: [*rows, ["all tagged", "all tagged/c.jpg", "1.0"]]),
        "not a record of folder all tagged",
    ),
    "leader unknown": (
        record_of("a/IMG.CR3", lambda r: r.update(inherited_from="a/IMG.png")),
        r"inherited from a/IMG\.png, which is no record",
    ),
    "leader of another name": (
        record_of("a/IMG.CR3", lambda r: r.update(inherited_from="a/IMG.a.jpg")),
        "which is no record of the same name",
    ),
    "no leader": (
        record_of("a/IMG.jpg", lambda r: r.update(inherited_from="a/IMG.CR3")),
        "which leads no group",
    ),
    "other labels": (
        record_of("a/IMG.jpg", lambda r: r.update(labels=r["labels"][:-1])),
        "which has other labels",
    ),
    "other caption": (
        record_of("a/IMG.CR3", lambda r: r.update(caption="x")),
        r"caption is inherited from a/IMG\.jpg, which has another",
    ),
}


@pytest.mark.parametrize("name", MIXED_TAMPERINGS)
def test_tampering_with_what_was_left_out_is_found(mixture, name):
    tamper, message = MIXED_TAMPERINGS[name]
    tamper(mixture)
    with pytest.raises(UserError, match=message):
        mixture.check()
