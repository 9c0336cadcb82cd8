import csv
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import report as rule
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phototagger import names, plan
from phototagger.machine import Machine
from phototagger.thumbnails import ThumbCache, make_thumb

NASTY = (
    '"><script>alert(1)<img src=x onerror=alert(1)>.jpg',
    "a & b 'quoted' \U0001f6a3.jpg",
    "line\nbreak.jpg",
    "bytes\udcff.jpg",
    "{{ 7 * 7 }}.jpg",
)


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text outside of scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.hidden, self.stack = [], "", False, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.text += data

    def all(self, tag, **attrs):
        return [a for t, a in self.elements if t == tag and attrs.items() <= a.items()]

    @property
    def pictures(self):
        found = [a.get("src") or a.get("href") for t, a in self.elements if t in ("img", "image")]
        assert all(uri.startswith("data:image/jpeg;base64,") for uri in found)
        return found

    @property
    def tiles(self):
        return [a for a in self.all("li") if a.get("class") == "tile"]


def label(name, cosine):
    return {"label": name, "cosine": cosine, "probability": cosine / 2}


def record(fields, rel_path, thumb, labels, over=1):
    return {
        "rel_path": rel_path,
        **fields,
        "thumb": thumb,
        "labels": labels,
        "over_threshold": labels[:over],
        "keywords": [],
        "models": {"clip": "demo-clip"},
        "inherited_from": None,
        "tagged": False,
        "notes": [],
        "schema_version": "1.2",
    }


def edit_records(work, edit):
    """Change every record by `edit`, which gets its number."""
    path = work / "results/records.jsonl"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines = [json.dumps(r | edit(n), ensure_ascii=False) + "\n" for n, r in enumerate(records)]
    path.write_text("".join(lines), "utf-8")


def keyword(word, source, score=None):
    place = {"path": [word], "synonyms": [], "rank": 1}
    return {"keyword": word, **place, "score": score, "source": source}


def asked(status="done", **values):
    return {"status": status, "setup": "tiny_llama.cpp", "model": "tiny-vlm", **values}


def described(number, words="a cat on a sofa"):
    """What a record of a described photo has more; every third one has its own caption."""
    own = number % 3 == 0
    return {
        "caption": None if own else f"{words} {number}",
        "description": f"Long: {words}",
        "own": {"caption": f"mine {number}" if own else None, "description": None, "keywords": []},
        "keywords": [
            keyword("Alice", "person"),
            keyword("Cats", "vlm", 0.6),
            keyword("mood", "vlm"),
            keyword("other", "clip", 0.3),
        ],
        "describe": {
            "caption": asked("skipped", model=None) if own else asked(),
            "keywords": asked(),
            "description": asked(),
        },
    }


def make_library(work, photos):
    """Photos {rel_path: keyword} with records, thumbnails and each folder's last as its medoid."""
    machine = Machine(
        plan.Roots([plan.Root("photos", str(work / "photos"))]),
        work / "cache",
        work / "models",
        work / "labels",
        "cpu",
        8,
    )
    kept = ThumbCache(machine.cache, 512, 85)
    (work / "results").mkdir(parents=True)
    lines, medoids = [], {}
    for number, (rel_path, name) in enumerate(photos.items()):
        path = machine.roots.locate(rel_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (6, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 60)).save(path, "JPEG")
        thumb = make_thumb(path.read_bytes(), size=512, quality=85, max_pixels=10**6)
        kept.put(thumb)
        labels = [label(name, 0.6 + number / 1000), label("other", 0.3)]
        lines.append(record(thumb.fields, rel_path, kept.name(thumb.fields["sha256"]), labels))
        medoids[names.folder_of(rel_path)] = rel_path
    (work / "results/records.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8"
    )
    write_csv(
        work / "results/folder_medoids.csv",
        ["folder", "medoid_rel_path", "cosine_to_centroid"],
        [[folder, rel_path, "0.9"] for folder, rel_path in medoids.items()],
    )
    write_problems(work, [])
    return machine


