import pytest
from collect import collect
from tables_for_tests import make_library

from phototagger import plan
from phototagger.errors import UserError
from phototagger.records import read_problems, read_records


@pytest.fixture
def library(tmp_path):
    names = [f"{folder}/{i:02}.jpg" for folder in "cab" for i in range(7)]
    problems = dict.fromkeys(names[::5], ("thumbs", "corrupt"))
    library = make_library(tmp_path, names, problems=problems)
    library.record()
    return library


def test_shards_are_joined_in_plan_order(library):
    library.collect()
    records = [r["rel_path"] for r in read_records(library.results / "records.jsonl")]
    problems = [p.rel_path for p in read_problems(library.results / "problems.csv")]
    assert len(library.shards) > 3
    assert records == sorted(records, key=plan.sort_key)
    assert problems == sorted(problems, key=plan.sort_key)
    assert (len(records), len(problems)) == (16, 5)


def test_bytes_are_copied_and_the_header_stands_once(library):
    library.collect()
    parts = [path.read_bytes() for path in library.paths("records", ".jsonl")]
    assert (library.results / "records.jsonl").read_bytes() == b"".join(parts)
    assert (library.results / "problems.csv").read_text().count("what_to_do") == 1


def test_no_shards_at_all(tmp_path):
    collect([], [], tmp_path / "r.jsonl", tmp_path / "p.csv")
    assert (tmp_path / "r.jsonl").read_bytes() == b""
    assert (tmp_path / "p.csv").read_text() == "rel_path,stage,kind,message,what_to_do\n"


def test_another_table_is_refused_and_nothing_is_left_behind(library):
    wrong = library.paths("problems", ".csv")[2]
    wrong.write_text("something,else\n")
    with pytest.raises(UserError, match=f"{wrong.name}: not a table of problems"):
        library.collect()
    assert not (library.results / "problems.csv").exists()
    assert not [path for path in library.results.iterdir() if path.name.endswith(".tmp.csv")]
