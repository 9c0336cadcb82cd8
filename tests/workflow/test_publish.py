"""Publishing as a part of the whole: what an apply makes stale, and what a person's edit does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from phototagger import xmp
from workflow.library import Library, make_library

FILES = tuple[dict[str, bytes], ...]


@pytest.fixture
def album(tmp_path: Path, wiring: dict[str, str]) -> Library:
    """A finished run over 8 photos in two shards, one photo with keywords inside."""
    photos = make_library(tmp_path / "photos", 8, per_folder=4)
    embed(photos / "shoot 00/IMG_0001.jpg", "-XMP-dc:Subject=inside", "-IPTC:Keywords=inside")
    settings = wiring | {"PHOTO_TAGGER__PLAN__SHARD_SIZE": "4"}
    library = Library(tmp_path / "work", photos, settings)
    library.snakemake()
    return library


def embed(path: Path, *assignments: str) -> None:
    command = ["exiftool", "-q", "-m", "-overwrite_original", *assignments, str(path)]
    subprocess.run(command, check=True)


def tagger(library: Library, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "phototagger.cli", *arguments]
    command += ["--workdir", str(library.work)]
    result = subprocess.run(command, env=library.environment(), capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def beside(library: Library) -> dict[str, bytes]:
    return {
        str(path.relative_to(library.photos)): path.read_bytes()
        for path in sorted(library.photos.rglob("*"))
        if path.is_file()
    }


def record(library: Library, name: str) -> dict:
    lines = (library.results / "records.jsonl").read_text("utf-8").splitlines()
    return next(r for r in map(json.loads, lines) if r["rel_path"].endswith(name))


def test_an_apply_makes_nothing_stale_and_a_persons_edit_one_shard(album):
    before = beside(album)
    told = tagger(album, "diff")
    assert "IMG_0001.jpg" in told and beside(album) == before
    tagger(album, "apply", status=2)  # nobody there to ask
    assert beside(album) == before

    tagger(album, "apply", "--yes")
    published = beside(album)
    assert len(published) == 16 and before.items() <= published.items()
    own = xmp.parse(published["shoot 00/IMG_0001.jpg.xmp"])
    assert own.theirs["XMP-digiKam:TagsList"] == ["inside"]
    assert album.nothing_to_be_done()

    embed(album.photos / "shoot 01/IMG_0005.jpg.xmp", "-XMP-dc:Subject+=by hand")
    album.clear_counts()
    album.snakemake()
    assert (album.computed("thumbs"), album.computed("embed")) == (0, 0)
    assert len(album.jobs("thumbs")) == 1
    assert record(album, "IMG_0005.jpg")["own"]["keywords"] == ["by hand"]
    tagger(album, "apply", "--yes")
    merged = xmp.parse((album.photos / "shoot 01/IMG_0005.jpg.xmp").read_bytes())
    assert all("by hand" in merged.theirs[tag] for tag in list(xmp.KEYWORD_LISTS)[:3])
    assert album.nothing_to_be_done()

    told = tagger(album, "undo", "--yes")
    told = tagger(album, "undo", "--yes", status=1)
    assert "IMG_0005" in told  # edited since: refused
    left = beside(album)
    assert left.keys() - before.keys() == {"shoot 01/IMG_0005.jpg.xmp"}
    assert before.items() <= left.items()


def test_tagged_photos_cost_nothing_and_are_accounted_for(album):
    tagger(album, "apply", "--yes")
    published = beside(album)
    album.settings["PHOTO_TAGGER__TAGGED__FIELDS"] = "[keywords]"
    album.clear_counts()
    album.snakemake()
    assert album.computed("embed") == 0
    ledger = json.loads((album.results / "check.json").read_text())
    assert ledger["stages"]["embed"] == {"in": 8, "done": 7, "skipped": 1, "quarantined": 0}
    left_alone = record(album, "IMG_0001.jpg")
    assert left_alone["tagged"] and not left_alone["labels"]
    tagger(album, "apply", "--yes")
    assert beside(album) == published  # nothing is withdrawn from a photo that is left alone

    album.settings["PHOTO_TAGGER__TAGGED__BY"] = "[photo-tagger]"
    album.snakemake()
    ledger = json.loads((album.results / "check.json").read_text())
    assert ledger["stages"]["embed"]["skipped"] == 8
    tagger(album, "apply", "--yes")
    assert beside(album) == published


def test_what_was_embedded_is_not_made_again(album, tmp_path):
    before = beside(album)
    album.settings["PHOTO_TAGGER__METADATA__MODE"] = "embed"
    tagger(album, "apply", "--yes", status=2)  # a folder for copies has to be named
    assert beside(album) == before
    tagger(album, "apply", "--yes", "--backup", str(tmp_path / "backup"))
    assert beside(album).keys() == before.keys() and beside(album) != before
    album.clear_counts()
    album.snakemake()
    assert album.computed("embed") == 0
    assert record(album, "IMG_0001.jpg")["own"]["keywords"] == ["inside"]
    assert record(album, "IMG_0002.jpg")["own"]["keywords"] == []
    again = tagger(album, "apply", "--yes", "--backup", str(tmp_path / "backup"))
    assert "none; 8 unchanged" in again
    tagger(album, "undo", "--yes")
    assert beside(album) == before
