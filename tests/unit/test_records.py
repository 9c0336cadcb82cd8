import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from phototagger.errors import UserError
from phototagger.records import (
    MEDOID_COLUMNS,
    SCHEMA,
    SOURCES,
    Asked,
    Keyword,
    Own,
    ProblemRow,
    Record,
    format_record,
    load_validator,
    read_csv,
    read_lines,
    read_medoids,
    read_problems,
    read_records,
    rounded,
    tag_fields,
    write_problems,
    write_records,
)

SCORES = [
    {"label": "cat", "cosine": 0.31, "probability": 0.9},
    {"label": "dog", "cosine": 0.2, "probability": 0.1},
]
KEYWORD = {"keyword": "cat", "path": ["animal", "cat"], "synonyms": ["kitty"]}
OTHER = {"keyword": "Tom", "path": ["Tom"], "synonyms": []}
ASKED = {
    "status": "done",
    "setup": "tiny-vlm_llama.cpp",
    "setup_digest": "b" * 64,
    "model": "tiny-vlm",
    "server": None,
    "profile": "default",
    "prompt_digest": "c" * 64,
    "request": "a" * 64,
    "prompt_tokens": 300,
    "completion_tokens": 20,
    "seconds": 0.25,
    "attempts": 1,
    "finish_reason": "stop",
    "inherited_from": None,
}
SKIPPED = ASKED | {"status": "skipped"} | dict.fromkeys(list(ASKED)[7:])
GOOD = {
    "rel_path": "a/ü|\\n.jpg",
    "sha256": "0" * 64,
    "bytes": 5,
    "width": 4,
    "height": 3,
    "orientation": 6,
    "format": "JPEG",
    "taken_at": "2024-05-01T12:34:56+02:00",
    "camera": "NIKON D850",
    "lens": None,
    "gps": {"lat": 48.1, "lon": -11.0},
    "own": {
        "title": None,
        "caption": "Our cat",
        "description": None,
        "alt_text": None,
        "rating": "3",
        "keywords": ["Tom"],
        "paths": [["family", "Tom"]],
    },
    "embedded": {"XMP-dc:Subject": ["Tom"], "XMP-xmp:Rating": ["3"]},
    "thumb": "512/ab/abc.jpg",
    "labels": SCORES,
    "over_threshold": SCORES[:1],
    "caption": "A cat asleep.",
    "description": None,
    "keywords": [
        OTHER | {"rank": 1, "score": None, "source": "person"},
        KEYWORD | {"rank": 2, "score": 0.31, "source": "clip"},
    ],
    "models": {"clip": "demo-clip", "caption": "tiny-vlm"},
    "describe": {"caption": ASKED, "keywords": SKIPPED},
    "inherited_from": "a/ü|\\n.jpeg",
    "tagged": False,
    "notes": [],
    "schema_version": "1.2",
}
CHANGES = [
    ("sha256", None),
    ("sha256", "0" * 63),
    ("sha256", "0" * 64 + "\n"),
    ("rel_path", ""),
    ("rel_path", "/a.jpg"),
    ("rel_path", "a\nb.jpg"),
    ("bytes", 0),
    ("width", 0),
    ("width", 1.5),
    ("width", "4"),
    ("height", None),
    ("orientation", 9),
    ("taken_at", "2024:05:01 12:34:56"),
    ("camera", ""),
    ("gps", {"lat": 91, "lon": 0}),
    ("gps", {"lat": 1}),
    ("thumb", "/home/x/cache/a.jpg"),
    ("labels", [SCORES[0] | {"cosine": 1.5}]),
    ("labels", [SCORES[0] | {"probability": -0.1}]),
    ("labels", [SCORES[0] | {"label": "a|b"}]),
    ("labels", [SCORES[0] | {"more": 1}]),
    ("labels", None),
    ("over_threshold", {}),
    ("keywords", [KEYWORD]),
    ("keywords", [KEYWORD | {"rank": 0, "score": 0.31, "source": "clip"}]),
    ("keywords", [KEYWORD | {"rank": 1, "score": 0.31, "source": "somebody"}]),
    ("own", None),
    ("own", GOOD["own"] | {"caption": ""}),
    ("own", GOOD["own"] | {"keywords": None}),
    ("own", GOOD["own"] | {"rating": 3}),
    ("own", GOOD["own"] | {"paths": [[]]}),
    ("embedded", None),
    ("embedded", {"XMP-dc:Subject": "Tom"}),
    ("inherited_from", ""),
    ("tagged", None),
    ("caption", ""),
    ("description", ["text"]),
    ("describe", {"title": ASKED}),
    ("describe", {"caption": ASKED | {"status": "asleep"}}),
    ("describe", {"caption": ASKED | {"request": "short"}}),
    ("describe", {"caption": ASKED | {"attempts": 1.5}}),
    ("describe", {"caption": {k: v for k, v in ASKED.items() if k != "profile"}}),
    ("models", {"clip": "x", "caption": None}),
    ("models", {}),
    ("models", {"clip": "x", "other": "y"}),
    ("notes", [""]),
    ("schema_version", "9.0"),
    ("unknown", 1),
]


