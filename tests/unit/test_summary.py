import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from summary import KEYWORDS, NAMED_PROBLEMS, PICTURES, escape, folder_path, new_folder
from tables_for_tests import make_library

from phototagger import names
from phototagger.prune import prune
from phototagger.records import read_records

PHOTOS = [
    "top.jpg",
    "trip/1.jpg",
    "trip/2.jpg",
    "trip/day 1/a.jpg",
    "trip/day 1/b.jpg",
    "trip/z.jpg",
    "bad/x.jpg",
]


@pytest.fixture
def library(tmp_path):
    problems = {"bad/x.jpg": ("thumbs", "empty"), "trip/2.jpg": ("embed", "embed_failed")}
    library = make_library(tmp_path, PHOTOS, problems=problems, shard_size=3)
    library.record()
    library.collect()
    library.export()
    library.medoids()
    for record in read_records(library.results / "records.jsonl"):
        thumb = library.machine.cache / "thumbs" / record["thumb"]
        thumb.parent.mkdir(parents=True, exist_ok=True)
        thumb.write_bytes(record["sha256"].encode())
    library.summary()
    return library


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_folder_gets_its_own_photos_as_they_stand_in_the_whole(library):
    whole = (library.results / "records.jsonl").read_text().splitlines()
    for folder, place in {".": "_root_", "trip": "trip", "trip/day 1": "trip/day 1"}.items():
        lines = (library.results / "folders" / place / "records.jsonl").read_text().splitlines()
        assert lines == [
            line for line in whole if names.folder_of(json.loads(line)["rel_path"]) == folder
        ]
        assert lines
    assert (library.results / "folders/bad/records.jsonl").read_bytes() == b""


def test_totals_and_rows(library):
    text = (library.results / "summary.md").read_text()
    assert "- Photos: 5 in 4 folders\n- Quarantined: 2\n" in text
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert rows == [
        ("the root folder", "folders/_root_/summary.md", "1", "0"),
        ("bad", "folders/bad/summary.md", "0", "1"),
        ("trip", "folders/trip/summary.md", "2", "1"),
        ("trip/day 1", "folders/trip/day%201/summary.md", "2", "0"),
    ]
    assert "| thumbs | empty | 1 |" in text
    assert "| embed | embed_failed | 1 |" in text


def test_keyword_frequencies_count_photos(library):
    counts = {}
    for record in read_records(library.results / "records.jsonl"):
        for keyword in {k["keyword"] for k in record["keywords"]}:
            counts[keyword] = counts.get(keyword, 0) + 1
    text = (library.results / "summary.md").read_text()
    table = text.partition("## Keywords")[2].partition("##")[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) % \|$", table, re.MULTILINE)
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:KEYWORDS]
    assert counts
    assert [(word, int(count)) for word, count, _ in rows] == expected
    assert float(rows[0][2]) == 100 * expected[0][1] / 5


def test_pictures_are_the_medoids_and_every_link_leads_somewhere(library):
    text = (library.results / "summary.md").read_text()
    pictures = re.findall(r"^!\[.*\]\((.+)\)$", text, re.MULTILINE)
    assert len(pictures) == 3
    for link in re.findall(r"\]\((.+?)\)", text):
        assert (library.results / os.fsdecode(unquote_to_bytes(link))).is_file()
    by_path = {r["rel_path"]: r for r in read_records(library.results / "records.jsonl")}
    medoids = (library.results / "folder_medoids.csv").read_text().splitlines()[1:]
    for folder, rel_path, _ in (line.split(",") for line in medoids):
        picture = folder_path(library.results / "folders", folder) / "medoid.jpg"
        assert picture.read_bytes() == by_path[rel_path]["sha256"].encode()


def test_highlights_are_the_strongest_top_labels(library):
    records = list(read_records(library.results / "folders/trip/day 1/records.jsonl"))
    records.sort(key=lambda r: -r["labels"][0]["cosine"])
    text = (library.results / "folders/trip/day 1/summary.md").read_text()
    listed = re.findall(r"^- (trip.+?): (.+?) \((.+?)\)$", text, re.MULTILINE)
    assert [(path, score) for path, _, score in listed] == [
        (r["rel_path"], f"{r['labels'][0]['cosine']:.6f}") for r in records
    ]


def test_texts_depend_neither_on_the_place_nor_on_the_cache(library, tmp_path_factory):
    other = make_library(
        tmp_path_factory.mktemp("elsewhere"),
        PHOTOS,
        problems={"bad/x.jpg": ("thumbs", "empty"), "trip/2.jpg": ("embed", "embed_failed")},
        shard_size=5,
    ).run()
    mine, theirs = tree(library.results / "folders"), tree(other.results / "folders")
    pictures = {name for name in mine if name.endswith(".jpg")}
    assert {name: mine[name] for name in mine.keys() - pictures} == theirs
    summaries = [(side.results / "summary.md").read_bytes() for side in (library, other)]
    assert summaries[0] == summaries[1]
    assert str(library.work).encode() not in summaries[0]


