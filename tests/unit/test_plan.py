"""Scanning and sharding: what is a photo, and which photos are a job."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_beside import bag, sidecar

from phototagger import names
from phototagger.beside import read_packet
from phototagger.errors import UserError
from phototagger.plan import (
    MAX_SHARDS,
    Photo,
    Roots,
    ScanOptions,
    effective_shard_size,
    format_listing,
    partition,
    read_index,
    read_listing,
    resolve_roots,
    scan,
    sort_key,
    write_index,
    write_shards,
)
from phototagger.tokencache import TokenCache

OPTIONS = ScanOptions((".jpg", ".png"))

# Paths as they are in life: few folders, numbered names; and nasty ones.
_folder = st.sampled_from(["2023", "2024", "2024/05", "2024/05/a b", "a", "a-b", "é", "z/y/x"])
_file = st.one_of(
    st.integers(0, 9999).map(lambda n: f"IMG_{n:04d}.jpg"),
    st.text(st.characters(exclude_characters="/\x00"), min_size=1, max_size=6),
)
_paths = st.sets(
    st.tuples(_folder, _file).map(lambda p: names.encode(f"{p[0]}/{p[1]}")), max_size=120
)


def photos_of(paths: set[str]) -> list[Photo]:
    return [Photo(path, 1, 1) for path in sorted(paths, key=sort_key)]


def listings(paths: set[str], size: int) -> dict[str, bytes]:
    return {name: format_listing(rows) for name, rows in partition(photos_of(paths), size)}


def stale(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [name for name, content in after.items() if before.get(name) != content]


@given(_paths, st.integers(1, 20))
def test_shards_hold_every_photo_once_in_path_order_and_within_bounds(paths, size):
    shards = partition(photos_of(paths), size)
    assert [photo for _, rows in shards for photo in rows] == photos_of(paths)
    assert all(1 <= len(rows) <= size for _, rows in shards)
    assert len({name for name, _ in shards}) == len(shards)


@given(_paths, st.integers(1, 20), st.randoms())
def test_shards_depend_on_the_names_only(paths, size, random):
    shuffled = list(paths)
    random.shuffle(shuffled)
    assert listings(paths, size) == listings(set(shuffled), size)


@given(_paths, st.tuples(_folder, _file), st.integers(1, 20))
def test_an_added_photo_makes_at_most_two_shards_stale_and_a_deleted_one_at_most_one(
    paths, new, size
):
    added = names.encode("/".join(new))
    with_it, without = paths | {added}, paths - {added}
    assert len(stale(listings(without, size), listings(with_it, size))) <= 2
    assert len(stale(listings(with_it, size), listings(without, size))) <= 1


@given(_paths.filter(bool), st.integers(1, 20), st.data())
def test_a_changed_photo_makes_one_shard_stale(paths, size, data):
    photos = photos_of(paths)
    changed = data.draw(st.integers(0, len(photos) - 1))
    before = {name: format_listing(rows) for name, rows in partition(photos, size)}
    photos[changed] = Photo(photos[changed].rel_path, 2, 2)
    after = {name: format_listing(rows) for name, rows in partition(photos, size)}
    assert before.keys() == after.keys()
    assert len(stale(before, after)) == 1


@given(_paths.filter(bool), st.tuples(_folder, _file), st.integers(2, 20), st.data())
def test_a_move_makes_two_shards_stale_or_three_where_it_fills_one_up(paths, new, size, data):
    moved = data.draw(st.sampled_from(sorted(paths)))
    after = (paths - {moved}) | {names.encode("/".join(new))}
    old, new_ = listings(paths, size), listings(after, size)
    split = len(new_) > len(listings(paths - {moved}, size))
    assert len(stale(old, new_)) <= (3 if split else 2)


def test_numbered_photos_fill_their_shards():
    shards = partition([Photo(f"2024/IMG_{n:05d}.jpg", 1, 1) for n in range(20_000)], 256)
    sizes = [len(rows) for _, rows in shards]
    assert 128 <= sum(sizes) / len(sizes) <= 256


@pytest.mark.parametrize("photos", [1, 163_840, 163_841, 1_000_000, 10_000_000])
def test_the_shard_size_doubles_with_the_library(photos):
    size = effective_shard_size(photos, 256)
    assert photos <= MAX_SHARDS * size
    assert size == 256 or photos > MAX_SHARDS * size // 2


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=8).map(os.fsdecode), unique=True, max_size=8))
def test_a_listing_is_read_back_as_written(tmp_path_factory, raw):
    photos = [Photo(names.encode(name), n, n * 7, "ab" * (n % 2)) for n, name in enumerate(raw)]
    path = tmp_path_factory.mktemp("listing") / "x.tsv"
    path.write_bytes(format_listing(photos))
    assert read_listing(path) == photos
    assert [names.decode(photo.rel_path) for photo in photos] == raw


def test_only_changed_listings_are_written_and_vanished_ones_go(tmp_path):
    photos = [Photo(f"{n:03d}.jpg", 1, 1) for n in range(100)]
    first = write_shards(tmp_path, partition(photos, 20))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    photos[5] = Photo("005.jpg", 2, 2)
    second = write_shards(tmp_path, partition(photos, 20))
    changed = [a.name for a, b in zip(first, second, strict=True) if a != b]
    touched = [p.stem for p in tmp_path.iterdir() if p.stat().st_mtime_ns != times[p.name]]
    assert touched == changed
    assert len(changed) == 1
    write_shards(tmp_path, partition(photos[:10], 20))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_index_is_read_back(tmp_path):
    shards = write_shards(tmp_path, partition([Photo("a.jpg", 1, 1)], 20))
    write_index(tmp_path / "index.json", shards, "0123")
    assert read_index(tmp_path / "index.json") == (shards, "0123")


# ----------------------------------------------------------------------------------------- scan


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def rel_paths(
    roots: Roots, options: ScanOptions = OPTIONS, avoid: tuple[Path, ...] = ()
) -> list[str]:
    return [photo.rel_path for photo in scan(roots, options, avoid)]


def test_what_is_a_photo(tmp_path):
    for name in (
        "a.jpg",
        "B.JPG",
        "sub/c.Png",
        "sub/deep/d.jpg",
        ".hidden.jpg",
        ".hidden/e.jpg",
        "f.jpg_original",
        "g.jpg_exiftool_tmp",
        "h.jpg.xmp",
        "i.txt",
    ):
        touch(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    roots = resolve_roots([tmp_path], Path.cwd())
    assert rel_paths(roots) == ["B.JPG", "a.jpg", "sub/c.Png", "sub/deep/d.jpg"]
    assert rel_paths(roots, ScanOptions((".jpg",), recursive=False)) == ["B.JPG", "a.jpg"]
    assert rel_paths(roots, ScanOptions((".jpg", ".png"), exclude=("sub/*",))) == ["B.JPG", "a.jpg"]
    assert rel_paths(roots, ScanOptions((".jpg", ".png"), max_images=1)) == ["B.JPG"]


def test_symlinked_folders_are_followed_once_and_loops_end(tmp_path):
    touch(tmp_path / "library/z-real/a.jpg")
    touch(tmp_path / "outside/b.jpg")
    (tmp_path / "library/a-link").symlink_to(tmp_path / "library/z-real")
    (tmp_path / "library/loop").symlink_to(tmp_path / "library")
    (tmp_path / "library/once").symlink_to(tmp_path / "outside")
    (tmp_path / "library/twice").symlink_to(tmp_path / "outside")
    roots = resolve_roots([tmp_path / "library"], Path.cwd())
    assert rel_paths(roots) == ["once/b.jpg", "z-real/a.jpg"]


def test_a_folder_inside_another_root_is_scanned_once(tmp_path):
    touch(tmp_path / "a/sub/x.jpg")
    roots = resolve_roots([tmp_path / "a", tmp_path / "a/sub"], Path.cwd())
    assert rel_paths(roots) == ["a/sub/x.jpg"]


def test_several_roots_are_told_apart_by_name(tmp_path):
    for name in ("one/photos/a.jpg", "two/photos/a.jpg"):
        touch(tmp_path / name)
    roots = resolve_roots(["one/photos", "two/photos"], tmp_path)
    assert rel_paths(roots) == ["photos/a.jpg", "photos-2/a.jpg"]
    assert roots.locate("photos-2/a.jpg") == tmp_path / "two/photos/a.jpg"
    assert roots.rel_path(tmp_path / "two/photos/a.jpg") == "photos-2/a.jpg"


def test_single_photos_are_roots_too(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        touch(tmp_path / name)
    assert rel_paths(resolve_roots(["a.jpg", "c.jpg"], tmp_path)) == ["a.jpg", "c.jpg"]


def test_avoided_folders_are_not_entered(tmp_path):
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "results/b.jpg")
    roots = resolve_roots([tmp_path], Path.cwd())
    assert rel_paths(roots, OPTIONS, (tmp_path / "results",)) == ["a.jpg"]


RAW_NAMES = [
    b"a b.jpg",
    b"q'\"$`.jpg",
    b"new\nline.jpg",
    b"bar|.jpg",
    "🐈.jpg".encode(),
    b"\xff.jpg",
]


def test_any_name_is_found_again(tmp_path):
    for name in RAW_NAMES:
        touch(tmp_path / os.fsdecode(name))
    roots = resolve_roots([tmp_path], Path.cwd())
    found = scan(roots, OPTIONS)
    assert {os.fsencode(roots.locate(p.rel_path).name) for p in found} == set(RAW_NAMES)
    assert all(roots.locate(p.rel_path).exists() for p in found)


# ------------------------------------------------------------------------------------- sidecars


def say(path: Path, *keywords: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sidecar(bag("dc:subject", *keywords)))
    return path


class Library:
    """A folder with photos, scanned with the tokens of its sidecars."""

    def __init__(self, tmp: Path, by: tuple[str, ...] = ("person",)):
        self.photos, self.cache, self.by = tmp / "photos", tmp / "cache", by
        self.photos.mkdir(exist_ok=True)

    def tokens(self) -> TokenCache:
        roots = resolve_roots([self.photos], Path.cwd())
        return TokenCache(self.cache, roots, OPTIONS.extensions, self.by)

    def scan(self, options: ScanOptions = OPTIONS) -> dict[str, str]:
        tokens = self.tokens()
        roots = resolve_roots([self.photos], Path.cwd())
        found = scan(roots, options, (), tokens.of_folder)
        tokens.save()
        return {photo.rel_path: photo.sidecar for photo in found}


def test_a_persons_sidecar_is_in_the_listing(tmp_path):
    library = Library(tmp_path)
    for name in ("a.jpg", "b.JPG", "sub/c.png", "sub/d.jpg"):
        touch(library.photos / name)
    say(library.photos / "a.jpg.xmp", "cat")
    say(library.photos / "sub/c.XMP", "dog")
    first = library.scan()
    assert [bool(token) for token in first.values()] == [True, False, True, False]
    assert first["a.jpg"] != first["sub/c.png"]
    assert library.scan() == first
    say(library.photos / "a.jpg.xmp", "dog")
    assert library.scan() == first | {"a.jpg": first["sub/c.png"]}
    (library.photos / "sub/c.XMP").unlink()
    assert library.scan()["sub/c.png"] == ""


def test_sidecars_are_read_once(tmp_path, monkeypatch):
    library = Library(tmp_path)
    for n in range(5):
        touch(library.photos / f"{n}.jpg")
        say(library.photos / f"{n}.jpg.xmp", f"keyword {n}")
    first = library.scan()
    read = []
    monkeypatch.setattr("phototagger.tokencache.read_packet", read.append)
    assert library.scan() == first
    assert read == []
    os.utime(library.photos / "3.jpg.xmp", ns=(5, 5))
    library.scan()
    assert read == [library.photos / "3.jpg.xmp"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"recipe": 1}', b'{"recipe": 1, "folders": {"%s": {"a": 1}}}']
)
def test_a_damaged_cache_of_tokens_costs_only_time(tmp_path, content):
    library = Library(tmp_path)
    touch(library.photos / "a.jpg")
    say(library.photos / "a.jpg.xmp", "cat")
    first = library.scan()
    (path,) = library.cache.rglob("*.json")
    path.write_bytes(content.replace(b"%s", str(library.photos).encode()))
    assert library.scan() == first
    path.unlink()
    path.mkdir()
    assert library.scan() == first


def test_no_sidecar_stops_a_scan_whatever_it_is(tmp_path):
    library = Library(tmp_path)
    for n in range(6):
        touch(library.photos / f"{n}.jpg")
    touch(library.photos / "0.jpg.xmp")
    (library.photos / "1.jpg.xmp").mkdir()
    touch(library.photos / "1.jpg.xmp/inside.jpg")
    (library.photos / "2.jpg.xmp").symlink_to("nowhere")
    (library.photos / "3.jpg.xmp").symlink_to("3.jpg.xmp")
    os.mkfifo(library.photos / "4.jpg.xmp")
    name = os.fsdecode(b"\xff\n.jpg")
    touch(library.photos / name)
    say(library.photos / f"{name}.xmp", "cat")
    found = library.scan(ScanOptions((".jpg", ".xmp")))
    assert len(found) == 8
    assert [path for path, token in found.items() if token] == [names.encode(name)]
    assert library.scan() == found


def test_what_apply_writes_makes_nothing_stale(tmp_path):
    """Copies of a person's embedded keywords, which nothing marks as ours, are no news."""
    library = Library(tmp_path)
    touch(library.photos / "a.jpg")
    touch(library.photos / "b.jpg")
    old = say(library.photos / "b.jpg.xmp", "Tom")
    first = library.scan()
    new = library.photos / "a.jpg.xmp"
    tokens = library.tokens()
    before = tokens.of(new), tokens.of(old)
    say(new, "embedded")
    say(old, "Tom", "embedded")
    for path, said in zip((new, old), before, strict=True):
        tokens.keep(path, said, read_packet(path))
    tokens.save()
    assert library.scan() == first
    assert library.scan() == first
    tokens = library.tokens()  # and once more, on top of that
    said = tokens.of(old)
    say(old, "Tom", "embedded", "more")
    tokens.keep(old, said, read_packet(old))
    tokens.save()
    assert library.scan() == first
    say(old, "Tom", "embedded", "an edit")
    assert library.scan()["b.jpg"] not in ("", first["b.jpg"])


def test_what_photo_tagger_wrote_counts_if_that_is_asked_for(tmp_path):
    ours = bag("dc:subject", "cat") + bag("phototagger:WrittenSubject", "cat")
    for by, expected in ((("person",), False), (("person", "photo-tagger"), True)):
        library = Library(tmp_path, by)
        touch(library.photos / "a.jpg")
        (library.photos / "a.jpg.xmp").write_bytes(sidecar(ours))
        assert bool(library.scan()["a.jpg"]) is expected


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        resolve_roots([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(UserError, match=r"photos\.roots is empty"):
        resolve_roots([], tmp_path)
