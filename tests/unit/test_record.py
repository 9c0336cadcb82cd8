import csv
import json
import shutil

import pytest
from record import join_keywords
from tables_for_tests import MODEL, SETUP, failed, make_library, sha256_of, skipped

from phototagger.errors import UserError
from phototagger.job import Stats
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


# ------------------------------------------------------------------------------------- described

FIELDS = ("caption", "keywords", "description")


def test_answers_are_in_the_record_and_say_how_they_came_about(tmp_path):
    own = {"a.jpg": {"own_caption": "Ours", "own_keywords": ["CAT", "Tom"], "place": "Ulm"}}
    answers = {("a.jpg", "caption"): skipped()}
    library = make_library(tmp_path, ["a.jpg"], own=own, fields=FIELDS, answers=answers)
    library.record()
    (found,), problems = results(library)
    assert load_validator()(found) is None
    assert problems == []
    nothing = dict.fromkeys(("title", "description", "alt_text", "rating"))
    own = {"caption": "Ours", "keywords": ["CAT", "Tom"], "paths": []}
    assert found["own"] == nothing | own
    assert (found["caption"], found["description"]) == (None, "A picture of a.jpg.")
    assert found["models"] == {"clip": MODEL, "keywords": "tiny-vlm", "description": "tiny-vlm"}
    assert list(found["describe"]) == list(FIELDS)
    assert [how["status"] for how in found["describe"].values()] == ["skipped", "done", "done"]
    assert found["describe"]["caption"]["request"] is None
    assert found["describe"]["caption"]["setup"] == SETUP
    assert found["describe"]["keywords"]["completion_tokens"] == 20
    assert [(k["keyword"], k["source"]) for k in found["keywords"]][:3] == [
        ("CAT", "person"),
        ("Tom", "person"),
        ("harbour", "vlm"),
    ]


def test_a_failed_field_is_a_note_and_a_problem_beside_the_record(tmp_path):
    answers = {
        ("b.jpg", "keywords"): failed("answer_loop", "cat 40 times\nand more"),
        ("b.jpg", "caption"): failed("server_failed", "500"),
        ("c.jpg", "caption"): failed("server_failed", "500"),
        ("d.jpg", "description"): {"notes": ["asked twice"]},
    }
    broken = {"c.jpg": ("embed", "embed_failed")}
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    library = make_library(tmp_path, names, problems=broken, fields=FIELDS, answers=answers)
    library.record()
    records, problems = results(library)
    assert [r["notes"] for r in records] == [
        [],
        ["caption: 500", "keywords: cat 40 times and more"],
        ["description: asked twice"],
    ]
    assert [(p.rel_path, p.stage, p.kind, p.message, p.what_to_do) for p in problems][:2] == [
        ("b.jpg", "describe", "server_failed", "caption: 500", KINDS["server_failed"]),
        ("b.jpg", "describe", "answer_loop", records[1]["notes"][1], KINDS["answer_loop"]),
    ]
    assert [(p.rel_path, p.stage) for p in problems][2:] == [("c.jpg", "embed")]
    assert records[1]["caption"] is None
    assert "vlm" not in {k["source"] for k in records[1]["keywords"]}
    assert records[1]["models"] == {"clip": MODEL, "description": "tiny-vlm"}


CLIP = [
    {"keyword": "cat", "path": ["animal", "cat"], "synonyms": ["kitty"], "score": 0.3},
    {"keyword": "crane", "path": ["animal", "crane"], "synonyms": [], "score": 0.2},
    {"keyword": "crane", "path": ["machine", "crane"], "synonyms": [], "score": 0.1},
]
CLIP = [keyword | {"rank": 0, "source": "clip"} for keyword in CLIP]


def join(own, vlm, paths=None):
    joined = join_keywords(own, {"keywords": vlm, "paths": paths or {}}, CLIP)
    assert [keyword["rank"] for keyword in joined] == list(range(1, len(joined) + 1))
    return [(k["source"], k["path"], k["synonyms"], k["score"]) for k in joined]


def test_sources_are_joined_and_each_word_stands_once():
    assert join(["Tom", "CAT"], ["cat", "tom", "straße", "Fur"], {"fur": ["body", "fur"]}) == [
        ("person", ["Tom"], [], None),
        ("person", ["animal", "CAT"], ["kitty"], 0.3),
        ("vlm", ["straße"], [], None),
        ("vlm", ["body", "Fur"], [], None),
        ("clip", ["animal", "crane"], [], 0.2),
        ("clip", ["machine", "crane"], [], 0.1),
    ]


def test_a_word_that_two_labels_share_takes_the_better_one():
    assert join([], ["Crane", "STRASSE", "straße"]) == [
        ("vlm", ["animal", "Crane"], [], 0.2),
        ("vlm", ["STRASSE"], [], None),
        ("clip", ["animal", "cat"], ["kitty"], 0.3),
    ]


