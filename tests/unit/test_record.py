import csv
import json
import shutil

import pytest
from tables_for_tests import MODEL, make_library, sha256_of

from phototagger.errors import UserError
from phototagger.names import folder_of
from phototagger.plan import read_listing
from phototagger.problems import KINDS
from phototagger.records import load_validator, read_problems, read_records
from phototagger.tables import SCORES, THUMBS, read_table, write_table


@pytest.fixture
def library(tmp_path):
    return make_library(
        tmp_path,
        ["a.jpg", "b.jpg", "c.jpg", "x/copy of a.jpg", "x/d.jpg", 'x/odd "|, é\\n.jpg'],
        problems={"b.jpg": ("thumbs", "truncated"), "c.jpg": ("embed", "embed_failed")},
        contents={"a.jpg": "same", "x/copy of a.jpg": "same"},
        shard_size=6,
    )


def results(library):
    shard = library.shards[0].name
    records = list(read_records(library.path("records", shard, ".jsonl")))
    return records, list(read_problems(library.path("problems", shard, ".csv")))


def test_every_photo_is_a_record_or_a_problem_in_path_order(library):
    library.record()
    records, problems = results(library)
    assert [r["rel_path"] for r in records] == [
        "a.jpg",
        "x/copy of a.jpg",
        "x/d.jpg",
        'x/odd "|, é\\n.jpg',
    ]
    assert [(p.rel_path, p.stage, p.kind) for p in problems] == [
        ("b.jpg", "thumbs", "truncated"),
        ("c.jpg", "embed", "embed_failed"),
    ]
    assert problems[0].message == 'what is wrong, "truncated"'
    assert [p.what_to_do for p in problems] == [KINDS["truncated"], KINDS["embed_failed"]]


def test_records_satisfy_the_schema(library):
    library.record()
    validate = load_validator()
    assert [validate(record) for record in results(library)[0]] == [None] * 4


def test_values_are_those_of_the_tables(library):
    library.record()
    shard = library.shards[0].name
    scores = read_table(library.path("scores", shard, ".parquet")).to_pylist()
    scored = {row["sha256"]: row for row in scores}
    for record in results(library)[0]:
        row = scored[record["sha256"]]
        assert [s["label"] for s in record["labels"]] == [s["label"] for s in row["top"]]
        for mine, theirs in zip(record["over_threshold"], row["over_threshold"], strict=True):
            assert mine["label"] == theirs["label"]
            assert mine["cosine"] == float(f"{theirs['cosine']:.6f}")
            assert mine["probability"] == float(f"{theirs['probability']:.6f}")
        assert record["models"] == {"clip": MODEL}


def test_copies_are_records_of_their_own_with_equal_scores(library):
    library.record()
    first, second = results(library)[0][:2]
    assert first["sha256"] == second["sha256"] == sha256_of("same")
    assert first["labels"] == second["labels"]
    assert folder_of(first["rel_path"]) != folder_of(second["rel_path"])


def test_rows_are_joined_by_content_not_by_position(library):
    library.record()
    before = results(library)
    shard = library.shards[0].name
    for name, schema in (("thumbs", THUMBS), ("scores", SCORES)):
        path = library.path(name, shard, ".parquet")
        write_table(path, schema, reversed(read_table(path).to_pylist()), {})
    library.record()
    assert results(library) == before


def test_keywords_are_the_exported_labels_with_their_hierarchy(tmp_path):
    library = make_library(tmp_path, [f"{i}.jpg" for i in range(40)], shard_size=40)
    library.record()
    labels = json.loads((library.results / "labels.json").read_text())["labels"]
    known = {label["label"]: label for label in labels}
    records = results(library)[0]
    hidden = 0
    for record in records:
        over = [s for s in record["over_threshold"] if known[s["label"]]["export"]]
        hidden += len(record["over_threshold"]) - len(over)
        assert [k["rank"] for k in record["keywords"]] == list(range(1, len(over) + 1))
        for keyword, score in zip(record["keywords"], over, strict=True):
            label = known[score["label"]]
            assert keyword["keyword"] == label["path"][-1]
            assert (keyword["path"], keyword["synonyms"]) == (label["path"], label["synonyms"])
            assert (keyword["score"], keyword["source"]) == (score["cosine"], "clip")
    assert hidden
    cranes = [k for r in records for k in r["keywords"] if k["path"] == ["animal", "crane"]]
    assert cranes


@pytest.mark.parametrize("table", ["thumbs", "embeddings", "scores"])
def test_a_table_of_another_listing_is_an_error_with_a_way_out(tmp_path, table):
    library = make_library(tmp_path, ["a.jpg", "b.jpg"])
    path = library.path(table, library.shards[0].name, ".parquet")
    rows = read_table(path)
    write_table(path, rows.schema, rows.to_pylist()[:1], {})
    with pytest.raises(UserError, match=r"b\.jpg is missing.*delete it and run again"):
        library.record()
    assert not (library.results / "records").exists()


def test_all_photos_may_be_quarantined(tmp_path):
    library = make_library(tmp_path, ["a.jpg"], problems={"a.jpg": ("thumbs", "empty")})
    library.record()
    records, problems = results(library)
    assert (records, len(problems)) == ([], 1)


def test_two_runs_are_byte_identical(library, tmp_path):
    library.record()
    first = {p.name: p.read_bytes() for p in (library.results / "records").iterdir()}
    shutil.rmtree(library.results / "records")
    library.record()
    assert first == {p.name: p.read_bytes() for p in (library.results / "records").iterdir()}


def test_problems_are_proper_csv(library):
    library.record()
    with library.path("problems", library.shards[0].name, ".csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["rel_path", "stage", "kind", "message", "what_to_do"]
    assert all(len(row) == 5 for row in rows)
    listing = read_listing(library.path("plan/shards", library.shards[0].name, ".tsv"))
    assert {row[0] for row in rows[1:]} < {photo.rel_path for photo in listing}
