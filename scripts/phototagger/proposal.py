"""What photo-tagger says about a photo, as XMP: from its record, and back from a proposed sidecar.

A proposal is the sidecar that a photo without one would get, without the id of a run. It holds
also what the photo has embedded, because some programs read nothing else once there is a sidecar.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from phototagger.fields import ALT_TEXT, EXTENDED, HEADLINE, RATING, SUBJECT, TITLE, WRITER
from phototagger.merge import (
    DECLINED,
    DESCRIPTIONS,
    Merged,
    merge,
)
from phototagger.xmp import (
    CREATOR,
    FIELDS,
    KEYWORD_LISTS,
    KeywordMark,
    Marks,
    ModelMark,
    Packet,
    Values,
    clean_level,
    clean_text,
    text_digest,
)

Record = Mapping[str, Any]

ALT_TEXT_PROFILE = "alt-text"
# Bytes of UTF-8, as in IPTC-IIM, where the texts end up when they are embedded
_LIMITS = {HEADLINE: 256, TITLE: 64} | dict.fromkeys(DESCRIPTIONS, 2000)
# `metadata.carry_over`: what a photo has embedded, and where it goes
_CARRIED = {
    "title": (TITLE,),
    "caption": (HEADLINE,),
    "description": DESCRIPTIONS,
    "rating": (RATING,),
}


def ours(record: Record, switches: Mapping[str, bool]) -> Packet:
    """What photo-tagger itself says of a photo, in the fields that are switched on.

    Every field that is on is there, be it empty. `switches`: `metadata.fields`.
    """
    paths = [path for keyword in _keywords(record) for path in _paths(keyword)]
    flat = [word for keyword in _keywords(record) for word in _flat(keyword)]
    levels = {level for path in paths for level in path}
    words = [word for word in flat if word not in levels]  # synonyms
    texts = _texts(record)
    values: Values = {}
    for tag in _switched_on(switches):
        if tag == SUBJECT:
            values[tag] = list(dict.fromkeys(flat))
        elif separator := KEYWORD_LISTS.get(tag):
            values[tag] = list(dict.fromkeys([*map(separator.join, paths), *words]))
        else:
            values[tag] = [shortened(texts[tag], _LIMITS.get(tag))] if tag in texts else []
    marks = Marks(
        inherited_from=(record.get("inherited_from") or "").rpartition("/")[2] or None,
        models=tuple(_models(record)) if switches["provenance"] else (),
        keywords=tuple(_keyword_marks(record)) if switches["provenance"] else (),
        written={tag: tuple(v) for tag, v in values.items() if tag in KEYWORD_LISTS and v},
        digests={t: text_digest(v[0]) for t, v in values.items() if v and t not in KEYWORD_LISTS},
    )
    return Packet(values, marks)


def embedded(record: Record) -> Values:
    """The human values inside the photo."""
    inside = record.get("embedded") or {}
    return {field.tag: list(inside[field.tag]) for field in FIELDS if inside.get(field.tag)}


def propose(
    record: Record, switches: Mapping[str, bool], carry_over: Collection[str] = ()
) -> Merged | None:
    """The sidecar of a photo that has none yet; None if photo-tagger has nothing to say."""
    said, inside = ours(record, switches), embedded(record)
    carry = {tag for key in carry_over for tag in _CARRIED[key]}
    if not switches["image_description"]:
        carry.discard(DESCRIPTIONS[1])
    merged = merge(said, None, inside, carry=carry)
    if merged.marks.empty:
        return None
    # Only photo-tagger's own words are marked here, not the person's that are carried over, so
    # that `split` can tell them apart.
    own = {tag: d for tag, d in merged.marks.digests.items() if said.marks.digests.get(tag) == d}
    return replace(merged, marks=replace(merged.marks, digests=own))


def split(proposal: Packet, switches: Mapping[str, bool]) -> tuple[Packet, Values]:
    """A proposal's two sources: photo-tagger's values, and the human ones from inside the photo.

    The texts and the rating among the latter are there to be carried over. `switches`:
    `metadata.fields` with which it was made.
    """
    marks, theirs = proposal.marks, proposal.theirs
    said: Values = {tag: [] for tag in _switched_on(switches)}
    said |= {tag: items for tag, items in proposal.values.items() if tag in marks.digests}
    paths = [mark.path.split("|") for mark in marks.keywords if mark.source != DECLINED]
    flat = set(theirs.get(SUBJECT, ()))
    for tag, separator in KEYWORD_LISTS.items():
        if tag not in proposal.values:
            continue
        there = theirs.get(tag, [])
        # what a person has too is not in `written`, and still what photo-tagger says
        both = {separator.join(path) for path in paths} & set(there) if separator else ()
        said[tag] = [*marks.written.get(tag, ()), *(value for value in there if value in both)]
        if separator:  # flat keywords are copies of those in dc:subject
            theirs[tag] = [value for value in there if value not in flat]
    return Packet({f.tag: said[f.tag] for f in FIELDS if f.tag in said}, marks), theirs


def shortened(text: str, most: int | None) -> str:
    """At most `most` bytes of UTF-8, cut between words where there are some; None: no limit."""
    if most is None or len(text.encode()) <= most:
        return text
    cut = text.encode()[: most - len("…".encode())].decode(errors="ignore")
    head = cut if text[len(cut)].isspace() else cut.rstrip().rpartition(" ")[0]
    return (head if len(head) > len(cut) // 2 else cut).rstrip(" \n,;:.") + "…"


def _switched_on(switches: Mapping[str, bool]) -> Iterator[str]:
    return (field.tag for field in FIELDS if field.switch and switches.get(field.switch))


# ------------------------------------------------------------------------------------- keywords


def _keywords(record: Record) -> Iterable[Mapping[str, Any]]:
    return record.get("keywords") or ()


def _levels(keyword: Mapping[str, Any]) -> list[str]:
    levels = (clean_level(level) for level in keyword.get("path") or [keyword["keyword"]])
    return [level for level in levels if level]


def _is_theirs(keyword: Mapping[str, Any]) -> bool:
    return keyword.get("source") == "person"


def _paths(keyword: Mapping[str, Any]) -> list[list[str]]:
    """The keyword in the hierarchy: none if it is merely a person's word, or one that cannot stand
    in a path as it is."""
    levels = _levels(keyword)
    if _is_theirs(keyword) and (len(levels) < 2 or levels[-1] != keyword["keyword"]):
        return []
    return [levels] if levels else []


def _flat(keyword: Mapping[str, Any]) -> list[str]:
    """Its levels and synonyms; a person's word itself is the person's."""
    levels = _levels(keyword)
    if _is_theirs(keyword):
        levels = levels[:-1]
    synonyms = (clean_level(word) for word in keyword.get("synonyms") or ())
    return levels + [word for word in synonyms if word]


def _keyword_marks(record: Record) -> Iterator[KeywordMark]:
    for keyword in _keywords(record):
        score = keyword.get("score")
        source = keyword["source"]
        if source == "person":  # its place in the hierarchy is someone else's
            source = "vlm" if score is None else "clip"
        for path in _paths(keyword):
            yield KeywordMark("|".join(path), source, None if score is None else f"{score:.6f}")


# ---------------------------------------------------------------------------------------- texts


def _asked(record: Record, field: str) -> Mapping[str, Any]:
    return (record.get("describe") or {}).get(field) or {}


def _texts(record: Record) -> dict[str, str]:
    """What the models wrote, by the fields it can stand in."""
    caption = clean_text(record.get("caption") or "")
    description = clean_text(record.get("description") or "")
    texts = {HEADLINE: caption, TITLE: caption} | dict.fromkeys(DESCRIPTIONS, description)
    if _asked(record, "caption").get("profile") == ALT_TEXT_PROFILE:
        texts[ALT_TEXT] = caption
    if _asked(record, "description").get("profile") == ALT_TEXT_PROFILE:
        texts[EXTENDED] = description
    if caption or description:
        texts[WRITER] = CREATOR
    return {tag: text for tag, text in texts.items() if text}


def _models(record: Record) -> Iterator[ModelMark]:
    """What made the fields that the record has values of."""
    sources = {keyword.get("source") for keyword in _keywords(record)}
    scored = any(keyword.get("score") is not None for keyword in _keywords(record))
    there = {
        "caption": bool(record.get("caption")),
        "keywords": "vlm" in sources,
        "description": bool(record.get("description")),
        "clip": "clip" in sources or scored,
    }
    models = record.get("models") or {}
    for field in (field for field, present in there.items() if present and field in models):
        how = _asked(record, field)
        yield ModelMark(
            field, models[field], how.get("setup"), how.get("profile"), how.get("prompt_digest")
        )
