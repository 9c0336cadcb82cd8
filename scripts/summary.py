"""Rule `summary`: the library in Markdown, whole and folder by folder.

`results/folders/<folder>/` is what can be handed over of a folder: `summary.md`, `records.jsonl`
and `medoid.jpg`, a copy of its medoid's thumbnail, so that pictures show wherever the results and
the cache are. Photos in the root itself are the folder `_root_`. Records are streamed: what is kept
in memory grows with the folders and their different keywords, not with the photos.

If models were asked about the photos, a folder quotes its medoid's caption, the beginning of its
description, and captions of photos that have many of the folder's frequent keywords.
"""

import heapq
import logging
import re
import shutil
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from phototagger import names
from phototagger.described import NAMES, beginning, plain
from phototagger.described import text as text_of
from phototagger.files import open_atomic
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.plan import sort_key
from phototagger.problems import KINDS, PhotoProblem
from phototagger.prompts import FIELDS
from phototagger.records import (
    DESCRIBE,
    SAME_NAME,
    ProblemRow,
    read_lines,
    read_medoids,
    read_problems,
    read_records,
)
from phototagger.thumbnails import ensure_thumb

Asked = tuple[str, str, str]  # model, setup, prompt profile
SHOWN = ("rel_path", "sha256", "bytes", "width", "height", "thumb")  # what finds a thumbnail

KEYWORDS = 30  # most frequent keywords listed
HIGHLIGHTS = 5  # photos listed per folder, those with the strongest label
NAMED_CLASHES = 10
NAMED_PROBLEMS = 20  # quarantined photos named per folder
EXCERPTS = 3  # photos per folder whose captions are quoted, besides the medoid's
TYPICAL = 10  # most frequent keywords of a folder; photos that have many of them are quoted
EXCERPT = 240  # characters of a description
PICTURES = 24  # folders shown with a picture in the whole summary, those with most photos
FREQUENT = 3  # keywords per row of the table of folders

ROOT = "_root_"
# Folders with the names of our files get an underscore more, and so do those that have one already.
_RESERVED = re.compile(
    r"(?:_root_|summary\.md|records\.jsonl|medoid\.jpg|\.snakemake_timestamp)_*", re.IGNORECASE
)
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")  # inside words _ is just text
_LINK = re.compile(
    r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE
)  # what becomes one by itself


@dataclass
class Folder:
    """What the summary says of a folder's own photos, without those in its subfolders."""

    name: str  # encoded, "." = the root
    photos: int = 0
    tagged: int = 0  # already, and left alone
    inherited: int = 0  # not looked at: another file of the same picture was
    clashes: list[str] = field(default_factory=list)  # same name as another picture
    without_keywords: int = 0
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    fields: dict[str, Counter[str]] = field(default_factory=dict)  # status of a field -> photos
    first: str | None = None  # days, YYYY-MM-DD
    last: str | None = None
    highlights: list[tuple[float, str, str]] = field(default_factory=list)  # cosine, photo, label
    problems: list[ProblemRow] = field(default_factory=list)  # the first ones
    rows: int = 0  # of problems.csv; several of a photo if several of its fields failed
    quarantined: int = 0
    medoid: str | None = None  # rel_path
    cosine: float = 0.0  # of the medoid to the centroid
    caption: str | None = None  # of the medoid
    description: str | None = None
    excerpts: list[tuple[str, str]] = field(default_factory=list)  # photo, caption
    shown: Mapping[str, Any] | None = None  # of the medoid's record, what finds its thumbnail

    @property
    def title(self) -> str:
        return "the root folder" if self.name == "." else self.name

    @property
    def keywords(self) -> Counter[str]:
        """Photos per keyword; a photo has each from one source."""
        return sum(self.sources.values(), Counter())

    def add(self, record: dict[str, Any]) -> None:
        self.photos += 1
        for word, source in {keyword_of(item) for item in record["keywords"]}:
            self.sources[source][word] += 1
        for name, answer in record.get("describe", {}).items():
            self.fields.setdefault(name, Counter())[answer["status"]] += 1
        self.tagged += record["tagged"]
        self.inherited += record["inherited_from"] is not None
        if any(SAME_NAME in note for note in record["notes"]):
            self.clashes.append(record["rel_path"])
        self.without_keywords += not record["keywords"]
        if record["taken_at"]:
            day = record["taken_at"][:10]
            self.first = min(self.first or day, day)
            self.last = max(self.last or day, day)
        if record["labels"] and record["inherited_from"] is None:
            top = record["labels"][0]
            self.highlights.append((top["cosine"], record["rel_path"], top["label"]))
            if len(self.highlights) > 8 * HIGHLIGHTS:
                self.highlights = strongest(self.highlights)
        if record["rel_path"] == self.medoid:
            self.shown = {key: record[key] for key in SHOWN}
            self.caption = text_of(record, "caption")
            self.description = text_of(record, "description")

    def add_problem(self, row: ProblemRow) -> None:
        self.rows += 1
        self.quarantined += row.stage != DESCRIBE
        if len(self.problems) < NAMED_PROBLEMS:
            self.problems.append(row)


