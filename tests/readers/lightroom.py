"""Lightroom Classic and Bridge: `IMG.xmp` for proprietary raw files, else what is embedded.

After Adobe's help; embedded keywords and descriptions are joined by the rules of the Metadata
Working Group, which ExifTool implements.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from readers import Seen, rdf, sidecar

_RAW = {".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"}  # not .dng


@dataclass(frozen=True)
class SeenByLightroom(Seen):
    hierarchy: tuple[str, ...] = ()
    headline: str = ""


def see(photo: Path) -> SeenByLightroom:
    if photo.suffix.lower() not in _RAW:
        return _embedded(photo)
    beside = sidecar(photo, names=("stem",))
    return _seen(rdf.properties(beside.read_bytes())) if beside else SeenByLightroom()


def _embedded(photo: Path) -> SeenByLightroom:
    command = ["exiftool", "-config", "", "-m", "-use", "MWG", "-json", "-MWG:all", photo]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    tags = json.loads(output, parse_int=str, parse_float=str)[0]
    seen = _seen(rdf.embedded(photo))
    keywords = tags.get("Keywords", [])
    keywords = keywords if isinstance(keywords, list) else [keywords]
    description = str(tags.get("Description", ""))
    return SeenByLightroom(tuple(keywords), description, seen.title, seen.hierarchy, seen.headline)


def _seen(found: dict[str, rdf.Value]) -> SeenByLightroom:
    def first(name: str) -> str:
        return next(iter(rdf.texts(found.get(name))), "")

    return SeenByLightroom(
        tuple(rdf.texts(found.get("dc:subject"))),
        first("dc:description"),
        first("dc:title"),
        tuple(rdf.texts(found.get("lr:hierarchicalSubject"))),
        first("photoshop:Headline"),
    )