def test_schema_is_draft_2020_12_and_describes_every_field():
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    whole = [schema, *schema["$defs"].values()]
    whole += [schema["properties"][name] for name in ("gps", "own")]
    by_field = [schema["properties"][name] for name in ("models", "describe")]
    for part in [*whole, *by_field]:
        assert part["description"]
        assert part["additionalProperties"] is False
        if part in whole:
            assert set(part["required"]) == set(part["properties"])
        assert all(
            field.get("description") or "$ref" in field for field in part["properties"].values()
        )


def test_schema_and_typed_record_have_the_same_fields_in_the_same_order():
    schema = json.loads(SCHEMA.read_text())
    properties = schema["properties"]
    assert list(properties) == list(Record.__annotations__) == list(GOOD)
    assert list(properties["own"]["properties"]) == list(Own.__annotations__)
    assert list(schema["$defs"]["asked"]["properties"]) == list(Asked.__annotations__)
    assert list(schema["$defs"]["keyword"]["properties"]) == list(Keyword.__annotations__)
    assert schema["$defs"]["keyword"]["properties"]["source"]["enum"] == list(SOURCES)


def test_a_good_record_is_valid():
    assert load_validator()(GOOD) is None


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_the_compiled_schema_agrees_with_the_reference_validator(key, value):
    record = GOOD | {key: value}
    reference = Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert load_validator()(record)
    # Python's $ also matches before a last newline, which the compiled schema does not let pass
    assert not reference.is_valid(record) or str(value).endswith("\n")


@pytest.mark.parametrize("key", list(GOOD))
def test_every_field_is_required(key):
    record = copy.copy(GOOD)
    del record[key]
    assert key in load_validator()(record)


def test_records_round_trip_in_order_and_readable(tmp_path):
    records = [GOOD, GOOD | {"rel_path": "b.jpg"}]
    assert write_records(tmp_path / "r.jsonl", iter(records)) == 2
    assert list(read_records(tmp_path / "r.jsonl")) == records
    text = (tmp_path / "r.jsonl").read_text()
    assert "ü" in text
    assert list(json.loads(text.splitlines()[0])) == list(GOOD)
    assert "".join(line for line, _ in read_lines(tmp_path / "r.jsonl")) == text


def test_not_a_number_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_records(tmp_path / "r.jsonl", [{"x": float("nan")}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tail", [b'{"a": NaN}\n', b'{"a": 1', b'{"a": 1}', b"[]\n", b"\n", b'"\xff"\n', b"{} {}\n"]
)
def test_a_damaged_line_is_named(tmp_path, tail):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + tail)
    with pytest.raises(UserError, match=r"r\.jsonl: line \d.*delete the file and run again"):
        list(read_records(path))


@given(st.floats(-1, 1, width=32))
def test_rounded_numbers_have_six_decimals_and_no_negative_zero(value):
    text = json.dumps(rounded(value))
    assert text != "-0.0"
    assert float(f"{value:.6f}") == float(text)
    assert json.loads(format_record({"x": rounded(value)})) == {"x": float(text)}


# a carriage return is in no field: names are encoded, messages are one line, labels have none
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@given(st.lists(st.builds(ProblemRow, texts, texts, texts, texts, texts), max_size=5))
def test_problems_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("problems") / "p.csv"
    assert write_problems(path, rows) == len(rows)
    assert list(read_problems(path)) == rows


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n", b"folder,medoid_rel_path,cosine_to_centroid\nx,y\n"]
)
def test_a_table_with_other_columns_is_refused(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.csv"):
        list(read_csv(path, MEDOID_COLUMNS))


def test_medoids_are_read_as_numbers(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("folder,medoid_rel_path,cosine_to_centroid\n.,a.jpg,0.500000\n")
    assert list(read_medoids(path)) == [(".", "a.jpg", 0.5)]
    path.write_text("folder,medoid_rel_path,cosine_to_centroid\n.,a.jpg,high\n")
    with pytest.raises(UserError, match="high"):
        list(read_medoids(path))


def test_tag_fields_take_five_labels_at_most():
    many = [{"label": f"l{i}", "cosine": 0.5 - i / 10, "probability": 0.1} for i in range(7)]
    fields = tag_fields(GOOD | {"labels": many})
    assert fields[3:5] == ["l0", "0.500000"]
    assert fields[5] == "l0|l1|l2|l3|l4"
    assert fields[6] == "0.500000|0.400000|0.300000|0.200000|0.100000"
    assert tag_fields(GOOD | {"labels": []})[3:] == ["", "", "", ""]