def summary(
    records: Path,
    problems: Path,
    medoids: Path,
    summary_output: Path,
    folders_output: Path,
    *,
    machine: Machine,
    model: str,
    labels: str,
    size: int,
    quality: int,
    stats: Stats | None = None,
) -> None:
    """Write `summary.md` and the folder of folders; `labels` is the label pack's name, `size` and
    `quality` are those of the thumbnails.

    The texts depend on the inputs only. A medoid whose thumbnail is no longer in the cache, and
    cannot be made again, leaves a picture that does not show.
    """
    stats = stats or Stats()
    folders: dict[str, Folder] = {}
    kinds: Counter[tuple[str, str]] = Counter()

    def folder_named(name: str) -> Folder:
        return folders.setdefault(name, Folder(name))

    for name, rel_path, cosine in read_medoids(medoids):
        folder = folder_named(name)
        folder.medoid, folder.cosine = rel_path, cosine
    for rel_path, rows in groupby(read_problems(problems), key=lambda row: row.rel_path):
        rows = list(rows)
        for row in rows:
            folder_named(names.folder_of(rel_path)).add_problem(row)
        kinds.update({(row.stage, row.kind) for row in rows})
    asked: dict[str, set[Asked]] = {}

    with new_folder(folders_output) as place:
        lines = read_lines(records)
        for name, run in groupby(lines, key=lambda item: names.folder_of(item[1]["rel_path"])):
            folder = folder_named(name)
            path = folder_path(place, name)
            path.mkdir(parents=True, exist_ok=True)
            # a folder's photos come in several runs, its subfolders sorted in between
            with (path / "records.jsonl").open("a", encoding="utf-8", newline="") as file:
                for line, record in run:
                    folder.add(record)
                    add_asked(asked, record)
                    file.write(line)
                    stats.photos += 1
                    stats.progress()
        ordered = sorted(folders.values(), key=lambda folder: sort_key(folder.name))
        for folder in ordered:
            path = folder_path(place, folder.name)
            if thumb := _thumb(folder, machine, size, quality):
                path.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(thumb, path / "medoid.jpg")
            write_folder(folder, path)

    text = whole_page(ordered, kinds, asked, folders_output.name, model, labels)
    with open_atomic(summary_output) as file:
        file.writelines(f"{line}\n" for line in text)
    stats.computed = stats.photos


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, which then takes the place of `path`; on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_path(base: Path, folder: str) -> Path:
    """Where a folder (encoded) has its own summary below `base`; no two share one."""
    if folder == ".":
        return base / ROOT
    parts = (f"{p}_" if _RESERVED.fullmatch(p) else p for p in folder.split("/"))
    return names.local_path(base, "/".join(parts))


