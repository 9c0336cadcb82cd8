import csv
import json
import os

from export import export
from hypothesis import given
from hypothesis import strategies as st
from tables_for_tests import MODEL, RUN_ID, make_library
from test_records import GOOD

from phototagger import names
from phototagger.machine import Machine
from phototagger.plan import Root, Roots
from phototagger.records import TAG_COLUMNS, write_records

HEADER = (
    "path,rel_path,width,height,top1,top1_score,top5_labels,top5_scores,"
    "approved_labels,run_id,model_name"
)


def machine(tmp_path, *roots):
    return Machine(Roots(list(roots)), tmp_path, tmp_path, tmp_path, "cpu", 1)


def export_rows(tmp_path, records, *roots, **options):
    roots = roots or (Root("photos", "/photos"),)
    write_records(tmp_path / "r.jsonl", records)
    export(
        tmp_path / "r.jsonl",
        tmp_path / "tags.csv",
        machine=machine(tmp_path, *roots),
        run_id="run",
        model="demo-clip",
        **options,
    )
    with (tmp_path / "tags.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_columns_are_the_contract(tmp_path):
    export_rows(tmp_path, [GOOD])
    content = (tmp_path / "tags.csv").read_bytes()
    assert content.split(b"\n")[0].decode() == HEADER == ",".join(TAG_COLUMNS)
    assert b"\r" not in content


def test_a_row(tmp_path):
    (row,) = export_rows(tmp_path, [GOOD])
    assert row == {
        "path": "/photos/a/ü|\\n.jpg",
        "rel_path": "a/ü|\\n.jpg",
        "width": "4",
        "height": "3",
        "top1": "cat",
        "top1_score": "0.310000",
        "top5_labels": "cat|dog",
        "top5_scores": "0.310000|0.200000",
        "approved_labels": "",
        "run_id": "run",
        "model_name": "demo-clip",
    }


raw_names = st.binary(min_size=1, max_size=20).map(
    lambda raw: raw.replace(b"\x00", b"|").replace(b"/", b'"').replace(b".", b",")
)
labels = st.text(st.characters(codec="utf-8", exclude_characters="|\r"), min_size=1, max_size=12)


@given(st.lists(st.tuples(raw_names, st.lists(labels, max_size=5)), max_size=4))
def test_any_name_and_label_comes_back(tmp_path_factory, photos):
    tmp_path = tmp_path_factory.mktemp("export")
    records = []
    for raw, words in photos:
        scores = [{"label": word, "cosine": 0.1, "probability": 0.1} for word in words]
        rel_path = names.encode(os.fsdecode(raw))
        records.append(GOOD | {"rel_path": rel_path, "labels": scores})
    rows = export_rows(tmp_path, records)
    for (raw, words), row in zip(photos, rows, strict=True):
        assert os.fsencode(names.decode(row["rel_path"])) == raw
        assert os.fsencode(names.decode(row["path"])) == b"/photos/" + raw
        assert row["top5_labels"].split("|") == (words or [""])


def test_paths_lie_below_their_own_root(tmp_path):
    records = [GOOD | {"rel_path": "one/a.jpg"}, GOOD | {"rel_path": "two/x/b.jpg"}]
    rows = export_rows(tmp_path, records, Root("one", "/mnt/one"), Root("two", "/home/2"))
    assert [row["path"] for row in rows] == ["/mnt/one/a.jpg", "/home/2/x/b.jpg"]


def test_approved_labels_are_those_of_the_last_decision(tmp_path):
    decisions = [
        {"sha256": "0" * 64, "labels": ["x"], "decision": "approved"},
        {"sha256": "1" * 64, "labels": ["x"], "decision": "approved"},
        {"sha256": "0" * 64, "labels": ["cat", "new"], "decision": "approved"},
        {"sha256": "1" * 64, "labels": ["x"], "decision": "rejected"},
    ]
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in decisions))
    records = [GOOD, GOOD | {"sha256": "1" * 64}, GOOD | {"sha256": "2" * 64}]
    rows = export_rows(tmp_path, records, decisions=path)
    assert [row["approved_labels"] for row in rows] == ["cat|new", "", ""]


def test_a_row_per_record_in_their_order(tmp_path):
    library = make_library(tmp_path, [f"{i}.jpg" for i in range(20)]).run()
    with (library.results / "tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (library.results / "records.jsonl").read_text().splitlines()
    assert [row["rel_path"] for row in rows] == [json.loads(line)["rel_path"] for line in lines]
    assert {(row["run_id"], row["model_name"]) for row in rows} == {(RUN_ID, MODEL)}
    assert all(len(row["top5_labels"].split("|")) == 5 for row in rows)
