"""Self-contained HTML pages: templates of config/report, pictures embedded as data URIs.

A page refers to nothing outside itself, so that it can be mailed, archived and opened offline.
"""

import base64
import logging
from calendar import month_name
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from typing import Any

from phototagger import CLONE, described, names
from phototagger.machine import Machine

log = logging.getLogger(__name__)

TEMPLATES = CLONE / "config" / "report"

_EDGE = 320  # long edge of an embedded picture, pixels
_QUALITY = 76


@dataclass(frozen=True)
class Picture:
    """A picture as a page embeds it; sizes in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Label:
    """A label of a photo; `keyword` says whether it reached its threshold."""

    label: str
    cosine: float
    probability: float
    keyword: bool


@dataclass(frozen=True)
class Keyword:
    """A keyword that is not from CLIP alone; `score` is CLIP's cosine, if CLIP has it, too."""

    keyword: str
    source: str  # person or vlm
    score: float | None


@dataclass(frozen=True)
class Tile:
    """One photo of a contact sheet. Without `picture` its thumbnail could not be made again."""

    number: int  # unique in the page
    rel_path: str
    folder: str
    name: str
    alt: str
    details: str  # when and with what it was taken
    keywords: tuple[Keyword, ...]
    labels: tuple[Label, ...]  # CLIP's, but those that are among the keywords
    caption: str | None
    description: str | None
    picture: Picture | None
    remark: str | None = None  # why no model was shown the photo
    medoid: bool = False
    score: float | None = None


def tile(record: Mapping[str, Any], picture: Picture | None, number: int, **more: Any) -> Tile:
    """A record and its picture as a tile."""
    rel_path = record["rel_path"]
    keywords = tuple(_keywords(record))
    known = {keyword.keyword.casefold() for keyword in keywords}
    labels = tuple(label for label in _labels(record) if label.label.casefold() not in known)
    caption = described.text(record, "caption")
    taken = (record.get("taken_at") or "")[:10]
    return Tile(
        number,
        rel_path,
        names.folder_of(rel_path),
        rel_path.rpartition("/")[2],
        caption or _alt(rel_path, keywords, labels),
        " · ".join(filter(None, (taken, record.get("camera")))),
        keywords,
        labels,
        caption,
        described.text(record, "description"),
        picture,
        _remark(record),
        **more,
    )


def _remark(record: Mapping[str, Any]) -> str | None:
    if record.get("tagged"):
        return "tagged already, left alone"
    if leader := record.get("inherited_from"):
        return f"as {leader.rpartition('/')[2]}"
    return None


def _keywords(record: Mapping[str, Any]) -> Iterator[Keyword]:
    """Keywords of a person and of a model, in their order."""
    for item in record.get("keywords", ()):
        if item["source"] != "clip":
            yield Keyword(item["keyword"], item["source"], item["score"])


def _labels(record: Mapping[str, Any]) -> Iterator[Label]:
    """Keywords best first, then the other labels of the top k."""
    over = record["over_threshold"]
    known = {item["label"] for item in over}
    rest = [item for item in record["labels"] if item["label"] not in known]
    for keyword, items in ((True, over), (False, rest)):
        for item in items:
            yield Label(item["label"], item["cosine"], item["probability"], keyword)


def _alt(rel_path: str, keywords: tuple[Keyword, ...], labels: tuple[Label, ...]) -> str:
    words = [keyword.keyword for keyword in keywords]
    words += [label.label for label in labels if label.keyword]
    if words:
        return "Photo of " + ", ".join(words[:5])
    if labels:
        return f"Photo, possibly of {labels[0].label}"
    return f"Photo {rel_path.rpartition('/')[2]}"


def picture(
    record: Mapping[str, Any], *, machine: Machine, size: int, quality: int
) -> Picture | None:
    """A record's thumbnail as a smaller JPEG in a data URI; None if it cannot be made again."""
    from PIL import Image

    from phototagger.problems import PhotoProblem
    from phototagger.thumbnails import load_thumb

    try:
        image = load_thumb(record, machine=machine, size=size, quality=quality)
    except PhotoProblem as problem:
        log.warning("%s: shown without picture: %s", record["rel_path"], problem)
        return None
    image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True, progressive=True)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{content}", *image.size)


def render(template: str, **values: Any) -> str:
    """Fill a template of config/report; everything is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["month"] = _month
    environment.filters["source"] = described.NAMES.__getitem__
    environment.filters["score"] = lambda value: f"{value:.2f}"
    return environment.get_template(template).render(**values)


def _month(day: str) -> str:
    """`2023-03-05` as `March 2023`, in English; what is not a date as it is."""
    try:
        found = date.fromisoformat(day)
    except ValueError:
        return day
    return f"{month_name[found.month]} {found.year}"