def write_csv(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_problems(work, rows):
    header = ["rel_path", "stage", "kind", "message", "what_to_do"]
    write_csv(work / "results/problems.csv", header, rows)


def make_page(work, machine, max_photos=400, per_folder=24):
    results = work / "results"
    rule.report(
        results / "records.jsonl",
        results / "problems.csv",
        results / "folder_medoids.csv",
        results / "report.html",
        machine=machine,
        model="demo-clip",
        run_id="0123456789ab",
        size=512,
        quality=85,
        max_photos=max_photos,
        per_folder=per_folder,
    )
    return (results / "report.html").read_text("utf-8")


@pytest.fixture
def library(tmp_path):
    photos = {f"{folder}/{n:02}.jpg": folder for folder in ("cats", "dogs") for n in range(9)}
    return make_library(tmp_path, {"top.jpg": "tree"} | photos)


def test_shows_every_photo_with_its_labels_and_numbers(tmp_path, library):
    page = Page(make_page(tmp_path, library))
    assert len(page.tiles) == len(page.pictures) == 19
    assert "19 photos in 3 folders" in page.text
    assert "not CLIP" in page.text  # what the demo model is
    assert page.tiles[0]["data-labels"] == "|tree|other|"
    alts = [a["alt"] for a in page.all("img")] + [a["aria-label"] for a in page.all("svg")]
    assert alts.count("Photo of cats") == 10  # nine tiles, of which one is also the cover
    assert all(alts)


def test_bytes_are_the_same_again_also_without_cache_and_elsewhere(tmp_path, library):
    first = make_page(tmp_path, library)
    shutil.rmtree(library.cache)
    assert make_page(tmp_path, library) == first
    assert str(tmp_path) not in first
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "results", moved / "results")
    shutil.move(tmp_path / "photos", moved / "photos")
    machine = dataclasses.replace(
        library,
        roots=plan.Roots([plan.Root("p", str(moved / "photos"))]),
        cache=moved / "cache",
    )
    assert make_page(moved, machine) == first


def test_a_photo_that_is_gone_with_its_thumbnail_keeps_its_place(tmp_path, library):
    shutil.rmtree(library.cache)
    library.roots.locate("cats/08.jpg").unlink()  # the medoid
    library.roots.locate("dogs/00.jpg").unlink()
    page = Page(make_page(tmp_path, library))
    assert len(page.tiles) == 19
    assert len(page.pictures) == 17
    assert page.text.count("the photo are gone") == 2


def test_nothing_outside_is_referred_to(tmp_path, library):
    html = make_page(tmp_path, library)
    assert not re.search(r"https?://|url\(|@import|//[a-z]+\.", html)
    for tag, attrs in Page(html).elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/jpeg")), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]


@pytest.mark.parametrize(
    ("max_photos", "per_folder", "pictures"),
    [(400, 24, 19), (400, 4, 9), (7, 24, 7), (2, 24, 2), (0, 24, 0), (400, 0, 0)],
)
def test_bounds(tmp_path, library, max_photos, per_folder, pictures):
    page = Page(make_page(tmp_path, library, max_photos, per_folder))
    assert len(page.pictures) == pictures
    shown = dict.fromkeys(("cats", "dogs", "."), 0)
    for tile in page.tiles:
        shown[names.folder_of(tile["data-name"])] += 1
    assert max(shown.values()) <= per_folder
    for name in ("cats", "dogs", "(top folder)"):  # listed with or without pictures
        assert name in page.text


def test_medoid_comes_first_then_a_spread():
    assert rule.positions(10, 1, 7) == {7}
    assert rule.positions(100, 5, None) == {10, 30, 50, 70, 90}
    assert rule.positions(9, 9, 3) == set(range(9))


