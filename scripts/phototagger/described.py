"""What a record says of a photo in words, as people are shown it in summaries and pages.

Words of a model are data like file names: one line without control characters here, and escaped by
whoever writes them into Markdown or HTML.
"""

import re
from collections.abc import Mapping
from typing import Any

NAMES = {"person": "Person", "vlm": "VLM", "clip": "CLIP"}  # of the sources of keywords

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def text(record: Mapping[str, Any], field: str) -> str | None:
    """The photo's caption or description in one line: the model's, or the photo's own if that is
    why the model was not asked; None if there is neither, or the stage is off."""
    if record.get("tagged"):
        return plain(record["own"][field] or "") or None
    answer = record.get("describe", {}).get(field)
    if answer is None:
        return None
    own = answer["status"] == "skipped" and record.get("own", {}).get(field)
    return plain(own or record.get(field) or "") or None


def plain(words: str) -> str:
    """In one line, without control characters."""
    return " ".join(_CONTROL.sub(" ", words).split())


def beginning(words: str, most: int) -> str:
    """At most `most` characters of a text, cut between words where it has spaces."""
    if len(words) <= most:
        return words
    cut = words[: most - 1]
    head = cut.rpartition(" ")[0] if words[most - 1] != " " else cut
    return (head if len(head) > most // 2 else cut).rstrip(" ,;:.") + "…"
