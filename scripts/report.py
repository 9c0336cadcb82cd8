"""Rule `report`: one page to look at: numbers, top labels, contact sheets per folder, problems.

The records are read twice as a stream: once to count, once to take out the photos that are shown.
Memory holds counts per folder and the shown pictures, whatever the size of the library.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phototagger import described, names, pages, plan
from phototagger.files import write_atomic
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.models import card
from phototagger.prompts import FIELDS
from phototagger.records import (
    DESCRIBE,
    SOURCES,
    ProblemRow,
    read_medoids,
    read_problems,
    read_records,
)

TEMPLATE = "report.html.jinja"
TOP_LABELS = 20
TOP_KEYWORDS = 20
TOP_CAMERAS = 5
COVERS = 24  # folders in the overview; the others are folded away
MAX_PROBLEMS = 500  # rows of the table of problems
STEPS = 100  # histogram cells per unit of cosine
MAX_BARS = 40


@dataclass
class Folder:
    """What is shown of a folder. `photos` counts those directly in it."""

    name: str
    photos: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    medoid: str | None = None  # rel_path
    medoid_position: int | None = None  # of the medoid among the folder's photos
    tiles: list[pages.Tile] = field(default_factory=list)

    @property
    def title(self) -> str:
        return "(top folder)" if self.name == "." else self.name

    @property
    def cover(self) -> pages.Tile | None:
        return next((tile for tile in self.tiles if tile.medoid), None)

    @property
    def top_labels(self) -> list[str]:
        return [label for label, _ in ranked(self.labels, 4)]


@dataclass
class Library:
    """What the first pass counts."""

    photos: int = 0
    folders: dict[str, Folder] = field(default_factory=dict)  # in path order
    labels: Counter[str] = field(default_factory=Counter)  # keywords: photos that have them
    top1: Counter[str] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)  # cosine of the best label, by cell
    cameras: Counter[str] = field(default_factory=Counter)
    with_keywords: int = 0  # photos with at least one
    tagged: int = 0  # already, and left alone
    inherited: int = 0  # not looked at: another file of the same picture was
    days: tuple[str, str] | None = None  # first and last, ISO 8601
    years: Counter[int] = field(default_factory=Counter)
    keywords: Counter[str] = field(default_factory=Counter)  # of all sources
    found: set[str] = field(default_factory=set)  # sources of keywords
    fields: Counter[str] = field(default_factory=Counter)  # photos with a caption, a description
    answers: set[tuple[str, str, str]] = field(default_factory=set)  # model, setup, field

    @property
    def sources(self) -> list[str]:
        return [source for source in SOURCES if source in self.found]

    @property
    def describers(self) -> list[tuple[str, str, list[str]]]:
        """Who was asked for which fields: (model, setup, fields)."""
        pairs = sorted({(model, setup) for model, setup, _ in self.answers})
        return [
            (*pair, [name for name in FIELDS if (*pair, name) in self.answers]) for pair in pairs
        ]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: what is counted in cells `low` to `high` - 1."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Problems:
    """Rows of the table (at most MAX_PROBLEMS), and the numbers of all."""

    rows: list[ProblemRow]
    quarantined: int  # photos without a record
    fields: int  # caption, keywords or description of a photo, without a good answer

    @property
    def total(self) -> int:
        return self.quarantined + self.fields


def report(
    records: Path,
    problems: Path,
    medoids: Path,
    page: Path,
    *,
    machine: Machine,
    model: str,
    run_id: str,
    size: int,
    quality: int,
    max_photos: int,
    per_folder: int,
    stats: Stats | None = None,
) -> None:
    """Write the page, with at most `max_photos` pictures, `per_folder` of one folder.

    `size` and `quality` are those of the thumbnails; one that is no longer in the cache is made
    again from its photo, and a photo that is gone as well is shown by name only.
    """
    stats = stats or Stats()
    library = survey(records, {folder: path for folder, path, _ in read_medoids(medoids)})
    stats.photos = library.photos
    shares = allot(library.folders.values(), max_photos, per_folder)
    for record, is_medoid in choose(records, library.folders, shares):
        folder = library.folders[names.folder_of(record["rel_path"])]
        picture = pages.picture(record, machine=machine, size=size, quality=quality)
        folder.tiles.append(pages.tile(record, picture, stats.computed, medoid=is_medoid))
        stats.computed += 1
        stats.progress()
    stats.skipped = stats.photos - stats.computed
    content = pages.render(
        TEMPLATE,
        library=library,
        folders=list(library.folders.values()),
        shown=stats.computed,
        top_keywords=ranked(library.keywords, TOP_KEYWORDS) if library.found - {"clip"} else [],
        top_labels=ranked(library.labels or library.top1, TOP_LABELS),
        cameras=ranked(library.cameras, TOP_CAMERAS),
        scores=histogram(library.scores),
        median=median(library.scores),
        years=histogram(library.years),
        covers=COVERS,
        problems=count_problems(problems),
        model=card(model, machine.models),
        run_id=run_id,
    )
    write_atomic(page, content)


def survey(records: Path, medoids: Mapping[str, str]) -> Library:
    """Count what there is; `medoids` is rel_path by folder."""
    library = Library()
    found: dict[str, Folder] = {}
    for record in read_records(records):
        rel_path = record["rel_path"]
        name = names.folder_of(rel_path)
        folder = found.get(name) or found.setdefault(name, Folder(name, medoid=medoids.get(name)))
        if rel_path == folder.medoid:
            folder.medoid_position = folder.photos
        folder.photos += 1
        _count(library, folder, record)
    library.folders = {name: found[name] for name in sorted(found, key=plan.sort_key)}
    return library


def _count(library: Library, folder: Folder, record: Mapping) -> None:
    keywords = [item["label"] for item in record["over_threshold"]]
    library.photos += 1
    library.with_keywords += bool(record["keywords"])
    library.tagged += record["tagged"]
    library.inherited += record["inherited_from"] is not None
    library.labels.update(keywords)
    folder.labels.update(keywords)
    if record["labels"]:
        best = record["labels"][0]
        library.top1[best["label"]] += 1
        library.scores[int(best["cosine"] * STEPS // 1)] += 1
    _count_words(library, record)
    if camera := record.get("camera"):
        library.cameras[camera] += 1
    day = (record.get("taken_at") or "")[:10]
    if day[:4].isdigit():
        first, last = library.days or (day, day)
        library.days = min(first, day), max(last, day)
        library.years[int(day[:4])] += 1


def _count_words(library: Library, record: Mapping) -> None:
    words = {item["keyword"]: item["source"] for item in record["keywords"]}
    library.keywords.update(words.keys())
    library.found.update(words.values())
    for name, answer in record.get("describe", {}).items():
        if name != "keywords":
            library.fields[name] += described.text(record, name) is not None
        if answer["status"] == "done":
            library.answers.add((answer["model"] or "", answer["setup"], name))


def count_problems(path: Path) -> Problems:
    """The problems, as many as are shown, and the numbers of all."""
    rows, total, fields = [], 0, 0
    for row in read_problems(path):
        total += 1
        fields += row.stage == DESCRIBE
        if len(rows) < MAX_PROBLEMS:
            rows.append(row)
    return Problems(rows, total - fields, fields)


def ranked(counts: Counter[str], limit: int | None = None) -> list[tuple[str, int]]:
    """Most frequent first, of equal ones in alphabetical order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


