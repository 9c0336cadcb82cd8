import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from summary import (
    EXCERPTS,
    KEYWORDS,
    NAMED_PROBLEMS,
    PICTURES,
    escape,
    folder_path,
    new_folder,
    prose,
)
from tables_for_tests import make_library

from phototagger import names
from phototagger.described import beginning, text
from phototagger.prune import prune
from phototagger.records import ProblemRow, read_records, write_problems

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
    prune([shard.name for shard in library.shards], results=library.results)
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


# ----------------------------------------------------------------------------- what models wrote


def keyword(word, source, score=None):
    place = {"path": [word], "synonyms": [], "rank": 1}
    return {"keyword": word, **place, "score": score, "source": source}


def asked(status, setup="tiny_llama.cpp"):
    model = "tiny|vlm" if status == "done" else None
    return {"status": status, "setup": setup, "model": model, "profile": "travel"}


def describe_all(library, edit):
    """Give every record what `edit` makes of its rel_path, and write the summaries again."""
    path = library.results / "records.jsonl"
    off = {"caption": None, "description": None, "describe": {}}
    off |= {"own": {"caption": None, "description": None, "keywords": []}}
    records = [record | off | edit(record["rel_path"]) for record in read_records(path)]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), "utf-8")
    library.summary()
    return records


def described(rel_path):
    name = rel_path.rpartition("/")[2]
    done = name != "b.jpg"
    states = {"caption": "done" if done else "failed", "description": "skipped"}
    words = [keyword("boat", "person"), keyword("Boot", "vlm"), keyword("sky", "clip", 0.5)]
    return {
        "caption": f"caption of {name}" if done else None,
        "own": {"caption": None, "description": f"own of {name} " * 40, "keywords": ["boat"]},
        "keywords": words[: 3 if done else 1],
        "describe": {field: asked(status) for field, status in states.items()},
    }


def rows_of(page, section):
    table = page.partition(f"## {section}\n")[2].partition("\n#")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\) *\| *", line)[1:-1] for line in lines]


def test_fields_are_counted_with_who_was_asked(library):
    describe_all(library, described)
    text = (library.results / "summary.md").read_text()
    header, _, *rows = rows_of(text, "Captions, keywords, descriptions")
    assert header == ["Field", "Done", "Failed", "Skipped", "Model", "Setup", "Prompts"]
    assert rows == [
        ["caption", "4", "1", "0", r"tiny\|vlm", r"tiny_llama.cpp", "travel"],
        ["description", "0", "0", "5", "", "", ""],
    ]
    page = (library.results / "folders/trip/day 1/summary.md").read_text()
    assert rows_of(page, "Captions, keywords, descriptions")[2:] == [
        ["caption", "1", "1", "0"],
        ["description", "0", "0", "2"],
    ]


def test_keywords_are_told_apart_by_source(library):
    describe_all(library, described)
    text = (library.results / "summary.md").read_text()
    header, _, *rows = rows_of(text, "Keywords")
    assert header == ["Keyword", "Photos", "Share", "Person", "VLM", "CLIP"]
    assert rows == [
        ["boat", "5", "100.0 %", "5", "0", "0"],
        ["Boot", "4", "80.0 %", "0", "4", "0"],
        ["sky", "4", "80.0 %", "0", "0", "4"],
    ]


def test_the_medoid_is_described_and_others_are_quoted(library):
    records = describe_all(library, described)
    medoids = (library.results / "folder_medoids.csv").read_text().splitlines()[1:]
    medoid = next(line.split(",")[1] for line in medoids if line.startswith("trip,"))
    name = medoid.rpartition("/")[2]
    page = (library.results / "folders/trip/summary.md").read_text()
    assert f"\nCaption: caption of {name}\n" in page
    quoted = re.search(r"^Description: (.+)$", page, re.MULTILINE)[1]
    assert quoted.startswith(f"own of {name} own of")
    assert quoted.endswith(f"{name} own…")
    assert len(quoted) <= 240
    (other,) = (
        r["rel_path"]
        for r in records
        if names.folder_of(r["rel_path"]) == "trip" and r["rel_path"] != medoid
    )
    assert f"\n- {other}: caption of {other.rpartition('/')[2]}\n" in page
    whole = (library.results / "summary.md").read_text()
    assert f"Caption: caption of {name}" in whole
    assert f"- {other}: caption of" in whole


def test_quoted_photos_have_most_of_the_frequent_keywords_and_different_captions(tmp_path):
    library = make_library(tmp_path, [f"{n:02}.jpg" for n in range(20)], shard_size=64).run()

    def edit(rel_path):
        number = int(rel_path[:2])
        words = ["sea", "sand", "sun", "boat"][: number % 5]
        return {
            "caption": "the same" if number % 5 == 4 else f"caption {number}",
            "keywords": [keyword(word, "vlm") for word in words] or [keyword("rare", "vlm")],
            "describe": {"caption": asked("done")},
        }

    describe_all(library, edit)
    medoid = (library.results / "folder_medoids.csv").read_text().splitlines()[1].split(",")[1]
    page = (library.results / "folders/_root_/summary.md").read_text()
    found = re.findall(r"^- (\d\d).jpg: (caption \d+|the same)$", page, re.MULTILINE)
    same = [f"{n:02}" for n in (4, 9, 14, 19) if f"{n:02}.jpg" != medoid]
    others = [f"{n:02}" for n in (3, 8, 13, 18) if f"{n:02}.jpg" != medoid]
    first = [] if int(medoid[:2]) % 5 == 4 else [(same[0], "the same")]
    expected = first + [(name, f"caption {int(name)}") for name in others]
    assert found == expected[:EXCERPTS]
    before = tree(library.results / "folders")
    library.summary()
    assert tree(library.results / "folders") == before


