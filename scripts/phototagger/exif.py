"""The EXIF fields that records carry, from Pillow or from ExifTool, in one form.

Cameras, phones and editors write anything into EXIF: nothing here raises, and what makes no sense
is None.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# Tag numbers of TIFF/EXIF 2.32
_MAKE, _MODEL, _ORIENTATION = 0x010F, 0x0110, 0x0112
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_DATE_TIME_ORIGINAL, _OFFSET_TIME_ORIGINAL, _LENS_MODEL = 0x9003, 0x9011, 0xA434
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_DATE = re.compile(r"(\d{4})[:/.-](\d\d)[:/.-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_LONGEST = 200


@dataclass(frozen=True)
class Exif:
    """`gps`: degrees, north and east positive. `taken_at`: ISO 8601, local time of the camera."""

    orientation: int = 1  # 1 to 8; 1 if absent or nonsense
    taken_at: str | None = None
    camera: str | None = None
    lens: str | None = None
    gps: dict[str, float] | None = None


def from_pillow(exif: Any) -> Exif:
    """The fields of a `PIL.Image.Exif`."""
    details, gps = _ifd(exif, _EXIF_IFD), _ifd(exif, _GPS_IFD)
    return Exif(
        orientation(_get(exif, _ORIENTATION)),
        taken_at(_get(details, _DATE_TIME_ORIGINAL), _get(details, _OFFSET_TIME_ORIGINAL)),
        camera(_get(exif, _MAKE), _get(exif, _MODEL)),
        text(_get(details, _LENS_MODEL)),
        position(
            _degrees(_get(gps, _LATITUDE), _get(gps, _LATITUDE_REF), "NS"),
            _degrees(_get(gps, _LONGITUDE), _get(gps, _LONGITUDE_REF), "EW"),
        ),
    )


# What to ask ExifTool for; `#` = the number, not its description
EXIFTOOL_TAGS = (
    "-Make",
    "-Model",
    "-LensModel",
    "-LensID",
    "-Orientation#",
    "-DateTimeOriginal",
    "-OffsetTimeOriginal",
    "-Composite:GPSLatitude#",
    "-Composite:GPSLongitude#",
)


def from_exiftool(tags: Mapping[str, Any]) -> Exif:
    """The fields of what ExifTool's JSON says for `EXIFTOOL_TAGS`, with or without group names."""
    plain: dict[str, Any] = {}
    for name, value in tags.items():
        plain.setdefault(name.rpartition(":")[2], value)
    lens = text(plain.get("LensModel")) or text(plain.get("LensID"))
    return Exif(
        orientation(plain.get("Orientation")),
        taken_at(plain.get("DateTimeOriginal"), plain.get("OffsetTimeOriginal")),
        camera(plain.get("Make"), plain.get("Model")),
        None if lens and lens.startswith("Unknown") else lens,
        position(_number(plain.get("GPSLatitude")), _number(plain.get("GPSLongitude"))),
    )


def orientation(value: object) -> int:
    number = _number(value)
    return int(number) if number in range(1, 9) else 1


def taken_at(date: object, offset: object = None) -> str | None:
    """`2024:05:01 12:34:56` and `+02:00` as `2024-05-01T12:34:56+02:00`; None if no such moment."""
    match = _DATE.match(text(date) or "")
    if not match:
        return None
    try:
        moment = datetime(*(int(part) for part in match.groups()))
    except ValueError:
        return None
    return moment.isoformat() + _offset(offset)


def _offset(value: object) -> str:
    given = text(value) or ""
    if given == "Z":
        return "+00:00"
    match = _OFFSET.fullmatch(given)
    if not match or int(match[2]) > 14 or int(match[3]) > 59:
        return ""
    return f"{match[1]}{match[2]}:{match[3]}"


def camera(make: object, model: object) -> str | None:
    """Make and model, not doubled: `NIKON CORPORATION`, `NIKON D850` is `NIKON D850`."""
    maker, name = text(make), text(model)
    if not (maker and name):
        return maker or name
    doubled = name.split()[0].casefold() == maker.split()[0].casefold()
    return name if doubled else f"{maker} {name}"


def text(value: object) -> str | None:
    """A text field without padding and control characters; None if nothing is left.

    EXIF says ASCII, Pillow reads Latin-1, and most who write more than ASCII write UTF-8.
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    try:
        value = value.encode("latin-1").decode()
    except UnicodeError:
        value = value.encode(errors="replace").decode()
    value = "".join(c if c.isprintable() else " " for c in value.partition("\0")[0])
    return " ".join(value.split())[:_LONGEST] or None


def position(lat: float | None, lon: float | None) -> dict[str, float] | None:
    """Degrees rounded to 6 decimals (11 cm); None outside the globe and at exactly 0, 0.

    0, 0 is what receivers without a fix write.
    """
    if lat is None or lon is None or not (math.isfinite(lat) and math.isfinite(lon)):
        return None
    if abs(lat) > 90 or abs(lon) > 180 or (lat == 0 and lon == 0):
        return None
    return {"lat": round(lat, 6) + 0.0, "lon": round(lon, 6) + 0.0}  # + 0.0: no -0.0


def _degrees(value: object, ref: object, signs: str) -> float | None:
    letter = (text(ref) or "")[:1].upper()
    if not isinstance(value, tuple | list) or not value or not letter or letter not in signs:
        return None
    parts = [_number(part) for part in value[:3]]
    if any(part is None or not math.isfinite(part) or part < 0 for part in parts):
        return None
    degrees = sum(part / 60**power for power, part in enumerate(parts) if part is not None)
    return -degrees if letter == signs[1] else degrees


def _number(value: object) -> float | None:
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception:  # a rational of Pillow's may raise more than ValueError
        return None


def _get(tags: Any, tag: int) -> object:
    try:
        return tags.get(tag)
    except Exception:
        return None


def _ifd(exif: Any, tag: int) -> Mapping[int, Any]:
    try:
        return exif.get_ifd(tag)
    except Exception:
        return {}
