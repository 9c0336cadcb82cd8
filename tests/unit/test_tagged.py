"""What counts as a photo that is tagged already."""

import pytest

from phototagger.tagged import is_tagged

THEIRS = {
    "XMP-dc:Subject": ["cat"],
    "XMP-dc:Title": ["Tom"],
    "XMP-tiff:ImageDescription": ["Tom on a wall."],
    "XMP-xmp:Rating": ["3"],
}
OURS = {
    "XMP-digiKam:TagsList": ["animal/cat"],
    "XMP-photoshop:Headline": ["A cat"],
    "XMP-iptcCore:AltTextAccessibility": ["A cat on a wall"],
}


@pytest.mark.parametrize(
    ("fields", "by", "expected"),
    [
        ([], ["person"], False),
        (["keywords"], ["person"], True),
        (["keywords", "title", "description", "rating"], ["person"], True),
        (["caption"], ["person"], True),  # a title serves as the caption
        (["hierarchy"], ["person"], False),
        (["alt_text"], ["person"], False),
        (["keywords", "alt_text"], ["person"], False),
        (["hierarchy", "alt_text"], ["photo-tagger"], True),
        (["rating"], ["photo-tagger"], False),
        (["rating", "alt_text"], ["person", "photo-tagger"], True),
        (["keywords", "hierarchy", "title", "description"], ["person", "photo-tagger"], True),
    ],
)
def test_is_tagged(fields: list[str], by: list[str], expected: bool) -> None:
    assert is_tagged(THEIRS, OURS, fields, by) is expected


def test_what_says_nothing_does_not_count() -> None:
    empty = {
        "XMP-dc:Subject": [" "],
        "XMP-dc:Description": ["OLYMPUS DIGITAL CAMERA"],
        "XMP-xmp:Rating": ["0"],
    }
    for field in ("keywords", "description", "rating"):
        assert not is_tagged(empty, {}, [field], ["person"])
