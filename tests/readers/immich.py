"""Immich: ExifTool's tags of photo and sidecar, joined by their bare names; the sidecar wins.

After server/src/services/metadata.service.ts: `getExifTags`, `getTagList`, and the description of
`handleMetadataExtraction`. ExifTool is called as exiftool-vendored calls it.
"""

import json
import subprocess
from pathlib import Path

from readers import Seen, sidecar


def see(photo: Path) -> Seen:
    beside = sidecar(photo)
    tags = _tags(photo) | (_tags(beside) if beside else {})
    description = tags.get("ImageDescription") or tags.get("Description") or ""
    return Seen(
        tuple(_tag_list(tags)), _string(description).strip(), _string(tags.get("Title", ""))
    )


def _tag_list(tags: dict) -> list[str]:
    if found := _list(tags, "TagsList"):
        return found
    if found := _list(tags, "HierarchicalSubject"):
        return ["/".join(part.replace("/", "|") for part in path.split("|")) for path in found]
    return _list(tags, "Keywords")


def _tags(path: Path) -> dict:
    command = ["exiftool", "-config", "", "-m", "-fast", "-json", "-struct", path]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return json.loads(output, parse_int=str, parse_float=str)[0]


def _list(tags: dict, name: str) -> list[str]:
    value = tags.get(name, [])
    return [_string(item) for item in (value if isinstance(value, list) else [value])]


def _string(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
