import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from odd_photos import display_p3, encoded, exif, picture
from PIL import Image

from phototagger.machine import Machine
from phototagger.plan import resolve_roots
from phototagger.problems import PhotoProblem
from phototagger.thumbnails import (
    ThumbCache,
    ensure_thumb,
    load_photo,
    load_thumb,
    make_thumb,
    read_photo,
)

OPTIONS = {"size": 512, "quality": 85, "max_pixels": 1 << 28}


@pytest.fixture
def library(tmp_path: Path) -> tuple[Machine, Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    roots = resolve_roots([folder], tmp_path)
    nothing = tmp_path / "none"
    return Machine(roots, tmp_path / "cache", nothing, nothing, "cpu", 8), folder


def row_of(machine: Machine, path: Path) -> dict:
    thumb = make_thumb(path.read_bytes(), **OPTIONS)
    kept = ThumbCache(machine.cache, 512, 85)
    kept.put(thumb)
    name = kept.name(thumb.fields["sha256"])
    return thumb.fields | {"rel_path": path.name, "thumb": name, "status": "ok"}


def test_thumbnail_is_a_plain_jpeg() -> None:
    data = encoded(picture(1200, 800), comment=b"x", icc_profile=display_p3(), exif=exif(6))
    thumb = make_thumb(data, **OPTIONS)
    image = Image.open(BytesIO(thumb.jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (341, 512))
    assert not {"exif", "icc_profile", "comment"} & image.info.keys()
    assert (thumb.fields["width"], thumb.fields["height"]) == (800, 1200)


def test_quality_size_and_content_make_the_name(tmp_path: Path) -> None:
    names = {
        ThumbCache(tmp_path, size, quality).name(content * 64)
        for size in (256, 512)
        for quality in (80, 85)
        for content in "ab"
    }
    assert len(names) == 8
    assert all(Path(name).parts[0] in ("256", "512") for name in names)


def test_thumbnail_is_made_again(library: tuple[Machine, Path]) -> None:
    machine, folder = library
    photo = folder / "a.jpg"
    photo.write_bytes(encoded(picture(900, 600)))
    row = row_of(machine, photo)
    path = machine.cache / "thumbs" / row["thumb"]
    before = path.read_bytes()
    path.unlink()
    assert ensure_thumb(row, machine=machine, size=512, quality=85) == path
    assert path.read_bytes() == before
    path.write_bytes(before[:100])
    assert load_thumb(row, machine=machine, size=512, quality=85).size == (512, 341)
    assert path.read_bytes() == before


def test_thumbnail_of_another_photo_is_never_made(library: tuple[Machine, Path]) -> None:
    machine, folder = library
    photo = folder / "a.jpg"
    photo.write_bytes(encoded(picture(900, 600)))
    row = row_of(machine, photo)
    (machine.cache / "thumbs" / row["thumb"]).unlink()
    photo.write_bytes(encoded(picture(90, 60)))
    with pytest.raises(PhotoProblem, match="changed_while_reading"):
        ensure_thumb(row, machine=machine, size=512, quality=85)
    photo.unlink()
    with pytest.raises(PhotoProblem, match="missing"):
        load_photo(row, machine=machine)


def test_half_written_entry_does_not_count(tmp_path: Path) -> None:
    kept = ThumbCache(tmp_path, 512, 85)
    thumb = make_thumb(encoded(picture()), **OPTIONS)
    sha256 = thumb.fields["sha256"]
    assert kept.get(sha256) is None
    kept.put(thumb)
    assert kept.get(sha256) == thumb.fields
    path = kept.folder / kept.name(sha256)
    path.with_suffix(".json").write_text("{")
    assert kept.get(sha256) is None
    kept.put(thumb)
    path.unlink()
    assert kept.get(sha256) is None


def test_load_photo_is_upright_and_whole(library: tuple[Machine, Path]) -> None:
    machine, folder = library
    photo = folder / "a.jpg"
    photo.write_bytes(encoded(picture(900, 600), exif=exif(6)))
    row = row_of(machine, photo)
    assert load_photo(row, machine=machine).size == (600, 900)
    assert load_photo(row, machine=machine, long_edge=300).size == (200, 300)


def test_read_photo_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(100))
    data, info = read_photo(path, 100)
    assert (hashlib.sha256(data).digest(), info.st_size) == (
        hashlib.sha256(bytes(100)).digest(),
        100,
    )
    with pytest.raises(PhotoProblem, match="100 bytes, at most 99"):
        read_photo(path, 99)
