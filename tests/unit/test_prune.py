import os

import pytest

from phototagger.errors import UserError
from phototagger.manifest import Proposed, read_manifest, sidecar_path, write_manifest
from phototagger.names import encode
from phototagger.prune import prune, prune_sidecars


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sidecars"
    for name in ["a.jpg.xmp", "trip/b.jpg.xmp", "trip/new\nline.jpg.xmp", "old/deep/c.jpg.xmp"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / os.fsdecode(b"bad\xff.jpg.xmp")).write_text("x")
    return folder


def manifest(tmp_path, name, *photos):
    path = tmp_path / f"{name}.tsv"
    write_manifest(path, [row(encode(photo)) for photo in photos])
    return path


def row(rel_path, sidecar="0" * 64):
    return Proposed(rel_path, "f" * 64, rel_path, sidecar)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def test_manifest_round_trip(tmp_path):
    odd = encode("tab\tand\nline/\udcff.jpg")
    path = tmp_path / "m.tsv"
    rows = [row(odd), Proposed("a.jpg", "e" * 64, "a.cr3", "2" * 64), row("nothing.jpg", None)]
    rows.append(Proposed("odd.jpg", "e" * 64, "odd.jpg", None, failed=True))
    write_manifest(path, rows)
    assert read_manifest(path) == rows
    assert sidecar_path(tmp_path, odd).name == "\udcff.jpg.xmp"


@pytest.mark.parametrize("content", ["", "rel_path\tsha256\n", "cut", None, b"\xff"])
def test_what_is_no_manifest_is_named(tmp_path, content):
    path = tmp_path / "m.tsv"
    write_manifest(path, [row("a.jpg")])
    whole = path.read_bytes()
    content = whole[:-3] if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"m\.tsv: not a manifest .*; delete it and run again"):
        read_manifest(path)


def test_removes_what_no_manifest_lists(folder, tmp_path):
    manifests = [
        manifest(tmp_path, "1", "a.jpg", "trip/new\nline.jpg"),
        manifest(tmp_path, "2", os.fsdecode(b"bad\xff.jpg")),
    ]
    assert prune_sidecars(folder, manifests) == 2
    assert files(folder) == {"a.jpg.xmp", "trip/new\nline.jpg.xmp", "bad\udcff.jpg.xmp"}
    assert not (folder / "old").exists()
    assert prune_sidecars(folder, iter(manifests)) == 0
    withdrawn = tmp_path / "3.tsv"
    write_manifest(withdrawn, [row("a.jpg", None)])
    assert prune_sidecars(folder, [withdrawn]) == 3  # nothing is proposed for it any more


def test_leaves_other_files_and_links(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.jpg.xmp").write_text("x")
    (folder / "link").symlink_to(elsewhere)
    (folder / "link.jpg.xmp").symlink_to(elsewhere / "precious.jpg.xmp")
    (folder / "old/deep/notes.txt").write_text("x")
    assert prune_sidecars(folder, []) == 5
    assert files(folder) == {"link.jpg.xmp", "old/deep/notes.txt"}
    assert (folder / "link").is_symlink()
    assert (elsewhere / "precious.jpg.xmp").exists()


def test_folder_that_is_a_link_is_left_alone(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert prune_sidecars(link, []) == 0
    assert len(files(folder)) == 5


def test_missing_folder(tmp_path):
    assert prune_sidecars(tmp_path / "none", []) == 0


def test_unreadable_manifest_removes_nothing(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        prune_sidecars(folder, [manifest(tmp_path, "1", "a.jpg"), tmp_path / "lost.tsv"])
    assert len(files(folder)) == 5


@pytest.mark.parametrize("made", [True, False])
def test_without_sidecars_only_the_outdated_ones_go(made, tmp_path):
    """Records made anew leave behind sidecars that may no longer say what the records say."""
    shards = ["000000000a", "000000000b"]
    for name, age in zip(shards, (1, -1), strict=True):
        records = tmp_path / f"records/{name}.jsonl"
        sidecar = sidecar_path(tmp_path / "sidecars", f"{name}.jpg")
        listed = tmp_path / f"sidecars-manifest/{name}.tsv"
        for path in (records, sidecar, listed):
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        write_manifest(listed, [row(f"{name}.jpg")])
        os.utime(records, (1000, 1000))
        os.utime(listed, (1000 + age, 1000 + age))
    prune(shards, results=tmp_path, sidecars=made)
    kept = shards if made else shards[:1]
    assert files(tmp_path / "sidecars") == {f"{name}.jpg.xmp" for name in kept}
    assert files(tmp_path / "sidecars-manifest") == {f"{name}.tsv" for name in kept}
