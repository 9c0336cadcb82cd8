"""Photos that are tagged already, and left alone: the configuration says which fields and whose."""

from collections.abc import Collection
from typing import Any

from phototagger import own_metadata
from phototagger.xmp import Values

# Field of the configuration's `tagged.fields` -> column that has it
_COLUMNS = {
    "keywords": "own_keywords",
    "hierarchy": "own_paths",
    "title": "own_title",
    "caption": "own_caption",
    "description": "own_description",
    "alt_text": "own_alt_text",
    "rating": "own_rating",
}


def is_tagged(theirs: Values, ours: Values, fields: Collection[str], by: Collection[str]) -> bool:
    """Whether a photo has all of these fields, embedded or in its sidecars.

    `theirs` are the values of persons and other programs, `ours` those of photo-tagger; `by` says
    which of the two count. No fields: no photo is tagged.
    """
    if not fields:
        return False
    said: list[dict[str, Any]] = []
    if "person" in by:
        said.append(own_metadata.columns(theirs))
    if "photo-tagger" in by:
        said.append(own_metadata.columns(ours))
    return all(any(columns[_COLUMNS[field]] for columns in said) for field in fields)
