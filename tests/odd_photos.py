"""Bad and odd inputs, made on the spot: what photo libraries hold after twenty years.

`make_odd_photos(folder)` writes them and says of each what has to become of it.
"""

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageCms

WIDTH, HEIGHT = 60, 40
# upper left, upper right, lower left, lower right of `picture`
CORNERS = ((220, 30, 30), (30, 200, 40), (40, 50, 220), (240, 240, 60))


@dataclass(frozen=True)
class Expectation:
    """`status` is ok or problem. `planned`: whether a scan lists it, as it does regular files."""

    status: str = "ok"
    kinds: tuple[str, ...] = ()  # of which the problem must be one
    size: tuple[int, int] = (WIDTH, HEIGHT)  # upright
    format: str = "JPEG"
    orientation: int = 1
    planned: bool = True
    coloured: bool = True  # the corners of the thumbnail are CORNERS


def problem(*kinds: str, planned: bool = True) -> Expectation:
    return Expectation("problem", kinds, planned=planned)


# ------------------------------------------------------------------------------------- pictures


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Four quarters of different colours."""
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate(CORNERS):
        x, y = number % 2 * width // 2, number // 2 * height // 2
        image.paste(colour, (x, y, x + (width + 1) // 2, y + (height + 1) // 2))
    return image


def noisy(width: int, height: int, seed: int = 1) -> Image.Image:
    """Does not compress, so that cutting the file cuts the picture."""
    noise = random.Random(seed).randbytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), noise)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = BytesIO()
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:
    import pillow_heif

    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, chroma=444, **options)
    return buffer.getvalue()


# How the pixels lie in a file that declares this orientation, by the EXIF standard
STORED: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}


def exif(orientation: int | None = None, **tags: Any) -> Image.Exif:
    made = Image.Exif()
    if orientation is not None:
        made[0x0112] = orientation
    for name, value in tags.items():
        made[{"make": 0x010F, "model": 0x0110}[name]] = value
    return made


# -------------------------------------------------------------------------------- made by hand


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with any header; `rows` with their filter bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return signature + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def png_16_bit_rgb() -> bytes:
    image, rows = picture(), b""
    for y in range(HEIGHT):
        line = (image.getpixel((x, y)) for x in range(WIDTH))
        rows += b"\0" + b"".join(struct.pack(">3H", *(v * 257 for v in rgb)) for rgb in line)
    return png(WIDTH, HEIGHT, 16, 2, rows)


def display_p3() -> bytes:
    """An ICC profile with the primaries of Display P3 and a gamma of 2.2."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    xyz = {
        b"wtpt": (0.95045, 1.0, 1.08905),
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(2.2 * 256), 0)
    name = b"Display P3 by test\0"
    text = b"desc" + struct.pack(">II", 0, len(name)) + name + bytes(78)
    tags = {key: b"XYZ \0\0\0\0" + fixed(*value) for key, value in xyz.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags |= {b"desc": text, b"cprt": b"text\0\0\0\0none\0"}
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += padded
    size = offset + len(body)
    header = struct.pack(">I", size) + bytes(4) + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ "
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + body


# TIFF's types of values: letters of struct, and how many of those are one value
_TYPES = {1: ("B", 1), 3: ("H", 1), 4: ("L", 1), 5: ("L", 2), 10: ("l", 2)}


def _value(kind: int, value: Any) -> tuple[int, bytes]:
    if kind == 2:
        return len(value) + 1, value.encode() + b"\0"
    letter, parts = _TYPES[kind]
    values = value if isinstance(value, list) else [value]
    return len(values) // parts, struct.pack(f"<{len(values)}{letter}", *values)


def ifd(start: int, entries: list[tuple[int, int, Any]]) -> bytes:
    """A little-endian TIFF directory at file offset `start`, its values behind it."""
    spill_at = start + 2 + 12 * len(entries) + 4
    table, spill = struct.pack("<H", len(entries)), b""
    for tag, kind, value in sorted(entries, key=lambda entry: entry[0]):
        count, data = _value(kind, value)
        if len(data) > 4:
            where = struct.pack("<L", spill_at + len(spill))
            spill += data + bytes(len(data) % 2)
        else:
            where = data.ljust(4, b"\0")
        table += struct.pack("<HHL", tag, kind, count) + where
    return table + bytes(4) + spill


def _sensor(offset: int, width: int, height: int, length: int) -> list[tuple[int, int, Any]]:
    return [
        (0x00FE, 4, 0),
        (0x0100, 4, width),
        (0x0101, 4, height),
        (0x0102, 3, 16),
        (0x0103, 3, 1),
        (0x0106, 3, 32803),  # colour filter array
        (0x0111, 4, offset),
        (0x0115, 3, 1),
        (0x0116, 4, height),
        (0x0117, 4, length),
        (0x828D, 3, [2, 2]),
        (0x828E, 1, [0, 1, 1, 2]),
    ]


def dng(preview: bytes | None, width: int = 240, height: int = 160, orientation: int = 1) -> bytes:
    """A small valid DNG: a grey sensor picture, with or without an embedded JPEG."""
    sensor = struct.pack("<H", 30000) * (width * height)
    offset = 8
    body = sensor + (preview or b"")
    camera: list[tuple[int, int, Any]] = [
        (0x010F, 2, "Canon"),
        (0x0110, 2, "Canon EOS R5"),
        (0x0112, 3, orientation),
        (0xC612, 1, [1, 4, 0, 0]),
        (0xC614, 2, "Canon EOS R5"),
        (0xC621, 10, [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]),
        (0xC628, 5, [1, 1, 1, 1, 1, 1]),
        (0xC65A, 3, 21),
    ]
    raw = _sensor(offset, width, height, len(sensor))
    first = offset + len(body) + len(body) % 2
    body += bytes(len(body) % 2)
    if preview is None:
        return struct.pack("<2sHL", b"II", 42, first) + body + ifd(first, raw + camera)
    with Image.open(BytesIO(preview)) as image:
        size = image.size
    shown = [
        (0x00FE, 4, 1),
        (0x0100, 4, size[0]),
        (0x0101, 4, size[1]),
        (0x0102, 3, [8, 8, 8]),
        (0x0103, 3, 7),
        (0x0106, 3, 6),
        (0x0111, 4, offset + len(sensor)),
        (0x0115, 3, 3),
        (0x0116, 4, size[1]),
        (0x0117, 4, len(preview)),
    ]
    sub = ifd(first, raw)
    main = first + len(sub)
    return (
        struct.pack("<2sHL", b"II", 42, main)
        + body
        + sub
        + ifd(main, [*shown, *camera, (0x014A, 4, first)])
    )


def without_segment(jpeg: bytes, marker: int) -> bytes:
    """A JPEG less the segments of one marker."""
    out, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] != marker:
            out += jpeg[at : at + length]
        at += length
    return out + jpeg[at:]


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + jpeg[2:]


