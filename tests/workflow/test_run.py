"""A run from nothing to finished, again, elsewhere, and with rubbish among the photos."""

import csv
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from odd_photos import make_odd_photos

from phototagger import names
from workflow.library import Library, make_library

TOPK = "PHOTO_TAGGER__SCORE__TOPK"


def test_dry_run_then_run_then_nothing_to_be_done(library):
    dry = library.snakemake("--dry-run")
    assert "thumbs" in dry.stdout + dry.stderr
    assert not (library.results / "records.jsonl").exists()
    library.snakemake()
    records = [json.loads(line) for line in (library.results / "records.jsonl").open()]
    assert len(records) == 100
    assert [r["rel_path"] for r in records] == sorted(r["rel_path"] for r in records)
    assert len(list((library.results / "sidecars").rglob("*.xmp"))) == sum(
        bool(r["keywords"]) for r in records
    )
    frozen = (library.results / "audit/config.json").read_bytes()
    other = Library(library.work, library.photos, library.settings | {TOPK: "2"})
    assert "score" in other.snakemake("--dry-run").stdout
    assert (library.results / "audit/config.json").read_bytes() == frozen  # it made the results
    started = time.monotonic()
    assert library.nothing_to_be_done()
    assert time.monotonic() - started < 15


def test_two_work_directories_agree_to_the_byte(library, tmp_path):
    library.snakemake()
    twin = Library(tmp_path / "elsewhere/twin", library.photos, library.settings)
    twin.snakemake()
    assert twin.promised() == library.promised()
    assert len(library.promised()) > 100


def test_the_order_of_jobs_and_the_number_of_cores_change_nothing(library, tmp_path):
    library.snakemake()
    twin = Library(tmp_path / "twin", library.photos, library.settings)
    twin.snakemake("--cores", "1")
    assert twin.promised() == library.promised()


def test_snakemakes_own_report_builds(library, tmp_path):
    library.snakemake()
    library.snakemake("--report", str(tmp_path / "report.zip"))
    assert (tmp_path / "report.zip").stat().st_size > 10_000


def test_a_sidecar_can_be_switched_off(library):
    library.settings["PHOTO_TAGGER__METADATA__ENABLED"] = "false"
    library.snakemake()
    assert not (library.results / "sidecars").exists()
    assert json.loads((library.results / "check.json").read_text())["ok"]


def fingerprint(folder: Path) -> dict[bytes, tuple]:
    found = {}
    for top, _, files in os.walk(os.fsencode(folder)):
        for name in files:
            path = os.path.join(top, name)
            if os.path.isfile(path):
                info = os.stat(path)
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
                found[path] = (content, info.st_mtime_ns, info.st_mode)
    return found


def test_bad_and_odd_photos_end_as_records_or_named_problems(tmp_path, wiring):
    photos = tmp_path / "photos"
    expected = make_odd_photos(photos)
    make_library(photos / "good", 5)
    before = fingerprint(photos)
    library = Library(tmp_path / "work", photos, wiring)
    library.snakemake()
    assert fingerprint(photos) == before
    records = {json.loads(line)["rel_path"] for line in (library.results / "records.jsonl").open()}
    with (library.results / "problems.csv").open(newline="") as file:
        problems = {row["rel_path"]: row for row in csv.DictReader(file)}
    planned = {
        line.split("\t")[0]
        for path in (library.results / "plan/shards").iterdir()
        for line in path.read_text().splitlines()[1:]
    }
    assert records | problems.keys() == planned
    assert not records & problems.keys()
    assert all(row["kind"] and row["message"] and row["what_to_do"] for row in problems.values())
    assert len(planned) >= 40
    assert len(expected) >= 40
    for rel_path in records:
        assert (photos / names.decode(rel_path)).exists()
    assert json.loads((library.results / "check.json").read_text())["ok"]
    assert library.nothing_to_be_done()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("PHOTO_TAGGER__SCORE__TRESHOLD", "1", "unknown 'treshold'; valid are: measure"),
        ("PHOTO_TAGGER__CLIP__MODEL", "ViT-Z", "unknown 'ViT-Z'; valid are: "),
        ("PHOTO_TAGGER__LABELS__PATH", "none.txt", "unknown 'none.txt'; valid are: "),
        ("PHOTO_TAGGER__PHOTOS__ROOTS", "[/nowhere]", "/nowhere: no such folder"),
    ],
)
def test_a_wrong_setting_stops_before_anything_is_done(library, setting, value, message):
    library.settings[setting] = value
    result = library.snakemake(check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (library.results / "thumbs").exists()
