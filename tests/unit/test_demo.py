import json
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageOps

from phototagger.demo import PHOTOS, _find, make_demo_photos
from phototagger.errors import UserError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "photos"
    assert make_demo_photos(folder) == 14
    return folder


def state(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_every_photo_opens_upright_with_its_source_pixels(demo):
    formats = set()
    for photo in PHOTOS:
        with Image.open(demo / photo.rel_path) as image, Image.open(_find(photo.source)) as source:
            formats.add(image.format)
            upright = np.asarray(ImageOps.exif_transpose(image), dtype=int)
            original = np.asarray(source, dtype=int)
            assert upright.shape == original.shape
            assert np.abs(upright - original).mean() < 4
    assert formats == {"JPEG", "PNG", "TIFF"}


def test_no_other_files(demo):
    assert set(state(demo)) == {photo.rel_path for photo in PHOTOS}
    assert len({photo.rel_path.partition("/")[0] for photo in PHOTOS}) == 3


def test_exif_as_exiftool_reads_it(demo):
    out = subprocess.run(["exiftool", "-j", "-n", "-r", str(demo)], capture_output=True, check=True)
    tags = {t["SourceFile"].removeprefix(f"{demo}/"): t for t in json.loads(out.stdout)}
    assert len(tags) == 14
    assert all("DateTimeOriginal" in t and "Error" not in t for t in tags.values())
    rocket = tags["Space and science/Rocket at dusk.jpg"]
    assert rocket["DateTimeOriginal"] == "2015:02:11 18:03:00"
    assert rocket["OffsetTimeOriginal"] == "-05:00"
    assert (rocket["Make"], rocket["Model"]) == ("Demo", "Demo One")
    assert rocket["LensModel"] == "Demo 35mm f/1.8"
    assert (rocket["GPSLatitude"], rocket["GPSLongitude"]) == pytest.approx((28.562, -80.5772))
    assert sum("GPSLatitude" in t for t in tags.values()) == 4
    turned = tags["At home/Motorcycle right.jpg"]
    assert turned["Orientation"] == 6
    assert (turned["ImageWidth"], turned["ImageHeight"]) == (500, 741)
    assert "Make" not in tags["Space and science/Moon.png"]


def test_second_call_touches_nothing(demo):
    before = state(demo)
    make_demo_photos(demo)
    assert state(demo) == before


def test_same_everywhere_and_repaired(demo, tmp_path):
    expected = {name: values[:2] for name, values in state(demo).items()}
    make_demo_photos(tmp_path)
    (tmp_path / PHOTOS[0].rel_path).write_bytes(b"broken")
    (tmp_path / PHOTOS[1].rel_path).unlink()
    (tmp_path / PHOTOS[2].rel_path).touch()
    make_demo_photos(tmp_path)
    assert {name: values[:2] for name, values in state(tmp_path).items()} == expected


def test_missing_package():
    with pytest.raises(UserError, match="scikit-image and scikit-learn"):
        _find("no_such_package/a.png")


def test_exiftool_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="exiftool: not found"):
        make_demo_photos(tmp_path / "photos")
    assert not (tmp_path / "photos").exists()
