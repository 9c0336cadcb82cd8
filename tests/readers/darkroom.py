"""Photos with what people and their programs said about them, published by photo-tagger."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyexiv2
import tables_for_tests
import yaml
from odd_photos import encoded, noisy
from sidecars import sidecars
from thumbs import thumbs

from phototagger import CLONE, merge, publish
from phototagger.files import write_atomic
from phototagger.machine import Machine
from phototagger.plan import Roots, ScanOptions, format_listing, resolve_roots, scan
from phototagger.tables import read_table

RUN_ID = tables_for_tests.RUN_ID
EXTENSIONS = (".jpg", ".nef")
SWITCHES = yaml.safe_load((CLONE / "config/config.yaml").read_text("utf-8"))["metadata"]["fields"]

# What the model answers about every photo
CAPTION = 'A red boat, "Größe 東京" & <more>; see.'
DESCRIPTION = "First line: a boat 🚤.\nSecond line: the harbour; قارب أحمر."
KEYWORDS = {"Harbour": ["Place", "Harbour"], "red boat": ["red boat"], "港": ["Place", "港"]}


@dataclass(frozen=True)
class Human:
    """What people said about a photo."""

    words: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  # levels joined with bars
    description: str | None = None

    @property
    def leaves(self) -> set[str]:
        return {*self.words, *(path.rpartition("|")[2] for path in self.paths)}


@dataclass
class Darkroom:
    """A folder of photos, and the work directory from which their sidecars are published."""

    folder: Path  # an empty one
    switches: Mapping[str, bool] = field(default_factory=lambda: SWITCHES)
    carry_over: tuple[str, ...] = ()
    mode: str = "sidecar"
    naming: str = "ext"
    photos: Path = field(init=False)

    def __post_init__(self) -> None:
        self.photos = self.folder / "photos"
        self.photos.mkdir()

    @property
    def results(self) -> Path:
        return self.folder / "work/results"

    @property
    def machine(self) -> Machine:
        roots: Roots = resolve_roots([self.photos], self.folder)
        work = self.folder / "work"
        return Machine(roots, work / "cache", work / "none", work / "none", "cpu", 8)

    def photo(self, name: str, tags: Mapping[str, str | Iterable[str]] | None = None) -> Path:
        """Add a photo, with tags that ExifTool embeds."""
        path = self.photos / name
        path.write_bytes(encoded(noisy(32, 24, len(list(self.photos.iterdir())))))
        if tags:
            exiftool(path, tags)
        return path

    def propose(self, **answers: object) -> None:
        """Everything up to the proposals; `answers` replaces the model's, by field."""
        rows = self._thumbs()
        said = {"caption": CAPTION, "description": DESCRIPTION, "keywords": KEYWORDS} | answers
        lines = {(row["rel_path"], name): _line(name, said[name]) for row in rows for name in said}
        library = tables_for_tests.make_library(
            self.folder / "work",
            [row["rel_path"] for row in rows],
            shard_size=256,
            own={row["rel_path"]: row for row in rows},
            fields=tuple(said),
            answers=lines,
        )
        for shard in library.shards:
            library.record_shard(shard.name)
            sidecars(
                library.path("records", shard.name, ".jsonl"),
                library.path("sidecars-manifest", shard.name, ".tsv"),
                machine=self.machine,
                folder=self.results / "sidecars",
                fields=self.switches,
                carry_over=self.carry_over,
            )
        self.machine.write(self.results / "plan/machine.json")

    def apply(self, **choices: object) -> dict[str, str]:
        """Publish; rel_path -> action, or kind of refusal. Nothing may be refused as a failure."""
        told: dict[str, str] = {}

        def report(item: publish.Planned | publish.Refused) -> None:
            if isinstance(item, publish.Refused):
                assert not item.failure, item
                told[item.rel_path] = item.kind
            else:
                told[item.rel_path] = item.action

        library = publish.Library(self.machine, self.results, EXTENSIONS, RUN_ID, self.switches)
        options = {
            "naming": self.naming,
            "mode": self.mode,
            "merge": merge.Options(),
            "backup": self.folder / "backup" if self.mode == "embed" else None,
            "iptc": "present",
            "only_approved": False,
            "paths": (),
        }
        publish.apply(library, publish.Options(**options | choices), report)
        return told

    def _thumbs(self) -> list[dict]:
        listing, table = self.folder / "work/listing.tsv", self.folder / "work/thumbs.parquet"
        write_atomic(listing, format_listing(scan(self.machine.roots, ScanOptions(EXTENSIONS))))
        thumbs(
            listing,
            table,
            machine=self.machine,
            size=512,
            quality=85,
            max_pixels=1 << 24,
            max_bytes=1 << 24,
        )
        rows = read_table(table).to_pylist()
        assert [row for row in rows if row["status"] != "ok"] == []
        return rows


def _line(name: str, said: object) -> dict[str, object]:
    """What differs from `tables_for_tests.answer`."""
    if name == "keywords":
        return {"keywords": list(said), "paths": {k: p for k, p in said.items() if p != [k]}}
    return {"text": said}


# ------------------------------------------------------------------------- other people's programs


def exiftool(path: Path, tags: Mapping[str, str | Iterable[str]], *options: str) -> None:
    """Write tags with ExifTool, as a person would at the command line."""
    lines = ["-q", "-overwrite_original", "-E", *options]
    for tag, value in tags.items():
        values = [value] if isinstance(value, str) else value
        lines += [f"-{tag}={_escaped(item)}" for item in values]
    arguments = "\n".join([*lines, str(path)]).encode()
    command = ["exiftool", "-config", "", "-charset", "utf8", "-charset", "iptc=utf8", "-@", "-"]
    subprocess.run(command, input=arguments, check=True, capture_output=True)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "&#10;")


EMPTY = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def exiv2(path: Path, tags: Mapping[str, str | list[str] | dict[str, str]]) -> None:
    """Write XMP tags with the library Exiv2, into a new sidecar if there is none."""
    if not path.exists():
        path.write_text(EMPTY)
    with pyexiv2.Image(str(path)) as image:
        image.modify_xmp(dict(tags))