@given(st.data())
def test_positions_are_as_many_as_asked(data):
    photos = data.draw(st.integers(1, 500))
    share = data.draw(st.integers(0, photos))
    medoid = data.draw(st.none() | st.integers(0, photos - 1))
    found = rule.positions(photos, share, medoid)
    assert len(found) == share
    assert found <= set(range(photos))
    assert not share or medoid is None or medoid in found


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(0, 100), st.integers(0, 30))
def test_shares_use_the_budget_and_are_fair(sizes, max_photos, per_folder):
    folders = [rule.Folder(str(n), photos=size) for n, size in enumerate(sizes)]
    shares = rule.allot(folders, max_photos, per_folder)
    most = [min(size, per_folder) for size in sizes]
    assert sum(shares.values()) == min(max_photos, sum(most))
    assert all(shares[f.name] <= limit for f, limit in zip(folders, most, strict=True))
    unfilled = [shares[f.name] for f, m in zip(folders, most, strict=True) if shares[f.name] < m]
    assert not unfilled or max(shares.values()) - min(unfilled) <= 1


def test_names_are_text_never_markup(tmp_path):
    files = [names.encode(name) for name in NASTY]
    photos = {f"folder {folder}/{file}": "cat" for folder in files for file in files}
    photos |= dict.fromkeys(files, "<i>'cat' & \"dog\"</i>")
    machine = make_library(tmp_path, photos)
    write_problems(tmp_path, [["<i>.jpg", "thumbs", "corrupt", "<u>bad</u>", "<s>mend</s>"]])
    page = Page(make_page(tmp_path, machine))
    assert not [tag for tag, _ in page.elements if tag in ("i", "u", "s")]
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    assert len(page.all("script")) == 1
    assert {t["data-name"] for t in page.tiles} == {path.lower() for path in photos}
    for text in (*files, "line\\nbreak", "bytes\\xff", "{{ 7 * 7 }}", "<u>bad</u>"):
        assert text in page.text
    assert "|<i>'cat' & \"dog\"</i>|other|" in {t["data-labels"] for t in page.tiles}


def test_a_described_photo_shows_caption_description_and_sources(tmp_path, library):
    edit_records(tmp_path, described)
    page = Page(make_page(tmp_path, library))
    captions = [a for a in page.all("p") if a.get("class") == "caption"]
    assert len(captions) == 19
    assert {a["title"] for a in captions} == {"Long: a cat on a sofa"}
    mats = [a for a in page.all("div") if a.get("class") == "mat"]
    assert {a["title"] for a in mats} == {"Long: a cat on a sofa"}
    for text in ("a cat on a sofa 1", "mine 3", "tiny-vlm was asked for caption, keywords, descr"):
        assert text in page.text
    assert "a cat on a sofa 1" in {a.get("alt") for a in page.all("img")}
    chips = [a for a in page.all("li") if (a.get("class") or "").startswith("chip ")]
    person = [a for a in chips if a["class"] == "chip person"]
    vlm = [a["data-label"] for a in chips if a["class"] == "chip vlm"]
    clip = [a["data-label"] for a in chips if a["class"] == "chip key"]
    assert len(person) == 19
    assert person[0]["title"] == "Keyword from: Person"
    assert set(vlm) == {"Cats", "mood"}
    assert set(clip) == {"tree", "dogs"}  # Cats has CLIP's cats already, "other" is no keyword
    assert "CLIP's cosine 0.600" in next(a["title"] for a in chips if a["data-label"] == "Cats")
    assert page.tiles[1]["data-labels"] == "|Alice|Cats|mood|other|"
    numbers = re.findall(r"<dt>(captions|descriptions)</dt><dd>(\d+)", make_page(tmp_path, library))
    assert numbers == [("captions", "19"), ("descriptions", "19")]


def test_a_page_without_descriptions_has_nothing_of_them(tmp_path, library):
    before = make_page(tmp_path, library)
    nothing = {"caption": None, "description": None, "describe": {}}
    own = {"caption": "mine", "description": "mine", "keywords": []}
    edit_records(tmp_path, lambda _: nothing | {"own": own})
    assert make_page(tmp_path, library) == before
    page = Page(before)
    assert "mine" not in page.text
    assert not [a for a in page.all("p") if a.get("class") in ("caption", "legend soft small")]
    assert not re.search("vlm|setup|Top keywords", page.text, re.IGNORECASE)