def _thumb(folder: Folder, machine: Machine, size: int, quality: int) -> Path | None:
    """The thumbnail of a folder's medoid; None if there is none and it cannot be made again."""
    if folder.shown is None:
        return None
    try:
        return ensure_thumb(folder.shown, machine=machine, size=size, quality=quality)
    except PhotoProblem as problem:
        logging.warning("%s: no picture: %s", folder.shown["rel_path"], problem)
        return None


def write_folder(folder: Folder, path: Path) -> None:
    """Write what a folder has beside its records and its picture."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "records.jsonl").touch()  # also if all its photos are quarantined
    if folder.fields:
        folder.excerpts = excerpts(folder, read_records(path / "records.jsonl"))
    with (path / "summary.md").open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in folder_page(folder))


def keyword_of(keyword: Mapping[str, Any]) -> tuple[str, str]:
    """Word and source. Interned: in a large library a word is counted in many folders."""
    return sys.intern(keyword["keyword"]), keyword["source"]


def add_asked(asked: dict[str, set[Asked]], record: Mapping[str, Any]) -> None:
    """Note which model answers each field; a skipped field names its setup, not its model."""
    for name, answer in record.get("describe", {}).items():
        if answer["status"] == "done":
            found = (answer["model"] or "", answer["setup"], answer["profile"])
            asked.setdefault(name, set()).add(found)


def excerpts(folder: Folder, records: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The photos (rel_path, caption) that have most of the folder's frequent keywords.

    Not the medoid, whose caption is shown anyway, and of equal captions only one.
    """
    typical = {word for word, _ in frequent(folder.keywords, TYPICAL)}
    found: dict[str, tuple[int, int, str]] = {}  # by caption: the best photo that has it
    for place, record in enumerate(records):
        caption = text_of(record, "caption")
        if not caption or caption == folder.caption or record["rel_path"] == folder.medoid:
            continue
        shared = len(typical & {keyword["keyword"] for keyword in record["keywords"]})
        photo = (-shared, place, record["rel_path"])
        found[caption] = min(found.get(caption, photo), photo)
    best = heapq.nsmallest(EXCERPTS, ((*photo, caption) for caption, photo in found.items()))
    return [(rel_path, caption) for _, _, rel_path, caption in best]


# ---------------------------------------------------------------------------------------- pages


def whole_page(
    folders: Sequence[Folder],
    kinds: Counter[tuple[str, str]],
    asked: Mapping[str, set[Asked]],
    below: str,
    model: str,
    labels: str,
) -> Iterator[str]:
    """The lines of the whole summary; `below` is the folder of folders, relative to it."""
    photos = sum(folder.photos for folder in folders)
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    fields: dict[str, Counter[str]] = {}
    for folder in folders:
        for source, counts in folder.sources.items():
            sources[source].update(counts)
        for name, counts in folder.fields.items():
            fields.setdefault(name, Counter()).update(counts)

    yield "# Photo summary"
    yield ""
    yield f"- Photos: {photos:,} in {len(folders):,} folders"
    yield f"- Quarantined: {sum(folder.quarantined for folder in folders):,}"
    yield from left_out(
        sum(folder.tagged for folder in folders), sum(folder.inherited for folder in folders)
    )
    yield from same_name([photo for folder in folders for photo in folder.clashes])
    yield f"- Without keywords: {sum(folder.without_keywords for folder in folders):,}"
    yield f"- Model: {escape(model)}"
    yield f"- Labels: {escape(labels)}"
    yield from section("Folders", folder_rows(folders, below))
    yield from section("Captions, keywords, descriptions", field_rows(fields, asked))
    yield from section("Keywords", keyword_rows(sources, photos))
    yield from section("Problems", problem_rows(kinds))
    pictured = {f.name for f in heapq.nsmallest(PICTURES, folders, key=lambda f: -f.photos)}
    shown = [f for f in folders if f.name in pictured and f.photos > f.tagged]
    if shown:
        yield ""
        yield "## Highlights"
    if len(shown) < sum(folder.photos > folder.tagged for folder in folders):
        yield ""
        yield f"The {len(shown)} folders with most photos; the others have theirs in {below}/."
    for folder in shown:
        link = folder_link(below, folder.name)
        yield ""
        yield f"### [{escape(folder.title)}]({link}/summary.md)"
        yield from medoid_lines(folder, f"{link}/medoid.jpg")
        yield from excerpt_lines(folder)
        yield from highlight_lines(folder)


