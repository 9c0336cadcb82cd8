import struct
from io import BytesIO

import numpy as np
import pytest
from odd_photos import CORNERS, STORED, display_p3, dng, encoded, exif, noisy, picture
from PIL import Image, ImageCms, ImageOps

from phototagger import images
from phototagger.exiftool import ExifTool
from phototagger.problems import PhotoProblem

LIMIT = 1 << 28


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    return [
        image.getpixel((w * (1 + 2 * (i % 2)) // 4, h * (1 + i // 2 * 2) // 4)) for i in range(4)
    ]


def deviation(image: Image.Image) -> int:
    """Largest difference of a channel between the corners and what they should be."""
    pairs = zip(corners(image), CORNERS, strict=True)
    return max(abs(a - b) for seen, meant in pairs for a, b in zip(seen, meant, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int, kind: str) -> None:
    data = encoded(STORED[orientation](picture(600, 400)), kind, exif=exif(orientation))
    photo = images.decode(data, max_pixels=LIMIT, long_edge=120)
    assert (photo.width, photo.height) == (600, 400)
    assert photo.exif.orientation == orientation
    assert photo.image.size == (120, 80)
    assert deviation(photo.image) <= 12


def test_the_corpus_stores_orientations_as_the_standard_says() -> None:
    for orientation, stored in STORED.items():
        tagged = Image.open(BytesIO(encoded(stored(picture()), "PNG", exif=exif(orientation))))
        assert ImageOps.exif_transpose(tagged).tobytes() == picture().tobytes()


def test_colour_profile_is_converted_as_lcms_does() -> None:
    profile = display_p3()
    red = Image.new("RGB", (64, 64), (200, 30, 30))
    photo = images.decode(encoded(red, "PNG", icc_profile=profile), max_pixels=LIMIT)
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    direct = ImageCms.profileToProfile(red, source, ImageCms.createProfile("sRGB"))
    assert photo.image.tobytes() == direct.tobytes()
    assert photo.image.getpixel((0, 0)) != (200, 30, 30)


def test_srgb_profile_is_left_alone() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noisy(32, 32)
    photo = images.decode(encoded(image, "PNG", icc_profile=srgb), max_pixels=LIMIT)
    assert photo.image.tobytes() == image.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_not_clipped(order: str) -> None:
    values = np.linspace(0, 65535, 256).round().astype("u2")
    mode = "I;16" if order == "<" else "I;16B"
    raw = values.astype(order + "u2").tobytes()
    data = encoded(Image.frombytes(mode, (16, 16), raw), "TIFF")
    photo = images.decode(data, max_pixels=LIMIT)
    assert np.asarray(photo.image)[..., 0].ravel().tolist() == list(range(256))


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_grey_is_scaled(white: float) -> None:
    values = (np.arange(256, dtype=np.float32) / 255 * white).reshape(16, 16)
    photo = images.decode(encoded(Image.fromarray(values), "TIFF"), max_pixels=LIMIT)
    assert np.asarray(photo.image)[..., 1].ravel().tolist() == list(range(256))


def test_transparency_is_shown_on_white() -> None:
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 128))
    photo = images.decode(encoded(image, "PNG"), max_pixels=LIMIT)
    assert photo.image.getpixel((5, 5)) == (255, 127, 127)


def test_dct_scaling_is_close_to_a_full_decode() -> None:
    """36 dB is where vipsthumbnail is on pictures full of detail."""
    smooth = noisy(75, 50).resize((3000, 2000), Image.Resampling.BICUBIC)
    data = encoded(smooth, quality=92)
    photo = images.decode(data, max_pixels=LIMIT, long_edge=256)
    full = Image.open(BytesIO(data)).resize(photo.image.size, Image.Resampling.LANCZOS)
    error = np.asarray(photo.image, float) - np.asarray(full, float)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 36


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((6000, 4000), 512, (512, 341)),
        ((4000, 6000), 512, (341, 512)),
        ((300, 200), 512, (300, 200)),
        ((20000, 1), 512, (512, 1)),
        ((513, 512), 512, (512, 511)),
        ((100, 50), None, (100, 50)),
    ],
)
def test_fit(size: tuple[int, int], edge: int | None, expected: tuple[int, int]) -> None:
    assert images.fit(*size, edge) == expected


def test_pixel_limit_is_exact_and_spares_no_format() -> None:
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"):
        data = encoded(picture(100, 50), kind)
        assert images.decode(data, max_pixels=5000).width == 100
        with pytest.raises(PhotoProblem) as caught:
            images.decode(data, max_pixels=4999)
        assert caught.value.problem.kind == "too_many_pixels"


def test_more_pixels_than_pillows_own_limit() -> None:
    data = encoded(Image.new("1", (20000, 10000)), "PNG")  # 200 million
    photo = images.decode(data, max_pixels=1 << 28, long_edge=100)
    assert photo.image.size == (100, 50)


@pytest.mark.parametrize("shared", [True, False])
def test_raw_by_its_preview(shared: bool) -> None:
    preview = picture(1500, 1000)
    data = dng(encoded(preview), 3000, 2000, orientation=3)
    with ExifTool() as exiftool:
        process = exiftool if shared else None
        photo = images.decode(data, max_pixels=LIMIT, long_edge=200, exiftool=process)
    assert (photo.width, photo.height, photo.format) == (3000, 2000, "DNG")
    assert photo.exif.camera == "Canon EOS R5"
    assert deviation(photo.image.transpose(Image.Transpose.ROTATE_180)) <= 12


def test_raw_whose_preview_is_too_small_is_developed() -> None:
    data = dng(encoded(picture(60, 40)), 600, 400)
    photo = images.decode(data, max_pixels=LIMIT, long_edge=200)
    assert photo.image.size == (200, 133)
    assert len(set(corners(photo.image))) == 1  # the grey sensor, not the coloured preview


@pytest.mark.parametrize(
    ("maker", "expected"),
    [(b"NIKON CORPORATION\0", "NEF"), (b"SONY\0", "ARW"), (b"Acme\0", "TIFF")],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_raw_formats_built_on_tiff(maker: bytes, expected: str, order: str) -> None:
    entries = [
        struct.pack(order + "HHLL", 0x00FE, 4, 1, 1),
        struct.pack(order + "HHLL", 0x010F, 2, len(maker), 8 + 2 + 36 + 4),
        struct.pack(order + "HHLL", 0x014A, 4, 1, 8),
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HLH", 42, 8, 3)
    assert images.sniff(head + b"".join(entries) + bytes(4) + maker) == expected


def test_no_traces_of_the_file_in_the_image() -> None:
    data = encoded(picture(), comment=b"secret", icc_profile=display_p3(), exif=exif(3))
    assert images.decode(data, max_pixels=LIMIT).image.info == {}


def test_only_the_middle_of_a_very_long_picture():
    assert images.middle(Image.new("RGB", (60000, 2)), 8).size == (16, 2)
    assert images.middle(Image.new("RGB", (3, 9000)), 8).size == (3, 24)
    picture = Image.new("RGB", (1600, 200))
    assert images.middle(picture, 8) is picture
