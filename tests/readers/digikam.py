"""digiKam: of each list of fields the first that is not empty, read by its own library, Exiv2.

After core/libs/metadataengine/dmetadata/dmetadatasettingscontainer.cpp. With "Read from sidecar
files", a photo that has a sidecar is what the sidecar says, and nothing else.
"""

from pathlib import Path

import pyexiv2

from readers import Seen, sidecar

pyexiv2.set_log_level(4)

# namespace -> what separates the levels of a path, "" where there are none
KEYWORDS = {
    "Xmp.digiKam.TagsList": "/",
    "Xmp.MicrosoftPhoto.LastKeywordXMP": "/",
    "Xmp.lr.hierarchicalSubject": "|",
    "Xmp.mediapro.CatalogSets": "|",
    "Xmp.dc.subject": "",
    "Iptc.Application2.Keywords": "",
}
DESCRIPTIONS = (
    "Xmp.dc.description",
    "Exif.Photo.UserComment",
    "Xmp.tiff.ImageDescription",
    "Exif.Image.ImageDescription",
    "Iptc.Application2.Caption",
)


def see(photo: Path, *, read_sidecars: bool = True) -> Seen:
    beside = sidecar(photo) if read_sidecars else None
    tags = everything(beside or photo)
    descriptions = (_text(tags.get(name)) for name in DESCRIPTIONS)
    description = next(filter(None, descriptions), "")
    return Seen(_keywords(tags), description, _text(tags.get("Xmp.dc.title")))


def everything(path: Path) -> dict:
    """All tags of a file by Exiv2's key."""
    with pyexiv2.Image(str(path)) as image:
        return image.read_exif() | image.read_iptc() | image.read_xmp()


def _keywords(tags: dict) -> tuple[str, ...]:
    for name, separator in KEYWORDS.items():
        found = tags.get(name) or []
        if found := found if isinstance(found, list) else [found]:
            return tuple(v.replace(separator, "/") if separator else v for v in found)
    return ()


def _text(value: object) -> str:
    if isinstance(value, dict):  # 'lang="x-default"' -> text
        return value.get('lang="x-default"') or next(iter(value.values()), "")
    return str(value or "")
