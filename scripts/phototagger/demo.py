"""A small library of photos to try things on, copied from scikit-image and scikit-learn.

The pictures are real photographs (nine in colour, five in black and white). Who made them and where
is true as far as it is known; for the rest, a made-up camera ("Demo One") and made-up dates stand
in, so that there is something to read, and the `Software` field says so.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from phototagger.errors import UserError
from phototagger.exiftool import run_batch
from phototagger.files import write_atomic

_SOFTWARE = "photo-tagger demo, partly made-up EXIF"
_CAMERA = {"Make": "Demo", "Model": "Demo One", "LensModel": "Demo 35mm f/1.8", "FNumber": "2.8"}
_COMPACT = {"Make": "Demo", "Model": "Demo Pocket", "FNumber": "4"}

_SAVE_OPTIONS = {
    ".jpg": {"quality": 92, "subsampling": 0},
    ".png": {},
    ".tif": {"compression": "tiff_lzw"},
}


@dataclass(frozen=True)
class DemoPhoto:
    """A copy to make: its path, the package file it comes from, and what its EXIF says."""

    rel_path: str
    source: str  # below the packages' folder
    taken: str  # local time with offset
    artist: str
    exif: dict[str, str] = field(default_factory=dict)
    position: tuple[float, float] | None = None  # latitude, longitude in degrees
    turned: bool = False  # stored a quarter turn to the left, with the Orientation that undoes it


_SKIMAGE = "skimage/data"
_SKLEARN = "sklearn/datasets/images"

PHOTOS = (
    DemoPhoto(
        "At home/Chelsea the cat.jpg",
        f"{_SKIMAGE}/chelsea.png",
        "2023-03-05T16:40:12+00:00",
        "Stefan van der Walt (CC0)",
        _CAMERA,
    ),
    DemoPhoto(
        "At home/Dahlia.jpg",
        f"{_SKLEARN}/flower.jpg",
        "2011-08-18T11:21:00-07:00",
        "vultilion, flickr.com/photos/vultilion/6056698931 (CC BY 2.0)",
        _CAMERA,
    ),
    DemoPhoto(
        "At home/Espresso.tif",
        f"{_SKIMAGE}/coffee.png",
        "2014-10-11T09:30:00-04:00",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar (CC0)",
        _CAMERA,
        position=(45.5109, -73.5692),
    ),
    DemoPhoto(
        "At home/Motorcycle left.png",
        f"{_SKIMAGE}/motorcycle_left.png",
        "2014-06-14T14:02:31-04:00",
        "Nera Nesic and others, Middlebury 2014 stereo benchmark",
        _COMPACT,
    ),
    DemoPhoto(
        "At home/Motorcycle right.jpg",
        f"{_SKIMAGE}/motorcycle_right.png",
        "2014-06-14T14:02:33-04:00",
        "Nera Nesic and others, Middlebury 2014 stereo benchmark",
        _COMPACT,
        turned=True,
    ),
    DemoPhoto(
        "Out and about/Brick wall.png",
        f"{_SKIMAGE}/brick.png",
        "2018-05-20T13:00:00+02:00",
        "CC0Textures (CC0)",
        _COMPACT,
    ),
    DemoPhoto(
        "Out and about/Coins in a museum.jpg",
        f"{_SKIMAGE}/coins.png",
        "2009-02-28T15:12:44-05:00",
        "Brooklyn Museum (no known restrictions)",
        _COMPACT,
        position=(40.6712, -73.9636),
    ),
    DemoPhoto(
        "Out and about/Grass.tif",
        f"{_SKIMAGE}/grass.png",
        "2019-07-02T18:25:09+02:00",
        "linolafett, DeviantArt (CC0)",
        _COMPACT,
    ),
    DemoPhoto(
        "Out and about/Photographer in the park.png",
        f"{_SKIMAGE}/camera.png",
        "2016-04-09T10:05:50-05:00",
        "Lav Varshney (CC0)",
        _CAMERA,
    ),
    DemoPhoto(
        "Out and about/Summer Palace, Beijing.jpg",
        f"{_SKLEARN}/china.jpg",
        "2011-08-19T09:47:00+08:00",
        "danielbuechele, flickr.com/photos/danielbuechele/6061409035 (CC BY 2.0)",
        _CAMERA,
        position=(39.9988, 116.2740),
    ),
    DemoPhoto(
        "Space and science/Astronaut.png",
        f"{_SKIMAGE}/astronaut.png",
        "1999-01-01T12:00:00-06:00",
        "NASA (public domain)",
    ),
    DemoPhoto(
        "Space and science/Deep field.jpg",
        f"{_SKIMAGE}/hubble_deep_field.jpg",
        "2012-09-25T00:00:00+00:00",
        "NASA (public domain)",
        {"Make": "NASA, ESA", "Model": "Hubble Space Telescope"},
    ),
    DemoPhoto(
        "Space and science/Moon.png",
        f"{_SKIMAGE}/moon.png",
        "2010-01-30T22:15:00+00:00",
        "unknown, from scikit-image",
    ),
    DemoPhoto(
        "Space and science/Rocket at dusk.jpg",
        f"{_SKIMAGE}/rocket.jpg",
        "2015-02-11T18:03:00-05:00",
        "SpaceX (public domain)",
        _CAMERA,
        position=(28.5620, -80.5772),
    ),
)


def make_demo_photos(folder: Path) -> int:
    """Make the demo's photos below `folder` and return their number.

    Bytes and modification times are the same every time; what is already right is not touched.

    Raises UserError if a package with the pictures, or ExifTool, is missing.
    """
    sources = [_find(photo.source) for photo in PHOTOS]
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary:
        work = Path(temporary)
        copies = [work / f"{n}{Path(photo.rel_path).suffix}" for n, photo in enumerate(PHOTOS)]
        for photo, source, copy in zip(PHOTOS, sources, copies, strict=True):
            _copy_pixels(source, copy, photo.turned)
        _write_exif(copies, work)
        for photo, copy in zip(PHOTOS, copies, strict=True):
            _place(copy.read_bytes(), folder / photo.rel_path, _mtime_ns(photo))
    return len(PHOTOS)


def _find(source: str) -> Path:
    package, _, rest = source.partition("/")
    spec = find_spec(package)
    for location in (spec and spec.submodule_search_locations) or []:
        if (path := Path(location, rest)).is_file():
            return path
    raise UserError(
        f"{source}: not found; the demo's photos come with scikit-image and scikit-learn, "
        "install both (make setup, or pip install scikit-image scikit-learn)"
    )


def _copy_pixels(source: Path, copy: Path, turned: bool) -> None:
    """Copy a picture; through Pillow only where the format or the orientation changes."""
    from PIL import Image

    if source.suffix == copy.suffix and not turned:
        copy.write_bytes(source.read_bytes())
        return
    with Image.open(source) as image:
        pixels = image.transpose(Image.Transpose.ROTATE_90) if turned else image
        pixels.save(copy, **_SAVE_OPTIONS[copy.suffix])


def _write_exif(copies: list[Path], work: Path) -> None:
    commands = [
        [*_exif_arguments(photo), "-overwrite_original", copy.name]
        for photo, copy in zip(PHOTOS, copies, strict=True)
    ]
    complaints = run_batch(commands, work).splitlines()
    if errors := [c for c in complaints if c.startswith("Error")]:
        raise UserError(f"demo photos: EXIF could not be written ({errors[0]})")


def _exif_arguments(photo: DemoPhoto) -> Iterator[str]:
    taken = datetime.fromisoformat(photo.taken)
    yield f"-EXIF:DateTimeOriginal={taken:%Y:%m:%d %H:%M:%S}"
    yield f"-EXIF:OffsetTimeOriginal={photo.taken[-6:]}"
    yield f"-EXIF:Artist={photo.artist}"
    yield f"-EXIF:Software={_SOFTWARE}"
    for tag, value in photo.exif.items():
        yield f"-EXIF:{tag}={value}"
    if photo.turned:
        yield "-EXIF:Orientation#=6"
    if photo.position:
        latitude, longitude = photo.position
        yield f"-EXIF:GPSLatitude={abs(latitude)}"
        yield f"-EXIF:GPSLatitudeRef={'N' if latitude >= 0 else 'S'}"
        yield f"-EXIF:GPSLongitude={abs(longitude)}"
        yield f"-EXIF:GPSLongitudeRef={'E' if longitude >= 0 else 'W'}"


def _mtime_ns(photo: DemoPhoto) -> int:
    return int(datetime.fromisoformat(photo.taken).timestamp()) * 10**9


def _place(content: bytes, path: Path, mtime_ns: int) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
    if path.stat().st_mtime_ns != mtime_ns:
        os.utime(path, ns=(mtime_ns, mtime_ns))
