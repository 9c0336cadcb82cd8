"""Work directories with proposals, made from hand-made records in no time, and what to do there."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from sidecars import sidecars

from phototagger import config, names, publish
from phototagger.machine import Machine
from phototagger.plan import Root, Roots, Shard, write_index
from phototagger.statcache import StatCache

FIELDS = dict(config.defaults(config.schema())["metadata"]["fields"])
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".cr3", ".dng", ".heic")

RDF = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    'xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmp:Rating="4" '
    'crs:Exposure2012="+0.5"><dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>\n"
)


def human_xmp(*keywords: str) -> bytes:
    """A sidecar as other programs write it."""
    return RDF.format("".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)).encode()


def make_photos(folder: Path, *rel_paths: str) -> Path:
    """Files that are no pictures, which no part of publishing sidecars looks at."""
    for rel_path in rel_paths:
        path = folder / rel_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo " + os.fsencode(rel_path))
    return folder


def snapshot(*folders: Path) -> dict[str, tuple[bytes | str, int, int]]:
    """Content, mode and mtime of all files below."""
    found = {}
    for folder in folders:
        for top, _, files in os.walk(folder):
            for path in (Path(top, name) for name in files):
                info = path.lstat()
                content = os.readlink(path) if path.is_symlink() else path.read_bytes()
                found[str(path)] = content, info.st_mode, info.st_mtime_ns
    return found


class Work:
    """A work directory after a run; `keywords` of a photo are `path|of|levels`."""

    def __init__(self, folder: Path, *roots: Path, run_id: str = "run1"):
        self.folder = folder
        self.results = folder / "results"
        self.run_id = run_id
        named = [Root(names.encode(root.name), names.encode(root)) for root in roots]
        self.roots = Roots(named)
        self.machine = Machine(self.roots, folder / "cache", folder, folder, "cpu", 1)

    def propose(self, said: dict[str, list[str]], **more: dict[str, dict]) -> "Work":
        """Photo -> keywords; `more`: by key of a record, photo -> value."""
        records = []
        for name, keywords in said.items():
            path = self.roots.locate(names.encode(name))
            record = {
                "rel_path": names.encode(name),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "keywords": [_keyword(keyword) for keyword in keywords],
                "inherited_from": None,
                "tagged": False,
            }
            records.append(record | {key: v[name] for key, v in more.items() if name in v})
        records.sort(key=lambda r: r["rel_path"].encode().replace(b"/", b"\0"))
        self._write("records/s1.jsonl", "".join(json.dumps(r) + "\n" for r in records))
        frozen = {
            "run_id": self.run_id,
            "config": {"photos": {"extensions": EXTENSIONS}, "metadata": {"fields": FIELDS}},
        }
        self._write("audit/config.json", json.dumps(frozen))
        self.machine.write(self.results / "plan/machine.json")
        write_index(self.results / "plan/index.json", [Shard("s1", "0", len(records))], self.run_id)
        sidecars(
            self.results / "records/s1.jsonl",
            self.results / "sidecars-manifest/s1.tsv",
            machine=self.machine,
            folder=self.results / "sidecars",
            fields=FIELDS,
            carry_over=(),
        )
        return self

    def copy(self, folder: Path, *roots: Path) -> "Work":
        """The same proposals elsewhere, for equal photos."""
        work = Work(folder, *roots, run_id=self.run_id)
        shutil.copytree(self.results, work.results)
        work.machine.write(work.results / "plan/machine.json")
        return work

    def _write(self, name: str, text: str) -> None:
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------------------- commands

    @property
    def library(self) -> publish.Library:
        return publish.Library.load(self.results)

    def compare(self, **options) -> list:
        return list(publish.compare(self.library, publish.Options(**options)))

    def apply(self, **options) -> tuple[publish.Outcome, list]:
        told = []
        return publish.apply(self.library, publish.Options(**options), told.append), told

    def undo(self, name: str | None = None, *paths: Path) -> tuple[publish.Outcome, list]:
        told = []
        return publish.undo(self.results, name, paths, told.append), told

    def know_photos(self) -> None:
        """As after a run: the photos' SHA-256 need not be computed."""
        with StatCache(self.machine.cache / "stat") as known:
            for line in (self.results / "records/s1.jsonl").read_text("utf-8").splitlines():
                path = self.roots.locate(json.loads(line)["rel_path"])
                known.put(path, path.stat(), hashlib.sha256(path.read_bytes()).hexdigest())


def _keyword(path: str) -> dict:
    levels = path.split("|")
    return {"keyword": levels[-1], "path": levels, "synonyms": [], "source": "vlm", "score": None}
