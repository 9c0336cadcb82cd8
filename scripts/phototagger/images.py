"""Any photo, from its bytes, as an upright 8-bit sRGB image; or a PhotoProblem that says why not.

The format is decided by the content, never by the file's name. Dimensions are read from the header
and checked before a pixel is decoded. A JPEG is decoded at the smallest DCT scale that still has
more than the wanted size, so a thumbnail of a large photo costs little more than entropy decoding.
"""

import functools
import logging
import math
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageCms,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from phototagger import exif, own_metadata
from phototagger.exif import Exif
from phototagger.exiftool import ExifTool
from phototagger.own_metadata import OwnMetadata
from phototagger.problems import PhotoProblem

log = logging.getLogger(__name__)

# Pillow warns about every broken tag, without saying of which photo.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

RAW_FORMATS = ("DNG", "CR2", "CR3", "NEF", "ARW", "RW2", "ORF", "RAF")

# The final filter gets at least this many times the pixels it needs per axis. DCT scaling averages
# blocks, so less headroom does there: 6000 px are decoded as 750 for 512, which is nearer to a full
# decode than what vipsthumbnail makes, and a fifth faster than decoding as 1500.
_DCT_HEADROOM = 1.4
_REDUCING_GAP = 2.0

# A preview must have this long edge to stand for a RAW photo when no size is asked for.
_PREVIEW = 1024

# Photos that need more than this many bytes once decoded are decoded one at a time.
_LARGE = 400 << 20
_one_large = threading.Lock()

_UPRIGHT = ("TIFF", "HEIF")  # decoders that apply the orientation themselves

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Photo:
    """A decoded photo. `image` is RGB, upright, sRGB; scaled down if a size was asked for."""

    image: Image.Image
    width: int  # of the full photo, upright
    height: int
    format: str
    exif: Exif
    own: OwnMetadata = field(default_factory=OwnMetadata)


def decode(
    data: bytes,
    *,
    max_pixels: int,
    long_edge: int | None = None,
    path: Path | None = None,
    exiftool: ExifTool | None = None,
) -> Photo:
    """Decode a photo; with `long_edge`, scaled down (never up) to that long edge in pixels.

    `path` is where the bytes came from, and spares a copy when ExifTool has to look at a RAW file;
    `exiftool` a process to use for that.

    Raises PhotoProblem.
    """
    found = sniff(data)
    if found in RAW_FORMATS:
        with _problems(found):
            return _decode_raw(data, found, max_pixels, long_edge, path, exiftool)
    return _decode_file(data, found, max_pixels, long_edge)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise PhotoProblem for a photo without pixels or with more than allowed."""
    if width < 1 or height < 1:
        raise PhotoProblem("corrupt", "the header declares no pixels")
    if width * height > max_pixels:
        raise PhotoProblem(
            "too_many_pixels", f"{width * height} pixels, at most {max_pixels} are allowed"
        )


def fit(width: int, height: int, long_edge: int | None) -> tuple[int, int]:
    """The size of a picture scaled down (never up) to `long_edge`, at least 1 x 1."""
    if long_edge is None or max(width, height) <= long_edge:
        return width, height
    scale = long_edge / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


# -------------------------------------------------------------------------------------- formats

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"IIRO", "ORF"),
    (b"IIRS", "ORF"),
    (b"MMOR", "ORF"),
    (b"IIU\0", "RW2"),
    (b"FUJIFILMCCD-RAW", "RAF"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# What people find under a photo's name, and what to call it
_UNSUPPORTED = (
    (b"8BPS", "a Photoshop document"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"FOVb", "Sigma RAW"),
    (b"\0MRM", "Minolta RAW"),
    (b"\0\0\1\0", "an icon"),
)
_OTHER = (
    (b"PK\3\4", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x7fELF", "a program"),
)


def middle(image: Image.Image, longest: float) -> Image.Image:
    """The middle of a very long picture: the long side at most `longest` times the short one.

    Models scale the short side up, or refuse such pictures.
    """
    width, height = image.size
    limit = int(longest * min(width, height))
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, width - left, height - top))


def sniff(data: bytes) -> str:
    """The format by content: JPEG, PNG, GIF, BMP, JPEG2000, WEBP, HEIF, AVIF, TIFF or a RAW format.

    Raises PhotoProblem for anything else.
    """
    if not data:
        raise PhotoProblem("empty", "the file is empty")
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(_TIFF) and len(data) >= 8:
        return _tiff_kind(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _media_kind(data)
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            raise PhotoProblem("unsupported_format", f"the content is {name}")
    raise PhotoProblem("not_an_image", f"the content is {_describe(data)}")


def _media_kind(data: bytes) -> str:
    """Which kind of ISO media file, by its brands."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[i : i + 4] for i in (8, *range(16, length - 3, 4))}
    if data[8:11] == b"crx":
        return "CR3"
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "HEIF"
    raise PhotoProblem("unsupported_format", "the content is a video")


