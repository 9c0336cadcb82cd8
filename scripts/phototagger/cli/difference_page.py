"""What would be written beside the photos as a page with pictures: `diff --html`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phototagger import names, pages
from phototagger.cli.difference import (
    Edit,
    Item,
    Tally,
    action,
    declined_names,
    edits,
    is_quiet,
    visible,
)
from phototagger.files import write_atomic
from phototagger.machine import Machine
from phototagger.pages import Picture
from phototagger.publish import Refused
from phototagger.records import read_records

TEMPLATE = "diff.html.jinja"
VALUES = 200  # of one list on the page
CHARACTERS = 5000  # of one value
REFUSED = 400  # photos not written that are named
_ACTIONS = {
    "create": "new",
    "update": "changed",
    "remove": "removed",
    "embed": "written into the photo",
}


@dataclass(frozen=True)
class Entry:
    """One file that would be written; all text is safe to show."""

    number: int
    rel_path: str  # of the photo, exact: to find its record
    name: str  # of the file that is written
    photo: str  # its name
    action: str
    edits: list[Edit]
    declined: tuple[str, ...]
    picture: Picture | None = None


@dataclass
class Folder:
    number: int
    title: str
    tally: Tally = field(default_factory=Tally)
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class NotWritten:
    rel_path: str
    kind: str
    message: str


def write_page(
    items: Iterable[Item],
    page: Path,
    tally: Tally,
    *,
    results: Path,
    machine: Machine,
    size: int,
    quality: int,
    max_photos: int,
) -> int:
    """Write the page; the first `max_photos` changes are shown with pictures, all are counted.

    `size` and `quality` are those of the thumbnails. Returns how many changes are shown.
    """
    folders: dict[str, Folder] = {}
    refused: list[NotWritten] = []
    shown = 0
    for item in items:
        tally.add(item)
        name = names.folder_of(item.rel_path)
        if name not in folders:
            title = "photos" if name == "." else visible(name)
            folders[name] = Folder(len(folders) + 1, title)
        folder = folders[name]
        folder.tally.add(item)
        if is_quiet(item):
            continue
        if isinstance(item, Refused):
            if len(refused) < REFUSED:
                message = visible(item.message[:CHARACTERS])
                refused.append(NotWritten(visible(item.rel_path), item.kind, message))
        elif shown < max_photos:
            shown += 1
            folder.entries.append(_entry(item, shown))
    _add_pictures(folders.values(), results, machine, size, quality)
    content = pages.render(
        TEMPLATE,
        tally=tally,
        folders=list(folders.values()),
        shown=shown,
        refused=refused,
        actions=_ACTIONS,
    )
    write_atomic(page, content)
    return shown


def _entry(item: Any, number: int) -> Entry:
    return Entry(
        number,
        item.rel_path,
        visible(names.encode(item.path.name)),
        visible(item.rel_path.rpartition("/")[2]),
        action(item),
        [_shown(edit) for edit in edits(item)],
        _cut(declined_names(item)),
    )


def _shown(edit: Edit) -> Edit:
    """The same, safe to show and of a length that a page can bear."""
    return replace(
        edit,
        added=_cut(edit.added),
        copied=_cut(edit.copied),
        removed=_cut(edit.removed),
        kept=_cut(edit.kept),
        before=_cut_text(edit.before),
        after=_cut_text(edit.after),
    )


def _cut(values: tuple[str, ...]) -> tuple[str, ...]:
    shown = tuple(_cut_text(value) or "" for value in values[:VALUES])
    more = len(values) - VALUES
    return (*shown, f"and {more:,} more") if more > 0 else shown


def _cut_text(text: str | None) -> str | None:
    if text is None or len(text) <= CHARACTERS:
        return text and visible(text)
    return f"{visible(text[:CHARACTERS])}… ({len(text):,} characters)"


def _add_pictures(
    folders: Iterable[Folder], results: Path, machine: Machine, size: int, quality: int
) -> None:
    """Give every entry its thumbnail; of a photo with two files the first only."""
    wanted: dict[str, tuple[Folder, int]] = {}
    for folder in folders:
        for place, entry in enumerate(folder.entries):
            wanted.setdefault(entry.rel_path, (folder, place))
    for record in _records(results, wanted):
        folder, place = wanted[record["rel_path"]]
        picture = pages.picture(record, machine=machine, size=size, quality=quality)
        folder.entries[place] = replace(folder.entries[place], picture=picture)


def _records(results: Path, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    left = len(wanted)
    for record in read_records(results / "records.jsonl"):
        if not left:
            return
        if record["rel_path"] in wanted:
            left -= 1
            yield record