def test_nothing_of_it_when_nobody_was_asked(library):
    before = (library.results / "summary.md").read_text(), tree(library.results / "folders")
    own = {"caption": "mine", "description": "mine", "keywords": []}
    describe_all(library, lambda _: {"own": own})
    assert (library.results / "summary.md").read_text() == before[0]
    after = tree(library.results / "folders")
    assert {k: v for k, v in after.items() if k.endswith(".md")} == {
        k: v for k, v in before[1].items() if k.endswith(".md")
    }
    assert not re.search("Caption|Person|VLM|mine", before[0])


def test_fields_that_failed_are_problems_but_not_quarantined(library):
    describe_all(library, described)
    rows = [
        ProblemRow("bad/x.jpg", "thumbs", "empty", "the file is empty", "restore it"),
        ProblemRow("trip/day 1/b.jpg", "describe", "answer_loop", "caption: loop", "mend"),
        ProblemRow("trip/day 1/b.jpg", "describe", "answer_loop", "keywords: loop", "mend"),
    ]
    write_problems(library.results / "problems.csv", rows)
    library.summary()
    whole = (library.results / "summary.md").read_text()
    assert "- Quarantined: 1\n" in whole
    assert "| describe | answer_loop | 1 |" in whole
    page = (library.results / "folders/trip/day 1/summary.md").read_text()
    assert "- Quarantined: 0\n" in page
    assert len(rows_of(page, "Problems")) == 2 + 2


def test_what_models_say_stays_text(tmp_path):
    library = make_library(tmp_path, ["a.jpg", "b.jpg"]).run()
    nasty = "# *hi* | <img src=x> [x](http://x.y)\n\n- item\x1b[2J `code` www.x.y"
    edit = {"keywords": [keyword(nasty, "vlm")], "describe": {"caption": asked("done")}}
    describe_all(library, lambda path: {"caption": f"{nasty} {path}"} | edit)
    page = (library.results / "folders/_root_/summary.md").read_text()
    assert "\x1b" not in page
    assert "<img" not in page.replace(r"\<img", "")
    assert not re.search(r"(?<!\\)\[x|://|www\.|^# \*|^- item", page, re.MULTILINE)
    assert len(rows_of(page, "Keywords")) == 3
    assert {len(row) for row in rows_of(page, "Keywords")} == {4}


def test_texts_are_cut_between_words():
    assert beginning("short", 10) == "short"
    assert beginning("one two three four", 12) == "one two…"
    assert beginning("one two, three", 9) == "one two…"
    assert beginning("x" * 30, 10) == "x" * 9 + "…"
    assert beginning("写真" * 20, 10) == "写真写真写真写真写…"


@given(st.text(), st.integers(2, 40))
def test_beginnings_are_never_longer(words, most):
    assert len(beginning(words, most)) <= most


def test_the_photos_own_words_stand_in_where_the_model_was_not_asked():
    own = {"caption": "mine\n\tis  this", "description": None, "keywords": []}
    record = {"caption": None, "own": own, "describe": {"caption": asked("skipped")}}
    assert text(record, "caption") == "mine is this"
    assert text(record | {"describe": {"caption": asked("failed")}}, "caption") is None
    assert text(record | {"describe": {}}, "caption") is None
    assert text(record, "description") is None
    assert prose("see http://a.b, www.c.d or e@f.g") == r"see http:\//a.b, www\.c.d or e\@f.g"


def test_a_tagged_photo_shows_its_own_words():
    record = {"tagged": True, "own": {"caption": "Tom", "description": None}, "describe": {}}
    assert (text(record, "caption"), text(record, "description")) == ("Tom", None)


def test_different_pictures_of_one_name_are_named(tmp_path):
    taken = {
        name: {"taken_at": f"2024-05-0{day}T12:00:00"}
        for day, name in enumerate(("a/1.jpg", "a/1.png", "b/2.jpg"), 1)
    }
    library = make_library(tmp_path, taken, own=taken).run()
    line = r"- Same name as another picture: 2 (a/1.jpg, a/1.png)"
    assert line in (library.results / "summary.md").read_text()
    assert line in (library.results / "folders/a/summary.md").read_text()
    assert "Same name" not in (library.results / "folders/b/summary.md").read_text()


def test_photos_that_no_model_was_shown_are_counted_apart(tmp_path):
    taken = {"taken_at": "2024-05-01T12:00:00"}
    own = {
        "a/1.CR3": taken | {"format": "CR3"},
        "a/1.jpg": taken,
        "a/2.jpg": {"tagged": True, "own_keywords": ["Tom"]},
        "b/3.jpg": {"tagged": True, "own_keywords": ["Tom"]},
    }
    library = make_library(tmp_path, own, own=own).run()
    whole = (library.results / "summary.md").read_text()
    assert "- Photos: 4 in 2 folders\n- Quarantined: 0\n- Tagged already, left alone: 2\n" in whole
    assert "- Described with another file of the same picture: 1\n" in whole
    assert "### [a]" in whole
    assert "### [b]" not in whole  # nothing was looked at there
    assert "| Tom | 2 |" in whole
    page = (library.results / "folders/a/summary.md").read_text()
    assert page.count("1.jpg: ") == 1  # among the highlights
    assert "1.CR3: " not in page
    page = (library.results / "folders/b/summary.md").read_text()
    assert "- Tagged already, left alone: 1\n" in page
    assert "Medoid" not in page
    assert not (library.results / "folders/b/medoid.jpg").exists()
