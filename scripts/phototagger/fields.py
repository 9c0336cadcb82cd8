"""The XMP fields that photo-tagger may write.

One line of `FIELDS` is one field; they are written in this order. Photo software reads the first of
its own list of fields that is not empty and ignores the others, so every keyword has to be in each
of the keyword lists that are switched on.
"""

from dataclasses import dataclass

# Tags, as ExifTool calls them, that are dealt with by name
SUBJECT = "XMP-dc:Subject"
TITLE = "XMP-dc:Title"
DESCRIPTION = "XMP-dc:Description"
IMAGE_DESCRIPTION = "XMP-tiff:ImageDescription"
HEADLINE = "XMP-photoshop:Headline"
WRITER = "XMP-photoshop:CaptionWriter"
ALT_TEXT = "XMP-iptcCore:AltTextAccessibility"
EXTENDED = "XMP-iptcCore:ExtDescrAccessibility"
RATING = "XMP-xmp:Rating"

Values = dict[str, list[str]]  # tag as ExifTool calls it -> values in order


@dataclass(frozen=True)
class Field:
    """One XMP field that photo-tagger may write."""

    tag: str  # as ExifTool calls it
    namespace: str
    element: str
    container: str | None  # Bag, Seq or Alt; None: plain text
    switch: str | None  # key of `metadata.fields`; None: only carried over

    @property
    def name(self) -> str:
        """The element's name, `{namespace}element`."""
        return f"{{{self.namespace}}}{self.element}"


_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"
_DIGIKAM = "http://www.digikam.org/ns/1.0/"
_MICROSOFT = "http://ns.microsoft.com/photo/1.0/"
_MEDIAPRO = "http://ns.iview-multimedia.com/mediapro/1.0/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
_XMP = "http://ns.adobe.com/xap/1.0/"

FIELDS = (
    Field(SUBJECT, _DC, "subject", "Bag", "subject"),
    Field("XMP-lr:HierarchicalSubject", _LR, "hierarchicalSubject", "Bag", "hierarchical_subject"),
    Field("XMP-digiKam:TagsList", _DIGIKAM, "TagsList", "Seq", "tags_list"),
    Field("XMP-microsoft:LastKeywordXMP", _MICROSOFT, "LastKeywordXMP", "Bag", "last_keyword"),
    Field("XMP-mediapro:CatalogSets", _MEDIAPRO, "CatalogSets", "Bag", "catalog_sets"),
    Field(TITLE, _DC, "title", "Alt", "title"),
    Field(DESCRIPTION, _DC, "description", "Alt", "description"),
    Field(IMAGE_DESCRIPTION, _TIFF, "ImageDescription", "Alt", "image_description"),
    Field(HEADLINE, _PHOTOSHOP, "Headline", None, "headline"),
    Field(WRITER, _PHOTOSHOP, "CaptionWriter", None, "caption_writer"),
    Field(ALT_TEXT, _IPTC, "AltTextAccessibility", "Alt", "alt_text"),
    Field(
        EXTENDED,
        _IPTC,
        "ExtDescrAccessibility",
        "Alt",
        "extended_description",
    ),
    Field(RATING, _XMP, "Rating", None, None),
)

# Keyword lists and what separates the levels of a path in them ("": no paths, every level alone).
KEYWORD_LISTS = {
    SUBJECT: "",
    "XMP-lr:HierarchicalSubject": "|",
    "XMP-digiKam:TagsList": "/",
    "XMP-microsoft:LastKeywordXMP": "/",
    "XMP-mediapro:CatalogSets": "|",
}