# ------------------------------------------------------------------------------ what is shown


def allot(folders: Iterable[Folder], max_photos: int, per_folder: int) -> dict[str, int]:
    """How many pictures each folder gets: one each, largest folders first, then more in turn."""
    order = sorted(folders, key=lambda folder: (-folder.photos, plan.sort_key(folder.name)))
    shares = dict.fromkeys((folder.name for folder in order), 0)
    left = max_photos
    for turn in range(per_folder):
        takers = [folder.name for folder in order if folder.photos > turn][:left]
        if not takers:
            break
        for name in takers:
            shares[name] += 1
        left -= len(takers)
    return shares


def positions(photos: int, share: int, medoid: int | None) -> set[int]:
    """Which of a folder's photos are shown: the medoid, and the others spread evenly."""
    if share <= 0:
        return set()
    if medoid is None:
        return {int((i + 0.5) * photos / share) for i in range(share)}
    others = (int((i + 0.5) * (photos - 1) / (share - 1)) for i in range(share - 1))
    return {medoid} | {position + (position >= medoid) for position in others}


def choose(
    records: Path, folders: Mapping[str, Folder], shares: Mapping[str, int]
) -> Iterator[tuple[dict, bool]]:
    """The shown photos in path order; whether each is its folder's medoid."""
    wanted = {
        name: positions(folder.photos, shares[name], folder.medoid_position)
        for name, folder in folders.items()
    }
    seen = Counter[str]()
    for record in read_records(records):
        name = names.folder_of(record["rel_path"])
        if seen[name] in wanted[name]:
            yield record, seen[name] == folders[name].medoid_position
        seen[name] += 1


# -------------------------------------------------------------------------------- histogram


def histogram(cells: Counter[int]) -> list[Bar]:
    """Bars of equal width from the first to the last cell that occurs, at most MAX_BARS."""
    if not cells:
        return []
    low, high = min(cells), max(cells)
    widths = (digit * 10**power for power in range(5) for digit in (1, 2, 5))
    width = next(w for w in widths if high // w - low // w < MAX_BARS)
    counts = Counter[int]()
    for cell, count in cells.items():
        counts[cell // width] += count
    return [
        Bar(i * width, (i + 1) * width, counts[i]) for i in range(low // width, high // width + 1)
    ]


def median(cells: Counter[int]) -> int | None:
    """The cell that half of the photos reach."""
    seen, half = 0, cells.total() / 2
    for cell in sorted(cells):
        seen += cells[cell]
        if seen >= half:
            return cell
    return None


if __name__ == "__main__":
    with job(snakemake) as stats:
        report(
            Path(snakemake.input.records),
            Path(snakemake.input.problems),
            Path(snakemake.input.medoids),
            Path(snakemake.output.page),
            machine=Machine.load(snakemake.params.machine),
            model=snakemake.params.model,
            run_id=snakemake.params.run_id,
            size=snakemake.params.size,
            quality=snakemake.params.quality,
            max_photos=snakemake.params.max_photos,
            per_folder=snakemake.params.per_folder,
            stats=stats,
        )