def test_every_setup_has_its_file(tmp_path):
    library = make_library(tmp_path, ["a.jpg", "b.jpg"], fields=FIELDS)
    library.record()
    before = results(library)
    path = library.path(f"describe/{SETUP}", library.shards[0].name, ".jsonl")
    other = library.path("describe/other", library.shards[0].name, ".jsonl")
    other.parent.mkdir()
    lines = path.read_text().splitlines(keepends=True)
    other.write_text("".join(line for line in lines if '"field": "keywords"' in line))
    with pytest.raises(UserError, match=r"keywords is in .*delete it, run again"):
        library.record()
    path.write_text("".join(line for line in lines if '"field": "keywords"' not in line))
    library.record()
    assert results(library) == before


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"rel_path": "z.jpg"}])
def test_answers_of_another_photo_are_an_error_with_a_way_out(tmp_path, change):
    answers = {("b.jpg", "caption"): change}
    library = make_library(tmp_path, ["a.jpg", "b.jpg"], fields=FIELDS, answers=answers)
    with pytest.raises(UserError, match=r"jsonl: b\.jpg is missing.*delete it and run again"):
        library.record()


def test_counts_are_of_photos(tmp_path):
    answers = {("a.jpg", field): failed("server_failed", "500") for field in FIELDS}
    broken = {"b.jpg": ("thumbs", "empty")}
    library = make_library(
        tmp_path, ["a.jpg", "b.jpg"], problems=broken, fields=FIELDS, answers=answers
    )
    stats = Stats()
    library.record_shard(library.shards[0].name, stats)
    assert (stats.photos, stats.computed, stats.skipped) == (2, 1, 1)
    assert len(results(library)[1]) == 4


# ------------------------------------------------------------------- tagged, and capture groups


def test_a_tagged_photo_has_its_own_metadata_only(tmp_path):
    own = {
        "a.jpg": {
            "tagged": True,
            "own_title": "Tom at home",
            "own_rating": "5",
            "own_keywords": ["cat", "Tom"],
            "own_paths": [["animal", "cat"]],
            "embedded": '{"XMP-dc:Subject": ["Tom"]}',
        }
    }
    library = make_library(tmp_path, ["a.jpg", "b.jpg"], own=own, fields=FIELDS)
    library.record()
    (tagged, other), problems = results(library)
    assert [load_validator()(record) for record in (tagged, other)] == [None, None]
    assert problems == []
    assert (tagged["tagged"], other["tagged"]) == (True, False)
    assert [(k["keyword"], k["source"], k["score"]) for k in tagged["keywords"]] == [
        ("cat", "person", None),
        ("Tom", "person", None),
    ]
    assert (tagged["labels"], tagged["over_threshold"], tagged["describe"]) == ([], [], {})
    assert tagged["own"]["paths"] == [["animal", "cat"]]
    assert (tagged["own"]["title"], tagged["own"]["rating"]) == ("Tom at home", "5")
    assert tagged["embedded"] == {"XMP-dc:Subject": ["Tom"]}
    assert tagged["notes"] == ["already tagged: left alone"]
    assert other["notes"] == []


def test_a_tagged_copy_of_a_photo_that_is_not_has_no_labels_either(tmp_path):
    own, contents = {"a.jpg": {"tagged": True}}, {"a.jpg": "same", "b.jpg": "same"}
    library = make_library(tmp_path, contents, contents=contents, own=own)
    library.record()
    first, second = results(library)[0]
    assert first["sha256"] == second["sha256"]
    assert (first["labels"], bool(second["labels"])) == ([], True)


PAIR = {
    "a.CR3": {"format": "CR3", "taken_at": "2024-05-01T12:00:00", "own_keywords": ["Tom"]},
    "a.jpg": {"taken_at": "2024-05-01T12:00:00"},
    "b.jpg": {},
}


def test_members_of_a_capture_group_get_the_labels_of_their_leader(tmp_path):
    library = make_library(tmp_path, PAIR, own=PAIR, contents={"a.jpg": "a cat"})
    library.record()
    raw, jpeg, alone = results(library)[0]
    assert [r["inherited_from"] for r in (raw, jpeg, alone)] == ["a.jpg", None, None]
    assert raw["sha256"] != jpeg["sha256"]
    for name in ("labels", "over_threshold"):
        assert raw[name] == jpeg[name]
    assert [k for k in raw["keywords"] if k["source"] == "person"]
    found = [[k["path"] for k in r["keywords"] if k["source"] == "clip"] for r in (raw, jpeg)]
    assert found[0] == found[1]
    assert found[0]


def test_a_leader_that_could_not_be_embedded_leaves_its_place_to_the_next(tmp_path):
    broken = {"a.jpg": ("embed", "embed_failed")}
    library = make_library(tmp_path, PAIR, own=PAIR, problems=broken)
    library.record()
    records, problems = results(library)
    assert [(r["rel_path"], r["inherited_from"]) for r in records] == [
        ("a.CR3", None),
        ("b.jpg", None),
    ]
    assert records[0]["labels"]
    assert [p.rel_path for p in problems] == ["a.jpg"]


def test_other_pictures_of_the_same_name_are_on_their_own_and_say_so(tmp_path):
    own = {"x/a.jpg": {"dhash": "0" * 16}, "x/a.png": {"format": "PNG", "dhash": "f" * 16}}
    own = {name: {"taken_at": None} | row for name, row in own.items()}
    library = make_library(tmp_path, own, own=own)
    library.record()
    first, second = results(library)[0]
    assert first["inherited_from"] is second["inherited_from"] is None
    assert first["labels"] != second["labels"]
    assert first["notes"] == [
        "a.png has the same name but shows another picture: each is on its own"
    ]
    assert second["notes"] == [
        "a.jpg has the same name but shows another picture: each is on its own"
    ]