def test_a_second_run_replaces_the_folders(library):
    before = tree(library.results / "folders")
    (library.results / "folders/trip/stale.txt").write_text("old")
    library.summary()
    assert tree(library.results / "folders") == before
    assert not list(library.results.glob(".*.tmp"))


def test_a_failure_leaves_the_old_folders_and_no_temporary_ones(library):
    before = tree(library.results / "folders")
    with (library.results / "records.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(Exception, match="delete the file"):
        library.summary()
    assert tree(library.results / "folders") == before
    assert not list(library.results.glob(".*.tmp"))


def test_what_a_killed_run_leaves_is_pruned(library):
    before = tree(library.results)
    filling = new_folder(library.results / "folders")
    (filling.__enter__() / "trip").mkdir()  # never left, as when the process is killed
    assert list(library.results.glob(".*.tmp"))
    prune([shard.name for shard in library.shards], library.results)
    assert not list(library.results.glob(".*.tmp"))
    assert tree(library.results) == before


def test_folders_named_as_our_files_do_not_collide(tmp_path):
    odd = [
        "a.jpg",
        "_root_/a.jpg",
        "_root__/a.jpg",
        "summary.md/a.jpg",
        "x/summary.md/a.jpg",
        "x/b.jpg",
        "x/Records.jsonl/medoid.jpg/a.jpg",
        ".snakemake_timestamp/a.jpg",
    ]
    library = make_library(tmp_path, odd).run()
    places = {folder_path(library.results / "folders", names.folder_of(p)) for p in odd}
    assert len(places) == len(odd)
    for place in places:
        assert len((place / "records.jsonl").read_text().splitlines()) == 1
        assert (place / "summary.md").is_file()


parts = st.sampled_from(
    ["_root_", "_root", "_root__", "summary.md", "summary.md_", "medoid.jpg", "records.jsonl", "a"]
)
folders = st.lists(parts, min_size=1, max_size=3).map("/".join) | st.just(".")


@given(folders, folders)
def test_no_two_folders_share_a_place_and_none_takes_a_file_of_another(first, second):
    base = Path("f")
    place, other = folder_path(base, first), folder_path(base, second)
    assert (place == other) == (first == second)
    files = {place / name for name in ("summary.md", "records.jsonl", "medoid.jpg")}
    assert not files & {other, *other.parents}


def test_odd_names_make_working_links_and_whole_tables(tmp_path):
    odd = [r"a|b/1.jpg", r"new\nline/1.jpg", r"bytes\xff/1.jpg", "[x](y)/1.jpg", "*_`<&$🚤/1.jpg"]
    library = make_library(tmp_path, odd).run()
    text = (library.results / "summary.md").read_text()
    links = re.findall(r"\]\(([^()\s]+/summary\.md)\)", text)
    assert len(links) == 2 * len(odd)
    for link in links:
        assert (library.results / os.fsdecode(unquote_to_bytes(link))).is_file()
    table = text.partition("## Folders")[2].partition("##")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in table} == {6}
    assert len(table) == 2 + len(odd)


def test_escaped_text_has_no_live_markup():
    assert escape("a|b_*[x]") == r"a\|b\_\*\[x\]"
    assert escape(r"new\nline.jpg") == r"new\\nline.jpg"
    assert escape("IMG_1__2_.jpg _x_") == r"IMG_1\_\_2\_.jpg \_x\_"
    assert escape("IMG-1 (2).jpg") == "IMG-1 (2).jpg"


def test_large_libraries_are_cut_off_with_a_word(tmp_path):
    folders = [f"{i:03}/1.jpg" for i in range(PICTURES + 6)]
    bad = [f"bad/{i}.jpg" for i in range(NAMED_PROBLEMS + 5)]
    library = make_library(
        tmp_path, folders + bad, problems=dict.fromkeys(bad, ("thumbs", "empty")), shard_size=64
    ).run()
    text = (library.results / "summary.md").read_text()
    assert text.count("![") == PICTURES
    assert f"The {PICTURES} folders with most photos" in text
    page = (library.results / "folders/bad/summary.md").read_text()
    assert page.count("| thumbs |") == NAMED_PROBLEMS
    assert "and 5 more, all in problems.csv." in page


def test_an_empty_library(tmp_path):
    library = make_library(tmp_path, []).run()
    assert "- Photos: 0 in 0 folders" in (library.results / "summary.md").read_text()
    assert (library.results / "folders").is_dir()