def _tiff_kind(data: bytes) -> str:
    """TIFF, or which RAW format built upon it, by the first directory."""
    if data[8:10] == b"CR":
        return "CR2"
    tags = _tiff_tags(data)
    if 0xC612 in tags:  # DNGVersion
        return "DNG"
    maker = tags.get(0x010F, b"").upper()
    reduced = tags.get(0x00FE) == b"\1"  # NewSubfileType: the first picture is a preview
    if 0x014A in tags and (reduced or 0x0103 not in tags or tags[0x0103] == b"\6"):
        if maker.startswith(b"NIKON"):
            return "NEF"
        if maker.startswith(b"SONY"):
            return "ARW"
    return "TIFF"


def _tiff_tags(data: bytes) -> dict[int, bytes]:
    """First directory of a classic TIFF: text and integers below 256 as bytes, all else as b""."""
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] not in (b"*\0", b"\0*"):
        return {}  # BigTIFF: no camera writes that
    if struct.unpack(order + "L", data[4:8])[0] >= len(data):
        raise PhotoProblem("truncated", "TIFF: the directory is beyond the end of the file")
    tags: dict[int, bytes] = {}
    try:
        (start,) = struct.unpack_from(order + "L", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length, value = struct.unpack_from(order + "HHLL", data, entry)
            if kind == 2 and length > 4:
                tags[tag] = data[value : value + min(length, 64)]
            elif kind in (3, 4) and length == 1:
                (number,) = struct.unpack_from(order + ("H" if kind == 3 else "L"), data, entry + 8)
                tags[tag] = bytes([number]) if number < 256 else b""
            else:
                tags[tag] = b""
    except struct.error:
        pass  # what was read so far has to do; the decoder will say what is wrong
    return tags


def _describe(data: bytes) -> str:
    for magic, name in _OTHER:
        if data.startswith(magic):
            return name
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head.startswith(b"<?xml"):
        return "XML"
    if not data.strip(b"\0"):
        return "nothing but zeros"
    try:
        sample = data[:1024].decode("utf-8", "strict" if len(data) <= 1024 else "ignore")
    except UnicodeDecodeError:
        return "of an unknown kind"
    plain = all(char.isprintable() or char in "\t\r\n\f" for char in sample)
    return "text" if plain else "of an unknown kind"


# ----------------------------------------------------------------------------------- Pillow's part

_PLUGINS: dict[str, Callable[[Any], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}


def _open(data: bytes, found: str) -> ImageFile.ImageFile:
    """Read the header with the one plugin that fits.

    Not through Image.open: that guesses, and its limit on pixels is a global of the process.
    """
    if found == "HEIF":
        from pillow_heif.as_plugin import HeifImageFile

        return HeifImageFile(BytesIO(data))
    return _PLUGINS[found](BytesIO(data))


def _decode_file(data: bytes, found: str, max_pixels: int, long_edge: int | None) -> Photo:
    with _problems(found):
        if found == "WEBP":  # the plugin makes room for the canvas before anyone can look at it
            _check_webp(data, max_pixels)
        image = _open(data, found)
        if found == "PNG":
            _check_png(data)
        check_pixels(*image.size, max_pixels)
        fields = _read_exif(image)
        width, height = image.size
        turned = found not in _UPRIGHT and fields.orientation >= 5
        pixels = _pixels(data, image, found, long_edge)
        if found not in _UPRIGHT:
            pixels = _turn(pixels, fields.orientation)
        if turned:
            width, height = height, width
        return Photo(pixels, width, height, found, fields, _read_own(image))


def _pixels(
    data: bytes, image: ImageFile.ImageFile, found: str, long_edge: int | None
) -> Image.Image:
    """The pixels as RGB in sRGB, scaled down, not yet turned."""
    target = fit(*image.size, long_edge)
    box = None
    if found == "JPEG":
        image.decodermaxblock = len(data)  # hand the decoder everything at once
        if target != image.size:
            wanted = (math.ceil(_DCT_HEADROOM * target[0]), math.ceil(_DCT_HEADROOM * target[1]))
            drafted = image.draft(None, wanted)
            box = drafted[1] if drafted else None
    icc = image.info.get("icc_profile")
    with _room(image.size, found):
        image.load()
        plain = _plain(image)
        if found == "JPEG" and plain.mode == "CMYK" and "adobe" not in image.info:
            plain = ImageChops.invert(plain)  # Pillow takes every CMYK JPEG for Adobe's inverted
        if target != plain.size:
            plain = plain.resize(
                target, Image.Resampling.LANCZOS, box=box, reducing_gap=_REDUCING_GAP
            )
        return _to_srgb(plain, icc)


@contextmanager
def _room(size: tuple[int, int], found: str) -> Iterator[None]:
    """Let photos through that are small once decoded, and only one at a time that is not."""
    needed = size[0] * size[1] * (4 if found == "JPEG" else 8)
    if needed <= _LARGE:
        yield
        return
    with _one_large:
        yield


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _read_exif(image: ImageFile.ImageFile) -> Exif:
    try:
        found = exif.from_pillow(image.getexif())
    except Exception:  # whatever broken EXIF makes of Pillow's parser
        return Exif()
    # the HEIF decoder turns the pixels and resets the tag
    original = image.info.get("original_orientation")
    return replace(found, orientation=exif.orientation(original)) if original else found


def _read_own(image: ImageFile.ImageFile) -> OwnMetadata:
    try:
        tags = image.getexif()
    except Exception:
        tags = None
    return own_metadata.from_pillow(image, tags)


def _check_webp(data: bytes, max_pixels: int) -> None:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise PhotoProblem("truncated", "the file is shorter than its header says")
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        check_pixels(width, height, max_pixels)


def _check_png(data: bytes) -> None:
    """Compare the checksums of the pixel data, which Pillow does not."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if name == b"IEND" or end + 4 > len(data):
            return
        if name == b"IDAT":
            checksum = zlib.crc32(memoryview(data)[at + 4 : end])
            if checksum != int.from_bytes(data[end : end + 4], "big"):
                raise PhotoProblem("corrupt", "PNG: wrong checksum of pixel data")
        at = end + 4


_CUT_OFF = re.compile(r"truncat|end of file|premature|unexpected end|not enough", re.I)
_COUNT = re.compile(r" \(\d+ bytes not processed\)")
_UNKNOWN = re.compile(r"unsupported|unknown|cannot handle|not implemented|unrecognized", re.I)


@contextmanager
def _problems(found: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a PhotoProblem."""
    try:
        yield
    except PhotoProblem:
        raise
    except MemoryError as error:
        raise PhotoProblem("out_of_memory", f"{found}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise PhotoProblem("too_many_pixels", f"{found}: {error}") from error
    except Exception as error:
        message = _COUNT.sub("", str(error)) or type(error).__name__
        if isinstance(error, SyntaxError) and "driver" in message:
            message = "the header makes no sense"
        ended = isinstance(error.__cause__, IndexError | EOFError | struct.error)
        if ended or isinstance(error, EOFError) or _CUT_OFF.search(message):
            raise PhotoProblem("truncated", f"{found}: {message}") from error
        if _UNKNOWN.search(message):
            raise PhotoProblem("unsupported_format", f"{found}: {message}") from error
        raise PhotoProblem("corrupt", f"{found}: {message}") from error


# --------------------------------------------------------------------------------------- colours


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in a mode that can be resized: L, RGB, RGBA or CMYK."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _grey_from_numbers(image)
    if mode == "LAB":
        return _lab_to_rgb(image)
    transparent = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBa")
    if mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        transparent = True
    if transparent and mode not in ("RGBA", "CMYK"):
        return image.convert("RGBA")
    if mode in ("L", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _grey_from_numbers(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey scaled to 8 bits; Pillow's own conversion clips at 255.

    16-bit files use their full range. 32-bit and float files say nowhere what white is: the
    smallest of 1, 255, 65535 that holds all values, else their own range.
    """
    import numpy as np

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    white = next((w for w in (1.0, 255.0, 65535.0) if high <= w), None)
    if image.mode == "I" and white == 1.0:
        white = 255.0
    if low < 0 or white is None:
        values, white = values - low, max(high - low, 1e-30)
    return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """L, RGB, RGBA (on white) or CMYK as RGB, through the embedded profile if it makes sense."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    transform = _transform(icc, image.mode) if icc else None
    if transform is not None:
        image = transform.apply(image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if image.info:
        image = image.copy() if isinstance(image, ImageFile.ImageFile) else image
        image.info = {}  # or comments and profiles would end up in a thumbnail
    return image


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}


@functools.lru_cache(maxsize=16)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From an embedded profile to sRGB; None if it is sRGB, broken, or for other colours."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if profile.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(profile, _srgb(), mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except Exception as error:  # a broken profile is no reason to refuse a photo
        log.info("colour profile ignored: %s", error)
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether 6 x 6 x 6 colours stay the same; there are many sRGB profiles of many names."""
    steps = range(0, 256, 51)
    colours = bytes(c for r in steps for g in steps for b in steps for c in (r, g, b))
    before = Image.frombytes("RGB", (36, 6), colours)
    after = transform.apply(before).tobytes()
    return all(abs(x - y) <= 1 for x, y in zip(colours, after, strict=True))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB").apply(image)


# ------------------------------------------------------------------------------------------ RAW


def _decode_raw(
    data: bytes,
    found: str,
    max_pixels: int,
    long_edge: int | None,
    path: Path | None,
    exiftool: ExifTool | None,
) -> Photo:
    """A RAW photo by its largest embedded preview, else (or if that is too small) developed."""
    preview = None
    if ExifTool.available():
        with _as_file(data, path) as file:
            if exiftool is not None:
                preview = _preview(exiftool, file, found, max_pixels, long_edge)
            else:
                with ExifTool() as own:
                    preview = _preview(own, file, found, max_pixels, long_edge)
    if preview is not None:
        enough = fit(preview.width, preview.height, long_edge or _PREVIEW)
        if max(preview.image.size) >= max(enough):
            return preview
    try:
        return _develop(data, found, max_pixels, long_edge, preview)
    except PhotoProblem:
        raise
    except Exception as error:
        if preview is not None:
            return preview
        detail = error.args[0] if error.args else type(error).__name__
        detail = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
        raise ValueError(f"no usable preview, and the RAW decoder says: {detail}") from error


@contextmanager
def _as_file(data: bytes, path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="phototagger-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


_BINARY = re.compile(r"\(Binary data (\d+) bytes")


def _preview(
    exiftool: ExifTool, file: Path, found: str, max_pixels: int, long_edge: int | None
) -> Photo | None:
    """The largest embedded JPEG that can be decoded, with the dimensions of the RAW photo."""
    with exiftool.link(file, f".{found.lower()}") as link:
        wanted = ("-G1", "-ImageSize#", "-Preview:all", *exif.EXIFTOOL_TAGS)
        wanted += own_metadata.EXIFTOOL_TAGS
        tags = exiftool.tags(link, *wanted)
        has_xmp = tags.pop("XMP:XMP", None) is not None
        packet = exiftool.execute("-b", "-XMP", str(link)) if has_xmp else b""
        fields, own = exif.from_exiftool(tags), own_metadata.from_exiftool(tags, packet)
        width, height = _image_size(tags)
        if width and height:
            check_pixels(width, height, max_pixels)
        sizes = [
            (int(match[1]), name)
            for name, value in tags.items()
            if isinstance(value, str) and (match := _BINARY.match(value))
        ]
        for _, name in sorted(sizes, reverse=True):
            jpeg = exiftool.execute("-b", f"-{name}", str(link))
            if not jpeg.startswith(b"\xff\xd8\xff"):
                continue
            try:
                shown = _decode_file(jpeg, "JPEG", max_pixels, long_edge)
            except PhotoProblem:
                continue
            return replace(_as_raw(shown, fields, width, height, found), own=own)
    return None


def _image_size(tags: dict[str, Any]) -> tuple[int, int]:
    numbers = re.findall(r"\d+", str(tags.get("Composite:ImageSize", "")))
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)


def _as_raw(shown: Photo, fields: Exif, width: int, height: int, found: str) -> Photo:
    """A preview as the photo: cameras differ in whether they turned the preview and tagged it."""
    image, orientation = shown.image, fields.orientation
    sideways = orientation >= 5
    if shown.exif.orientation == 1:
        portrait = image.height > image.width
        already = sideways and portrait and width > height
        image = image if already else _turn(image, orientation)
    if not (width and height):
        return Photo(image, *(shown.width, shown.height), found, fields)
    if sideways:
        width, height = height, width
    return Photo(image, width, height, found, fields)


def _develop(
    data: bytes, found: str, max_pixels: int, long_edge: int | None, preview: Photo | None
) -> Photo:
    """Demosaic with LibRaw, at half size where that will do; it turns the picture itself."""
    import rawpy

    with _room((1, len(data)), found), rawpy.imread(BytesIO(data)) as raw:
        width, height = raw.sizes.width, raw.sizes.height
        check_pixels(width, height, max_pixels)
        if raw.sizes.flip in (5, 6):
            width, height = height, width
        half = long_edge is None or max(width, height) >= 2 * long_edge
        pixels = raw.postprocess(half_size=half, use_camera_wb=True, output_bps=8)
    image = Image.fromarray(pixels)
    target = fit(*image.size, long_edge)
    if target != image.size:
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    if preview is not None:
        return replace(preview, image=image)
    return Photo(image, width, height, found, *_raw_metadata(data))


def _raw_metadata(data: bytes) -> tuple[Exif, OwnMetadata]:
    """Most RAW formats are TIFF enough for Pillow's EXIF reader."""
    tags = Image.Exif()
    try:
        tags.load(data)
    except Exception:
        return Exif(), OwnMetadata()
    return exif.from_pillow(tags), own_metadata.from_exif(tags)