def patched_size(jpeg: bytes, width: int, height: int, precision: int = 8) -> bytes:
    """A JPEG that declares other dimensions."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 4] + struct.pack(">BHH", precision, height, width) + jpeg[at + 9 :]


def webp_bomb() -> bytes:
    extended = struct.pack("<B3x", 0) + b"\xff\xff\xff" * 2
    chunks = b"VP8X" + struct.pack("<I", len(extended)) + extended
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


# -------------------------------------------------------------------------------------- corpus


def _colour_modes() -> dict[str, tuple[bytes, Expectation]]:
    rgb = picture()
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    alpha = rgb.copy()
    alpha.putalpha(255)
    half = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    plain_cmyk = ImageChops.invert(rgb.convert("CMYK"))
    ramp = bytes(range(256))
    grey = {"coloured": False}
    deep = Image.frombytes("I;16", (16, 16), b"".join(struct.pack("<H", v * 257) for v in ramp))
    palette = rgb.quantize(4)
    tiff = {"format": "TIFF"}
    png_ = {"format": "PNG"}
    small = {"size": (16, 16)}
    return {
        "cmyk adobe inverted.jpg": (encoded(rgb.convert("CMYK")), Expectation()),
        "cmyk not inverted.jpg": (without_segment(encoded(plain_cmyk), 0xEE), Expectation()),
        "cmyk.tif": (encoded(rgb.convert("CMYK"), "TIFF"), Expectation(**tiff)),
        "grey.jpg": (encoded(rgb.convert("L")), Expectation(**grey)),
        "one bit.png": (encoded(rgb.convert("1"), "PNG"), Expectation(**png_, **grey)),
        "one bit fax.tif": (
            encoded(rgb.convert("1"), "TIFF", compression="group4"),
            Expectation(**tiff, **grey),
        ),
        "16 bit grey.png": (encoded(deep, "PNG"), Expectation(**png_, **grey, **small)),
        "16 bit grey.tif": (encoded(deep, "TIFF"), Expectation(**tiff, **grey, **small)),
        "16 bit rgb.png": (png_16_bit_rgb(), Expectation(**png_)),
        "float.tif": (
            encoded(Image.frombytes("L", (16, 16), ramp).convert("F"), "TIFF"),
            Expectation(**tiff, **grey, **small),
        ),
        "float nan.tif": (
            encoded(Image.new("F", (16, 16), float("nan")), "TIFF"),
            Expectation(**tiff, **grey, **small),
        ),
        "32 bit.tif": (
            encoded(Image.new("I", (16, 16), -70000), "TIFF"),
            Expectation(**tiff, **grey, **small),
        ),
        "lab.tif": (encoded(lab, "TIFF"), Expectation(**tiff)),
        "lzw.tiff": (encoded(rgb, "TIFF", compression="tiff_lzw"), Expectation(**tiff)),
        "palette.png": (encoded(palette, "PNG"), Expectation(**png_)),
        "palette transparent.png": (
            encoded(palette, "PNG", transparency=0),
            Expectation(**png_, **grey),
        ),
        "rgba.png": (encoded(alpha, "PNG"), Expectation(**png_)),
        "all transparent.png": (encoded(half, "PNG"), Expectation(**png_, **grey)),
        "la.png": (encoded(alpha.convert("LA"), "PNG"), Expectation(**png_, **grey)),
        "rgba.webp": (encoded(alpha, "WEBP", lossless=True), Expectation(format="WEBP")),
        "p3.jpg": (encoded(rgb, icc_profile=display_p3()), Expectation(**grey)),
        "broken icc.jpg": (encoded(rgb, icc_profile=b"not a profile" * 20), Expectation()),
        "cmyk with rgb icc.jpg": (
            encoded(rgb.convert("CMYK"), icc_profile=display_p3()),
            Expectation(),
        ),
    }


def _containers() -> dict[str, tuple[bytes, Expectation]]:
    rgb, other = picture(), Image.new("RGB", (WIDTH, HEIGHT), "black")
    jpeg = encoded(rgb)
    several = {"save_all": True, "append_images": [other]}
    preview = encoded(picture(1200, 800))
    heif = {"format": "HEIF"}
    upright = (HEIGHT, WIDTH)
    return {
        "png inside.jpg": (encoded(rgb, "PNG"), Expectation(format="PNG")),
        "jpeg inside.png": (jpeg, Expectation()),
        "gif inside.jpg": (encoded(rgb, "GIF"), Expectation(format="GIF")),
        "bmp inside.jpg": (encoded(rgb, "BMP"), Expectation(format="BMP")),
        "jpeg inside.dng": (jpeg, Expectation()),
        "jpeg inside.heic": (jpeg, Expectation()),
        "avif inside.heic": (encoded(rgb, "AVIF", quality=95), Expectation(format="AVIF")),
        "tiff inside.nef": (encoded(rgb, "TIFF"), Expectation(format="TIFF")),
        "animated.png": (encoded(rgb, "PNG", **several), Expectation(format="PNG")),
        "animated.webp": (encoded(rgb, "WEBP", quality=95, **several), Expectation(format="WEBP")),
        "pages.tif": (encoded(rgb, "TIFF", **several), Expectation(format="TIFF")),
        "two pictures mpo.jpg": (encoded(rgb, "MPO", quality=95, **several), Expectation()),
        "trailing garbage.jpg": (jpeg + b"garbage" * 999, Expectation()),
        "progressive.jpg": (encoded(rgb, progressive=True), Expectation()),
        "one pixel.jpg": (
            encoded(Image.new("RGB", (1, 1))),
            Expectation(size=(1, 1), coloured=False),
        ),
        "panorama.jpg": (
            encoded(Image.new("RGB", (20000, 1))),
            Expectation(size=(20000, 1), coloured=False),
        ),
        "tower.png": (
            encoded(Image.new("RGB", (1, 20000)), "PNG"),
            Expectation(size=(1, 20000), format="PNG", coloured=False),
        ),
        "UPPER.JPG": (jpeg, Expectation()),
        "Photo.HEIC": (heic(rgb), Expectation(**heif)),
        "turned.heic": (
            heic(rgb.rotate(90, expand=True), exif=exif(6).tobytes()),
            Expectation(**heif, orientation=6),
        ),
        "preview.dng": (dng(preview, 1200, 800), Expectation(size=(1200, 800), format="DNG")),
        "turned.dng": (
            dng(encoded(picture(800, 1200).rotate(90, expand=True)), 1200, 800, orientation=6),
            Expectation(size=(800, 1200), format="DNG", orientation=6),
        ),
        "no preview.dng": (dng(None), Expectation(size=(240, 160), format="DNG", coloured=False)),
        "turned tiff.tif": (
            encoded(STORED[8](rgb), "TIFF", exif=exif(8)),
            Expectation(format="TIFF", orientation=8),
        ),
        "turned.png": (
            encoded(STORED[5](rgb), "PNG", exif=exif(5)),
            Expectation(format="PNG", orientation=5),
        ),
        "turned.webp": (
            encoded(STORED[6](picture(*upright)), "WEBP", lossless=True, exif=exif(6)),
            Expectation(format="WEBP", orientation=6, size=upright),
        ),
    }


def _exif_oddities() -> dict[str, tuple[bytes, Expectation]]:
    made = {
        f"orientation {o}.jpg": (
            encoded(stored(picture()), exif=exif(o)),
            Expectation(orientation=o),
        )
        for o, stored in STORED.items()
    }
    for value in (0, 9, 300):
        made[f"orientation {value}.jpg"] = (encoded(picture(), exif=exif(value)), Expectation())
    blob = exif(make="Canon").tobytes()
    jpeg = encoded(picture())
    made["exif cut off.jpg"] = (with_segment(jpeg, 0xE1, blob[:20]), Expectation())
    made["exif garbage.jpg"] = (
        with_segment(jpeg, 0xE1, b"Exif\0\0" + bytes(range(200))),
        Expectation(),
    )
    loop = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHLLL", 1, 0x8769, 4, 1, 8, 8)
    made["exif loop.jpg"] = (with_segment(jpeg, 0xE1, loop), Expectation())
    return made


def _damaged() -> dict[str, tuple[bytes, Expectation]]:
    full = encoded(noisy(200, 150))
    progressive = encoded(noisy(200, 150), progressive=True)
    broken = {
        f"cut at {part} percent.jpg": (full[: len(full) * part // 100], problem("truncated"))
        for part in (20, 50, 90, 99)
    }
    cut = {
        "cut.png": encoded(noisy(200, 150), "PNG"),
        "cut.tif": encoded(noisy(200, 150), "TIFF"),
        "cut lzw.tif": encoded(noisy(200, 150), "TIFF", compression="tiff_lzw"),
        "cut.webp": encoded(noisy(200, 150), "WEBP"),
        "cut.heic": heic(noisy(200, 150)),
        "cut gif.jpg": encoded(noisy(200, 150).quantize(256), "GIF"),
        "cut progressive.jpg": progressive,
    }
    for name, data in cut.items():
        broken[name] = (data[: len(data) // 2], problem("truncated"))
    text = b"not a photo at all\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    flipped = bytearray(encoded(noisy(64, 64), "PNG"))
    flipped[len(flipped) // 2] ^= 0xFF
    damaged = ("truncated", "corrupt", "unsupported_format")
    return broken | {
        "empty.jpg": (b"", problem("empty")),
        "one byte.jpg": (b"\xff", problem("not_an_image")),
        "only a start.jpg": (b"\xff\xd8\xff", problem(*damaged)),
        "cut in the header.jpg": (full[:100], problem("truncated", "corrupt")),
        "text.jpg": (text, problem("not_an_image")),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", problem("not_an_image")),
        "drawing.jpg": (svg, problem("not_an_image")),
        "archive.tif": (b"PK\3\4" + bytes(100), problem("not_an_image")),
        "document.jpg": (b"%PDF-1.7\n", problem("not_an_image")),
        "zeros.jpg": (bytes(5000), problem("not_an_image")),
        "video.heic": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99), problem(*damaged)),
        "photoshop.tif": (b"8BPS\0\1" + bytes(99), problem("unsupported_format")),
        "garbage.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(range(256)) * 9, problem(*damaged)),
        "garbage.nef": (random.Random(2).randbytes(5000), problem("not_an_image")),
        "garbage.cr3": (b"\0\0\0\x18ftypcrx " + bytes(300), problem(*damaged)),
        "garbage.orf": (b"IIRO\x08\0\0\0" + bytes(300), problem(*damaged)),
        "garbage.rw2": (b"IIU\0\x18\0\0\0" + bytes(300), problem(*damaged)),
        "garbage.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300), problem(*damaged)),
        "no directory.tif": (b"II*\0\xff\xff\xff\x7f", problem(*damaged)),
        "bomb.png": (png(100_000, 100_000, 8, 2, b""), problem("too_many_pixels")),
        "bomb.jpg": (patched_size(full, 65_500, 65_500), problem("too_many_pixels")),
        "bomb.webp": (webp_bomb(), problem("too_many_pixels")),
        "no width.png": (png(0, 5, 8, 2, b""), problem("corrupt")),
        "no height.jpg": (patched_size(full, 200, 0), problem(*damaged)),
        "taller than its data.jpg": (  # libjpeg fills the rest with grey, and says nothing
            patched_size(full, 200, 1500),
            Expectation(size=(200, 1500), coloured=False),
        ),
        "twelve bits.jpg": (patched_size(full, 200, 150, 12), problem(*damaged)),
        "flipped byte.png": (bytes(flipped), problem(*damaged)),
        "no pixels.png": (png(10, 10, 8, 2, b""), problem(*damaged)),
    }


NAMES = (
    "with space.jpg",
    " leading and trailing .jpg",
    "single'quote.jpg",
    'double"quote.jpg',
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "tab\there.jpg",
    "bar|bar.jpg",
    "comma,semicolon;.jpg",
    "emoji 🚤🌅.jpg",
    "combining é.jpg",
    "中文.jpg",
    "-leading dash.jpg",
    "#hash.jpg",
    "@at.jpg",
    "percent %20 %s %d.jpg",
    "back\\slash.jpg",
    "fake escape \\n \\xff.jpg",
    "$(dollar) `tick` $HOME.jpg",
    "star * and ? and [a].jpg",
    "{brace} {{two}}.jpg",
    "amp & <tag>.jpg",
    "=1+1.jpg",
    "double..dots.jpg",
    os.fsdecode(b"invalid \xff\xfe utf-8.jpg"),
    "line\u2028separator.jpg",
    "x" * 246 + ".jpg",
)


def make_odd_photos(folder: Path) -> dict[str, Expectation]:
    """Write the corpus into `folder`; expectations by the names of the files (not encoded)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = _colour_modes() | _containers() | _exif_oddities() | _damaged()
    for number, name in enumerate(NAMES):
        marked = encoded(picture(), comment=f"picture {number}".encode())  # all different bytes
        made[name] = (marked, Expectation())
    expected = {}
    for name, (data, expectation) in made.items():
        (folder / name).write_bytes(data)
        expected[name] = expectation
    return expected | _not_files(folder)


def _not_files(folder: Path) -> dict[str, Expectation]:
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("UPPER.JPG")
    locked = folder / "locked.jpg"
    locked.write_bytes(encoded(picture(), comment=b"locked"))
    locked.chmod(0)
    readable = os.access(locked, os.R_OK)  # root may read anything
    return {
        "folder.jpg": problem("not_a_file", planned=False),
        "dangling.jpg": problem("missing", planned=False),
        "loop.jpg": problem("unreadable", planned=False),
        "pipe.jpg": problem("not_a_file", planned=False),
        "link.jpg": Expectation(),
        "locked.jpg": Expectation() if readable else problem("unreadable"),
    }