def folder_page(folder: Folder) -> Iterator[str]:
    """The lines of a folder's own summary."""
    yield f"# {escape(folder.title)}"
    yield ""
    yield f"- Photos: {folder.photos:,} ([records.jsonl](records.jsonl))"
    yield f"- Quarantined: {folder.quarantined:,}"
    yield from left_out(folder.tagged, folder.inherited)
    yield from same_name(folder.clashes)
    yield f"- Without keywords: {folder.without_keywords:,}"
    if folder.first:
        yield f"- Taken: {days(folder)}"
    if folder.medoid:
        yield ""
        yield "## Medoid"
        yield from medoid_lines(folder, "medoid.jpg")
    if folder.highlights or folder.excerpts:
        yield ""
        yield "## Highlights"
        yield from excerpt_lines(folder)
        yield from highlight_lines(folder)
    yield from section("Captions, keywords, descriptions", field_rows(folder.fields))
    yield from section("Keywords", keyword_rows(folder.sources, folder.photos))
    rows = [
        ["Photo", "Stage", "Kind", "Message", "What to do"],
        *(
            [escape(text) for text in (p.rel_path, p.stage, p.kind, p.message, p.what_to_do)]
            for p in folder.problems
        ),
    ]
    yield from section("Problems", rows)
    if folder.rows > len(folder.problems):
        yield ""
        yield f"and {folder.rows - len(folder.problems):,} more, all in problems.csv."


def same_name(photos: Sequence[str]) -> Iterator[str]:
    """Different pictures whose names differ in their ending only: some programs mix them up."""
    if photos:
        named = ", ".join(escape(photo) for photo in photos[:NAMED_CLASHES])
        more = ", ..." if len(photos) > NAMED_CLASHES else ""
        yield f"- Same name as another picture: {len(photos):,} ({named}{more})"


def left_out(tagged: int, inherited: int) -> Iterator[str]:
    """Photos that no model was shown."""
    if tagged:
        yield f"- Tagged already, left alone: {tagged:,}"
    if inherited:
        yield f"- Described with another file of the same picture: {inherited:,}"


def folder_rows(folders: Iterable[Folder], below: str) -> Iterator[list[str]]:
    yield ["Folder", "Photos:", "Quarantined:", "Taken", "Frequent keywords"]
    for folder in folders:
        keywords = ", ".join(prose(word) for word, _ in frequent(folder.keywords, FREQUENT))
        link = f"[{escape(folder.title)}]({folder_link(below, folder.name)}/summary.md)"
        yield [link, f"{folder.photos:,}", f"{folder.quarantined:,}", days(folder), keywords]


def field_rows(
    fields: Mapping[str, Counter[str]], asked: Mapping[str, set[Asked]] | None = None
) -> Iterator[list[str]]:
    """Photos per field and outcome, and who was asked; only a header if nobody was."""
    who = ["Model", "Setup", "Prompts"] if asked is not None else []
    yield ["Field", "Done:", "Failed:", "Skipped:", *who]
    for name in FIELDS:
        if name not in fields:
            continue
        counts = (f"{fields[name][status]:,}" for status in ("done", "failed", "skipped"))
        found = sorted((asked or {}).get(name, ()))
        each = (", ".join(dict.fromkeys(prose(a[i]) for a in found)) for i in range(len(who)))
        yield [name, *counts, *each]


