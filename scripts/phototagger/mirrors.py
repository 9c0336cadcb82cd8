"""Mirrors: copies of photo-tagger's keywords that another program made in lists of its own.

digiKam reads keywords from one list and writes them all to every list it knows. In a list that
photo-tagger does not write, they look like a person's, and would be for ever. Nobody knows for
sure, so they are left where they are: not spread like a person's, not removed like photo-tagger's.
"""

from phototagger.fields import KEYWORD_LISTS, Values
from phototagger.marks import WITHDRAWN, Marks
from phototagger.union import Levels, spell

# Lists that hardly anybody writes but programs that copy (digiKam, Windows, Media Pro)
MIRRORING = ("XMP-microsoft:LastKeywordXMP", "XMP-mediapro:CatalogSets")


def mirrored(values: Values, marks: Marks) -> Values:
    """The mirrors in a sidecar, by list.

    They spell a keyword that photo-tagger wrote into other lists, or did so once; the former only
    where it has none of its own, since there a person's can be told from them.
    """
    found: Values = {}
    for tag in MIRRORING:
        if not (items := values.get(tag)):
            continue
        written = set(marks.written.get(tag, ()))
        paths = _withdrawn(marks) if written else _withdrawn(marks) | _written(marks)
        spelt = {spell(path, tag) for path in paths} - written
        if mirrors := [item for item in items if item in spelt]:
            found[tag] = mirrors
    return found


def paths_in(values: Values) -> set[Levels]:
    """What stands in the lists in which there may be mirrors."""
    return {
        tuple(value.split(KEYWORD_LISTS[tag])) for tag in MIRRORING for value in values.get(tag, ())
    }


def _withdrawn(marks: Marks) -> set[Levels]:
    return {tuple(mark.path.split("|")) for mark in marks.keywords if mark.source == WITHDRAWN}


def _written(marks: Marks) -> set[Levels]:
    return {
        tuple(value.split(separator)) if separator else (value,)
        for tag, separator in KEYWORD_LISTS.items()
        for value in marks.written.get(tag, ())
    }
