import hashlib
import json
import logging
import os
import shutil

import pytest
from sidecars import exiftool_version, sidecars

from phototagger.errors import UserError
from phototagger.job import Stats
from phototagger.machine import Machine
from phototagger.manifest import Proposed, read_manifest
from phototagger.names import encode
from phototagger.plan import Root, Roots
from phototagger.prune import prune_sidecars
from phototagger.xmp import FIELDS, WriteFailure, parse, write_xmp

NAMES = [
    "plain.jpg",
    'trip 2024/it\'s "quoted".jpg',
    "new\nline.jpg",
    os.fsdecode(b"not utf8 \xff.jpg"),
    "-leading.jpg",
    "=x.jpg",
    "100%d %f.jpg",
    "back\\slash.jpg",
    "bar|bar.jpg",
    "emoji 😀/日本.jpg",
    "שלום.jpg",
    "#hash@.jpg",
    "$HOME.jpg",
]


FIELDS_ON = {f.switch: True for f in FIELDS if f.switch} | {"provenance": True}


def record(name, *keywords, **more):
    entries = [
        {"keyword": k, "path": ["thing", k], "synonyms": [], "source": "vlm", "score": None}
        for k in keywords
    ]
    return {
        "rel_path": encode(name),
        "sha256": hashlib.sha256(os.fsencode(name)).hexdigest(),
        "embedded": {},
        "inherited_from": None,
        "tagged": False,
        "keywords": entries,
    } | more


def listed(shard):
    """The photos that have a sidecar, in the manifest's order."""
    return [row.rel_path for row in read_manifest(shard.manifest) if row.sidecar_sha256]


class Shard:
    """A work directory with the records of one shard."""

    def __init__(self, tmp):
        self.records = tmp / "records.jsonl"
        self.manifest = tmp / "manifest" / "s1.tsv"
        self.folder = tmp / "sidecars"
        roots = Roots([Root("photos", "/nowhere")])
        self.machine = Machine(roots, tmp / "cache", tmp, tmp, "cpu", 1)

    def run(self, *records, fields=FIELDS_ON, carry_over=()):
        lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        self.records.write_text("".join(lines), encoding="utf-8")
        self.manifest.unlink(missing_ok=True)  # as Snakemake does before a job
        stats = Stats()
        sidecars(
            self.records,
            self.manifest,
            machine=self.machine,
            fields=fields,
            carry_over=carry_over,
            folder=self.folder,
            stats=stats,
        )
        return stats

    def files(self):
        found = (p for p in self.folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)): p for p in found}

    def snapshot(self):
        return {n: (p.stat().st_mtime_ns, p.read_bytes()) for n, p in self.files().items()}


@pytest.fixture
def shard(tmp_path):
    return Shard(tmp_path)


def test_any_name(shard):
    stats = shard.run(*(record(name, f"k{n}") for n, name in enumerate(NAMES)))
    assert (stats.photos, stats.computed, stats.cached, stats.skipped) == (13, 13, 0, 0)
    files = shard.files()
    assert set(files) == {f"{name}.xmp" for name in NAMES}
    for n, name in enumerate(NAMES):
        content = files[f"{name}.xmp"].read_bytes()
        assert parse(content).values["XMP-dc:Subject"] == ["thing", f"k{n}"]
        row = read_manifest(shard.manifest)[n]
        photo = hashlib.sha256(os.fsencode(name)).hexdigest()
        digest = hashlib.sha256(content).hexdigest()
        assert row == Proposed(encode(name), photo, encode(name), digest)


def test_second_run_touches_nothing(shard):
    records = [record(name, "cat", encode(name)) for name in NAMES]
    shard.run(*records)
    before = shard.snapshot()
    manifest = shard.manifest.read_bytes()
    stats = shard.run(*records)
    assert (stats.computed, stats.cached) == (0, 13)
    assert shard.snapshot() == before
    assert shard.manifest.read_bytes() == manifest


def test_only_the_changed_photo_is_written(shard):
    shard.run(record("a.jpg", "cat"), record("b.jpg", "dog"), record("c.jpg", "cow"))
    before = shard.snapshot()
    stats = shard.run(record("a.jpg", "cat"), record("b.jpg", "fox"), record("c.jpg", "cow"))
    after = shard.snapshot()
    assert (stats.computed, stats.cached) == (1, 2)
    assert [name for name in after if after[name] != before[name]] == ["b.jpg.xmp"]