def keyword_rows(sources: Mapping[str, Counter[str]], photos: int) -> Iterator[list[str]]:
    """Photos per keyword, told apart by source if there is another than CLIP."""
    apart = [source for source in NAMES if sources.get(source)] if set(sources) - {"clip"} else []
    yield ["Keyword", "Photos:", "Share:", *(f"{NAMES[source]}:" for source in apart)]
    for word, count in frequent(sum(sources.values(), Counter()), KEYWORDS):
        share = f"{100 * count / photos:.1f} %"
        yield [prose(word), f"{count:,}", share, *(f"{sources[s][word]:,}" for s in apart)]


def problem_rows(kinds: Counter[tuple[str, str]]) -> Iterator[list[str]]:
    yield ["Stage", "Kind", "Photos:", "What to do"]
    for (stage, kind), count in sorted(kinds.items()):
        yield [escape(stage), escape(kind), f"{count:,}", escape(KINDS.get(kind, ""))]


def medoid_lines(folder: Folder, picture: str) -> Iterator[str]:
    if not folder.medoid:
        return
    yield ""
    yield f"![{escape(folder.medoid)}]({picture})"
    yield ""
    yield f"{escape(folder.medoid)} (cosine to the folder's centroid {folder.cosine:.6f})"
    if folder.caption:
        yield ""
        yield f"Caption: {prose(folder.caption)}"
    if folder.description:
        yield ""
        yield f"Description: {prose(beginning(folder.description, EXCERPT))}"


def excerpt_lines(folder: Folder) -> Iterator[str]:
    if not folder.excerpts:
        return
    yield ""
    yield "Captions of photos with the folder's frequent keywords:"
    yield ""
    for rel_path, caption in folder.excerpts:
        yield f"- {escape(rel_path)}: {prose(beginning(caption, EXCERPT))}"


def highlight_lines(folder: Folder) -> Iterator[str]:
    if folder.excerpts and folder.highlights:
        yield ""
        yield "Strongest labels:"
    yield ""
    for cosine, rel_path, label in strongest(folder.highlights):
        yield f"- {escape(rel_path)}: {escape(label)} ({cosine:.6f})"


def section(title: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A heading and a table, or nothing if there is only its header.

    A column whose title ends with a colon is aligned to the right.
    """
    header, *body = rows
    if not body:
        return
    yield ""
    yield f"## {title}"
    yield ""
    yield "| " + " | ".join(name.rstrip(":") for name in header) + " |"
    yield "| " + " | ".join("---:" if name.endswith(":") else "---" for name in header) + " |"
    for row in body:
        yield "| " + " | ".join(row) + " |"


def frequent(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    """The most frequent words; of equal ones the first in the alphabet."""
    return heapq.nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0]))


def strongest(highlights: Iterable[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The photos with the highest cosine; of equal ones the first in path order."""
    return heapq.nsmallest(
        HIGHLIGHTS, highlights, key=lambda item: (-item[0], sort_key(item[1]), item[2])
    )


def days(folder: Folder) -> str:
    if folder.first is None or folder.first == folder.last:
        return folder.first or ""
    return f"{folder.first} to {folder.last}"


def folder_link(below: str, folder: str) -> str:
    """The relative address of a folder's own place."""
    return quote_from_bytes(bytes(folder_path(Path(below), folder)))


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also in a table; encoded names have no line breaks."""
    return _MARKUP.sub(r"\\\g<0>", text)


def prose(text: str) -> str:
    """Words of a model or of a photo's metadata: escaped, and no address becomes a link."""
    return _LINK.sub(r"\\", escape(plain(text)))


if __name__ == "__main__":
    with job(snakemake) as stats:
        summary(
            Path(snakemake.input.records),
            Path(snakemake.input.problems),
            Path(snakemake.input.medoids),
            Path(snakemake.output.summary),
            Path(snakemake.output.folders),
            machine=Machine.load(snakemake.params.machine),
            model=snakemake.params.model,
            labels=snakemake.params.labels,
            size=snakemake.params.size,
            quality=snakemake.params.quality,
            stats=stats,
        )
