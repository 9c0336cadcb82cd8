from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phototagger import exif

DETAILS, GPS = 0x8769, 0x8825


def reread(made: Image.Exif) -> Image.Exif:
    """As it comes back from a file."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=made)
    return Image.open(buffer).getexif()


def test_all_fields_of_a_camera() -> None:
    made = Image.Exif()
    made[0x010F], made[0x0110], made[0x0112] = "Canon\0", "Canon EOS R5  ", 6
    made.get_ifd(DETAILS).update(
        {0x9003: "2024:05:01 12:34:56", 0x9011: "+02:00", 0xA434: "RF24-70mm F2.8 L IS USM"}
    )
    made.get_ifd(GPS).update({1: "S", 2: (33.0, 51.0, 24.5), 3: "E", 4: (151.0, 12.0, 54.0)})
    assert exif.from_pillow(reread(made)) == exif.Exif(
        orientation=6,
        taken_at="2024-05-01T12:34:56+02:00",
        camera="Canon EOS R5",
        lens="RF24-70mm F2.8 L IS USM",
        gps={"lat": -33.856806, "lon": 151.215},
    )


def test_exiftool_and_pillow_agree() -> None:
    tags = {
        "IFD0:Make": "SONY",
        "IFD0:Model": "ILCE-7M3",
        "IFD0:Orientation": 8,
        "ExifIFD:DateTimeOriginal": "2020:01:02 03:04:05",
        "ExifIFD:OffsetTimeOriginal": "Z",
        "ExifIFD:LensModel": "FE 35mm F1.8",
        "Composite:GPSLatitude": 51.5,
        "Composite:GPSLongitude": -0.1234567,
    }
    assert exif.from_exiftool(tags) == exif.Exif(
        8,
        "2020-01-02T03:04:05+00:00",
        "SONY ILCE-7M3",
        "FE 35mm F1.8",
        {"lat": 51.5, "lon": -0.123457},
    )


@pytest.mark.parametrize(
    ("date", "offset", "expected"),
    [
        ("2024:02:29 00:00:00", None, "2024-02-29T00:00:00"),
        ("2024-05-01T12:34:56.789", "-03:30", "2024-05-01T12:34:56-03:30"),
        ("2024:05:01 12:34:56", "+99:00", "2024-05-01T12:34:56"),
        ("2023:02:29 00:00:00", None, None),
        ("0000:00:00 00:00:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("2024:05:01", None, None),
        (b"2024:05:01 12:34:56\0", b"+02:00\0", "2024-05-01T12:34:56+02:00"),
        (20240501, None, None),
        (None, "+02:00", None),
    ],
)
def test_taken_at(date: object, offset: object, expected: str | None) -> None:
    assert exif.taken_at(date, offset) == expected


@pytest.mark.parametrize(
    ("make", "model", "expected"),
    [
        ("NIKON CORPORATION", "NIKON D850", "NIKON D850"),
        ("Canon", "canon PowerShot", "canon PowerShot"),
        ("Apple", "iPhone 15 Pro", "Apple iPhone 15 Pro"),
        ("", "Pixel 8", "Pixel 8"),
        ("Google", None, "Google"),
        ("\0\0", "  ", None),
        ("Fabri\x07que d\u00c3\u00a9", "X", "Fabri que dé X"),  # UTF-8 read as Latin-1
    ],
)
def test_camera(make: object, model: object, expected: str | None) -> None:
    assert exif.camera(make, model) == expected


@pytest.mark.parametrize(
    ("lat", "lon"), [(91, 0), (0, 181), (0, 0), (float("nan"), 1), (None, 1), (1, None)]
)
def test_positions_that_are_none(lat: float | None, lon: float | None) -> None:
    assert exif.position(lat, lon) is None


@pytest.mark.parametrize(
    "gps",
    [
        {1: "N", 2: (1.0, 2.0, 3.0)},
        {2: (1.0, 2.0, 3.0), 4: (1.0, 2.0, 3.0)},
        {1: "X", 2: (1.0, 2.0, 3.0), 3: "E", 4: (1.0, 2.0, 3.0)},
        {1: "N", 2: (95.0, 2.0, 3.0), 3: "E", 4: (1.0, 2.0, 3.0)},
        {1: "N", 2: 5.0, 3: "E", 4: "text"},
    ],
)
def test_gps_nonsense_is_none(gps: dict[int, object]) -> None:
    made = Image.Exif()
    made._ifds[GPS] = gps
    assert exif.from_pillow(made).gps is None


def test_rational_with_zero_denominator() -> None:
    made = Image.Exif()
    made.get_ifd(GPS).update(
        {1: "N", 2: ((1, 1), (0, 0), (0, 0)), 3: "E", 4: ((1, 1), (1, 1), (1, 1))}
    )
    assert exif.from_pillow(made).gps is None


VALUES = st.one_of(
    st.none(), st.text(), st.binary(), st.floats(), st.integers(), st.tuples(st.floats(), st.text())
)


@given(st.dictionaries(st.sampled_from([0x010F, 0x0110, 0x0112]), VALUES), VALUES, VALUES, VALUES)
def test_never_raises(tags: dict[int, object], date: object, lens: object, gps: object) -> None:
    made = Image.Exif()
    made._data.update(tags)
    made._ifds[DETAILS] = {0x9003: date, 0x9011: date, 0xA434: lens}
    made._ifds[GPS] = {1: lens, 2: gps, 3: lens, 4: gps}
    found = exif.from_pillow(made)
    assert 1 <= found.orientation <= 8
    for text in (found.camera, found.lens):
        assert text is None or (text.isprintable() and text == text.strip() != "")
