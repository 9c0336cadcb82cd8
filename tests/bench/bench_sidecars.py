"""Sidecars per second of `apply`, and of the rule that proposes them, against other writers.

`apply` is all of it: hashing the photos, reading, merging, writing, reading back, journal,
fsync. The others only write the same values: ExifTool and exiv2 with one process per photo (both
can write many files at once, but then the same values into each), and Exiv2's library in a process
that runs already.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyexiv2
from readers.darkroom import EMPTY, SWITCHES, Darkroom
from sidecars import sidecars

from phototagger import xmp

PHOTOS = 600
SINGLE = 20  # photos for the peers that start a process for each
_EXIV2_KEYS = {
    "XMP-dc:Subject": ("Xmp.dc.subject", "XmpBag"),
    "XMP-lr:HierarchicalSubject": ("Xmp.lr.hierarchicalSubject", "XmpBag"),
    "XMP-digiKam:TagsList": ("Xmp.digiKam.TagsList", "XmpSeq"),
    "XMP-dc:Description": ("Xmp.dc.description", "LangAlt"),
    "XMP-tiff:ImageDescription": ("Xmp.tiff.ImageDescription", "LangAlt"),
    "XMP-photoshop:Headline": ("Xmp.photoshop.Headline", "XmpText"),
    "XMP-photoshop:CaptionWriter": ("Xmp.photoshop.CaptionWriter", "XmpText"),
}

Row = dict[str, object]
Write = Callable[[Path, xmp.Values], None]


def _exiftool(path: Path, values: xmp.Values) -> None:
    arguments = [f"-{tag}={'##'.join(items)}" for tag, items in values.items()]
    command = ["exiftool", "-sep", "##", "-overwrite_original", *arguments, path]
    subprocess.run(command, check=True, capture_output=True)


def _exiv2(path: Path, values: xmp.Values) -> None:
    if not path.exists():
        path.write_text(EMPTY)
    commands = [f"-Mdel {_EXIV2_KEYS[tag][0]}" for tag in values]
    for tag, items in values.items():
        key, kind = _EXIV2_KEYS[tag]
        commands += [f"-Mset {key} {kind} {item}" for item in items]
    subprocess.run(["exiv2", *commands, path], check=True, capture_output=True)


def _pyexiv2(path: Path, values: xmp.Values) -> None:
    if not path.exists():
        path.write_text(EMPTY)
    tags = {}
    for tag, items in values.items():
        key, kind = _EXIV2_KEYS[tag]
        text = {'lang="x-default"': items[0]} if kind == "LangAlt" else items[0]
        tags[key] = items if kind in ("XmpBag", "XmpSeq") else text
    with pyexiv2.Image(str(path)) as image:
        image.modify_xmp(dict.fromkeys(tags))
        image.modify_xmp(tags)


PEERS: dict[str, tuple[Write, int]] = {
    "one ExifTool per photo": (_exiftool, SINGLE),
    "one exiv2 per photo": (_exiv2, 10 * SINGLE),
    "Exiv2's library, no process": (_pyexiv2, PHOTOS),
}


def _peers(folder: Path, published: list[Path]) -> dict[str, float]:
    """Sidecars per second of each peer, writing the values of `published` into `folder`."""
    values = [xmp.parse(path.read_bytes()).values for path in published]
    rates = {}
    for name, (write, photos) in PEERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        for number in range(photos):
            write(folder / name / f"{number}.xmp", values[number % len(values)])
        rates[name] = photos / (time.perf_counter() - start)
    return rates


def _apply(room: Darkroom, action: str) -> float:
    """Photos per second."""
    start = time.perf_counter()
    told = room.apply()
    seconds = time.perf_counter() - start
    assert set(told.values()) == {action}, set(told.values())
    return len(told) / seconds


def _answers(version: int) -> dict[str, object]:
    words = [f"word {version}-{n}" for n in range(5)]
    return {
        "caption": f"A boat, version {version}",
        "description": f"A boat lies in the harbour, version {version}.",
        "keywords": {word: ["thing", f"group {n}", word] for n, word in enumerate(words)},
    }


def _publishing(room: Darkroom, tmp: Path) -> list[Row]:
    rows = []
    for version, action in ((1, "create"), (2, "update")):
        room.propose(**_answers(version))
        ours = _apply(room, action)
        peers = _peers(tmp / "peers", sorted(room.photos.glob("*.xmp")))
        for name, theirs in peers.items():
            rows.append(_row(f"apply, {action}, against {name}", ours, theirs))
    rows.append(_row("apply, nothing to do", _apply(room, "keep"), None))
    return rows


def _row(name: str, ours: float, theirs: float | None) -> Row:
    ratio = ours / theirs if theirs else None
    row = {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio}
    return row | {"unit": "sidecars/s", "goal": None}


# ------------------------------------------------------------------------------------- proposing


def _proposing(room: Darkroom, tmp: Path) -> list[Row]:
    """The rule `sidecars`: nothing is kept the first time, everything the second."""
    shards = sorted((room.results / "records").glob("*.jsonl"))
    lines = [line for shard in shards for line in shard.read_text().splitlines()]
    # No two photos have equal keywords
    records = [_own_words(json.loads(line), number) for number, line in enumerate(lines)]
    cold, warm = (_proposed(room, tmp / "all", records) for _ in range(2))
    bare = [record | {"caption": None, "description": None} for record in records]
    keywords = _proposed(room, tmp / "keywords", bare)
    single = _peers(tmp / "proposed", sorted((tmp / "all/sidecars").glob("*.xmp")))
    theirs = single["one ExifTool per photo"]
    return [
        _row("proposals", cold, None) | {"goal": ">= 300 sidecars/s"},
        _row("proposals, keywords only", keywords, None),
        _row("proposals against one ExifTool per photo", cold, theirs) | {"goal": ">= 30x"},
        _row("proposals, values known, against the same", warm, theirs),
    ]


def _proposed(room: Darkroom, folder: Path, records: list[dict]) -> float:
    """Photos per second, as the rule with its two threads."""
    folder.mkdir(exist_ok=True)
    listing = folder / "records.jsonl"
    listing.write_text("".join(json.dumps(record) + "\n" for record in records))
    start = time.perf_counter()
    sidecars(
        listing,
        folder / "manifest.tsv",
        machine=room.machine,
        folder=folder / "sidecars",
        fields=SWITCHES,
        threads=2,
    )
    return len(records) / (time.perf_counter() - start)


def _own_words(record: dict, number: int) -> dict:
    for keyword in record["keywords"]:
        keyword["keyword"] += f" {number}"
        keyword["path"][-1] = keyword["keyword"]
    return record


def run(tmp: Path) -> list[Row]:
    """Rows of the benchmark table; everything is written below `tmp`."""
    room = Darkroom(tmp)
    for number in range(PHOTOS):
        room.photo(f"{number:04}.jpg")
    return _publishing(room, tmp) + _proposing(room, tmp)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for row in run(Path(folder)):
            print(row)