def test_known_values_start_no_exiftool(shard, tmp_path, monkeypatch):
    shard.run(record("a.jpg", "cat"), record("b.jpg", "dog"))
    (shard.folder / "a.jpg.xmp").unlink()
    # the same executable may be found, but running it would fail in a folder that is not there
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    stats = shard.run(record("a.jpg", "cat"), record("moved.jpg", "dog"))
    assert (stats.computed, stats.cached) == (0, 2)
    assert {"a.jpg.xmp", "moved.jpg.xmp"} <= set(shard.files())
    with pytest.raises(UserError, match="temporary"):
        shard.run(record("a.jpg", "new"))


def test_same_bytes_in_another_work_directory(tmp_path):
    contents = []
    for folder in ("one", "other place 😀"):
        (tmp_path / folder).mkdir()
        shard = Shard(tmp_path / folder)
        names = NAMES if folder == "one" else NAMES[::-1]
        shard.run(*(record(name, "cat", encode(name)) for name in names))
        contents.append({name: path.read_bytes() for name, path in shard.files().items()})
    assert contents[0] == contents[1]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_photos_without_keywords_have_no_sidecar(shard):
    stats = shard.run(record("a.jpg", "cat"), record("b.jpg"))
    assert (stats.photos, stats.computed, stats.skipped) == (2, 1, 1)
    assert set(shard.files()) == {"a.jpg.xmp"}
    assert listed(shard) == ["a.jpg"]


def test_empty_shard(shard):
    shard.run()
    assert read_manifest(shard.manifest) == []


def test_every_record_is_listed_but_for_tagged_ones(shard):
    stats = shard.run(
        record("a.jpg", "cat"),
        record("a.cr3", "cat", inherited_from="a.jpg"),
        record("nothing.jpg"),
        record("tagged.jpg", "cat", tagged=True),
    )
    assert (stats.photos, stats.computed, stats.skipped) == (4, 2, 2)
    assert set(shard.files()) == {"a.jpg.xmp", "a.cr3.xmp"}
    rows = read_manifest(shard.manifest)
    assert [(row.rel_path, row.leader, row.sidecar_sha256 is None) for row in rows] == [
        ("a.jpg", "a.jpg", False),
        ("a.cr3", "a.jpg", False),
        ("nothing.jpg", "nothing.jpg", True),
    ]
    inherited = parse(shard.files()["a.cr3.xmp"].read_bytes())
    assert inherited.marks.inherited_from == "a.jpg"


def test_settings_and_embedded_values_shape_the_sidecar(shard):
    inside = {"XMP-dc:Subject": ["Tom"], "XMP-dc:Title": ["Mine"]}
    photo = record("a.jpg", "cat", embedded=inside)
    shard.run(photo)
    values = parse(shard.files()["a.jpg.xmp"].read_bytes()).values
    assert values["XMP-mediapro:CatalogSets"] == ["Tom", "thing|cat"]
    assert "XMP-dc:Title" not in values
    stats = shard.run(photo, fields=FIELDS_ON | {"catalog_sets": False}, carry_over=["title"])
    assert stats.computed == 1
    values = parse(shard.files()["a.jpg.xmp"].read_bytes()).values
    assert "XMP-mediapro:CatalogSets" not in values
    assert values["XMP-dc:Title"] == ["Mine"]


def test_one_that_cannot_be_written_is_a_warning(shard, monkeypatch, caplog):
    def write(items):
        return [
            WriteFailure(f"{item.name}: odd") if item.name == "b.jpg" else content
            for item, content in zip(items, write_xmp(items), strict=True)
        ]

    monkeypatch.setattr("phototagger.xmp.write_xmp", write)
    with caplog.at_level(logging.WARNING):
        stats = shard.run(record("a.jpg", "cat"), record("b.jpg", "dog"))
    assert (stats.computed, stats.skipped) == (1, 1)
    assert listed(shard) == ["a.jpg"]
    assert [row.failed for row in read_manifest(shard.manifest)] == [False, True]
    assert "b.jpg: odd" in caplog.text