def test_what_models_say_is_text_never_markup(tmp_path, library):
    nasty = "</p></title><script>alert(1)</script><img src=x onerror=alert(1)>\" ' {{ 7*7 }}\x1b[2J"
    edit_records(tmp_path, lambda n: described(n, nasty) | {"keywords": [keyword(nasty, "vlm")]})
    html = make_page(tmp_path, library)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert nasty.partition("\x1b")[0] in page.text
    assert "49" not in page.text.replace("7*7", "")
    captions = [a["title"] for a in page.all("p") if a.get("class") == "caption"]
    assert captions[0] == f"Long: {nasty}".replace("\x1b", " ")
    assert make_page(tmp_path, library) == html


def test_fields_that_failed_are_not_counted_as_quarantined(tmp_path, library):
    bad = ["bad.jpg", "thumbs", "empty", "the file is empty", "restore it"]
    rows = [["cats/00.jpg", "describe", "answer_loop", f"{f}: loop", "x"] for f in ("a", "b")]
    write_problems(tmp_path, [bad, *rows])
    page = Page(make_page(tmp_path, library))
    assert "1 photo was quarantined" in page.text
    assert "2 fields of photos got no good answer" in page.text
    assert re.search(r"quarantined\s*1\b", page.text)
    write_problems(tmp_path, rows[:1])
    page = Page(make_page(tmp_path, library))
    assert "were quarantined" not in page.text
    assert "1 field of photos" in page.text


def test_problems_say_what_to_do_and_are_bounded(tmp_path, library, monkeypatch):
    monkeypatch.setattr(rule, "MAX_PROBLEMS", 3)
    rows = [[f"bad{n}.jpg", "thumbs", "empty", "the file is empty", "restore it"] for n in range(5)]
    write_problems(tmp_path, rows)
    text = Page(make_page(tmp_path, library)).text
    assert "5 photos were quarantined" in text
    assert "The first 3 are shown" in text
    assert "bad2.jpg" in text
    assert "bad3.jpg" not in text
    assert "restore it" in text


def test_an_empty_library_and_photos_without_labels(tmp_path):
    machine = make_library(tmp_path, {})
    assert "0 photos in 0 folders" in Page(make_page(tmp_path, machine)).text
    machine = make_library(tmp_path / "b", {"a.jpg": "cat"})
    records = tmp_path / "b/results/records.jsonl"
    line = json.loads(records.read_text()) | {"labels": [], "over_threshold": []}
    records.write_text(json.dumps(line) + "\n")
    page = Page(make_page(tmp_path / "b", machine))
    assert "No photo was scored" in page.text
    assert page.all("svg")[-1]["aria-label"] == "Photo a.jpg"


def test_histogram_counts_every_photo():
    cells = rule.Counter({-3: 1, 20: 2, 21: 4, 88: 3})
    bars = rule.histogram(cells)
    assert sum(bar.count for bar in bars) == 10
    assert len(bars) <= rule.MAX_BARS
    assert bars[0].low <= -3 < bars[0].high
    assert bars[-1].low <= 88 < bars[-1].high
    assert rule.median(cells) == 21


def test_photos_that_no_model_was_shown_say_so(tmp_path, library):
    page = Page(make_page(tmp_path, library))
    assert "left alone" not in page.text
    assert "with another file" not in page.text
    own = {"caption": "Our own words", "description": None, "keywords": ["Tom"]}
    nothing = {"labels": [], "over_threshold": [], "keywords": [keyword("Tom", "person")]}
    changes = [{"tagged": True, "own": own} | nothing, {"inherited_from": "cats/01.jpg"}]
    edit_records(tmp_path, lambda number: changes[number] if number < 2 else {})
    page = Page(make_page(tmp_path, library))
    assert len(page.tiles) == 19
    for text in ("tagged already, left alone", "described with another file", "as 01.jpg"):
        assert text in page.text
    assert "Our own words" in page.text


def test_a_library_of_tagged_photos_has_a_page(tmp_path, library):
    own = {"caption": None, "description": None, "keywords": []}
    nothing = {"labels": [], "over_threshold": [], "keywords": [], "tagged": True, "own": own}
    edit_records(tmp_path, lambda _: nothing)
    path = tmp_path / "results/folder_medoids.csv"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    page = Page(make_page(tmp_path, library))
    assert len(page.tiles) == 19
    assert "No photo was scored." in page.text