def test_vanished_photos_and_keywords_go_through_prune(shard):
    shard.run(record("a.jpg", "cat"), record("gone/b.jpg", "dog"), record("c.jpg", "cow"))
    shard.run(record("a.jpg", "cat"), record("c.jpg"))
    assert prune_sidecars(shard.folder, [shard.manifest]) == 2
    assert set(shard.files()) == {"a.jpg.xmp"}
    assert not (shard.folder / "gone").exists()


def test_damaged_kept_value_is_made_again(shard):
    shard.run(record("a.jpg", "cat"))
    (kept,) = (shard.machine.cache / "sidecars").glob("*/*")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:200])
    stats = shard.run(record("a.jpg", "cat"))
    assert stats.computed == 1
    assert kept.read_bytes() == whole
    assert whole.endswith(b"\n" + (shard.folder / "a.jpg.xmp").read_bytes())


def test_name_too_long_is_a_warning(shard, caplog):
    long = "x" * 248 + ".jpg"
    with caplog.at_level(logging.WARNING):
        stats = shard.run(record(long, "cat"), record("a.jpg", "cat"))
    assert (stats.computed, stats.skipped) == (1, 1)
    assert set(shard.files()) == {"a.jpg.xmp"}
    assert listed(shard) == ["a.jpg"]
    assert [row.rel_path for row in read_manifest(shard.manifest) if row.failed] == [long]
    assert f"{long}: no sidecar" in caplog.text


def test_folder_in_the_sidecars_place_is_a_warning(shard, caplog):
    stats = shard.run(record("a.jpg.xmp/b.jpg", "cat"), record("a.jpg", "cat"))
    assert (stats.computed, stats.skipped) == (1, 1)
    assert set(shard.files()) == {"a.jpg.xmp/b.jpg.xmp"}
    assert "a.jpg: no sidecar" in caplog.text


def test_exiftool_missing(shard, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="exiftool: not found on the PATH; install it"):
        shard.run(record("a.jpg", "cat"))


def test_broken_exiftool(shard, tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "exiftool"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no perl here >&2\nexit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(UserError, match=r"exiftool: does not run \(no perl here\)"):
        shard.run(record("a.jpg", "cat"))


def test_version_is_asked_once_per_executable(shard, tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "exiftool"
    fake.parent.mkdir()
    calls = tmp_path / "calls"
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    for version in ("12.1", "13.55"):
        fake.write_text(f"#!/bin/sh\necho x >> {calls}\necho {version}\n")
        fake.chmod(0o755)
        assert exiftool_version(tmp_path / "cache") == version
        assert exiftool_version(tmp_path / "cache") == version
    assert calls.read_text() == "x\nx\n"


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """Put an ExifTool first on the PATH that is killed in the calls whose numbers are in a file."""
    fake = tmp_path / "bin" / "exiftool"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-ver*) ;; *) echo x >> {tmp_path}/calls\n'
        f"  grep -qx $(wc -l < {tmp_path}/calls) {tmp_path}/deadly && kill -9 $$ ;; esac\n"
        f'exec {shutil.which("exiftool")} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    return tmp_path / "deadly"


def test_exiftool_killed_again_and_again(shard, tmp_path, dying):
    dying.write_text("".join(f"{n}\n" for n in range(2, 100)))
    records = [record(f"{n}.jpg", f"k{n}") for n in range(300)]
    with pytest.raises(UserError, match=r"exiftool: ended abnormally \(signal 9; .*\); run the"):
        shard.run(*records)
    assert shard.files() == {}
    assert not shard.manifest.exists()
    assert list((tmp_path / "temporary").iterdir()) == []

    dying.write_text("")
    stats = shard.run(*records)  # what the first process made was kept
    assert (stats.computed, stats.cached) == (300 - 256, 256)
    assert len(shard.files()) == 300


def test_exiftool_killed_once(shard, dying):
    dying.write_text("1\n")
    records = [record(f"{n}.jpg", f"k{n}") for n in range(20)]
    assert shard.run(*records).computed == 20
    assert len(shard.files()) == 20
