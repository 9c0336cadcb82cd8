"""What a sidecar shall hold: a person's metadata joined with what photo-tagger proposes.

Nothing is read or written here, and no human value is ever dropped, altered or moved. A value is a
person's unless the marks in the sidecar say that photo-tagger wrote it.

Keywords. Readers take the first of their own list of keyword lists that is not empty and ignore the
others, so each list that is switched on gets every human keyword, from the sidecar and from the
photo, before photo-tagger's are added to it. Copies of human keywords are human keywords: they are
not marked, and never removed.

Texts. Photo-tagger's is written only where no person wrote one. Copies of a person's text are
marked like photo-tagger's own, so that they follow when the person changes it.

What photo-tagger wrote and no longer proposes is removed. What a person removed of it is declined:
it is not written again for as long as it is proposed, and the marks remember it. Copies of its
keywords that some program made in other lists are left alone (see `mirrors`).
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from phototagger.fields import (
    ALT_TEXT,
    DESCRIPTION,
    EXTENDED,
    FIELDS,
    HEADLINE,
    IMAGE_DESCRIPTION,
    KEYWORD_LISTS,
    RATING,
    SUBJECT,
    TITLE,
    WRITER,
    Values,
)
from phototagger.marks import DECLINED, WITHDRAWN, KeywordMark, Marks, ModelMark, text_digest
from phototagger.mirrors import paths_in
from phototagger.union import Levels, extended, spell, unite
from phototagger.xmp import Packet

DESCRIPTIONS = (DESCRIPTION, IMAGE_DESCRIPTION)  # the same text twice, for different programs

# Fields of one text each, that stand for the same thing: a person's text in one speaks for all.
TEXT_GROUPS = (DESCRIPTIONS, (HEADLINE,), (TITLE,), (ALT_TEXT,), (EXTENDED,))
# Which fields show what a model was asked for (`ModelMark.field`)
_SHOWN_IN = {"caption": {HEADLINE, TITLE, ALT_TEXT}, "description": {*DESCRIPTIONS, EXTENDED}}

_ORDER = {field.tag: number for number, field in enumerate(FIELDS)}


@dataclass(frozen=True)
class Options:
    overwrite: bool = False  # also what a person removed
    replace_human: bool = False  # exactly photo-tagger's values, wherever it has some


@dataclass(frozen=True)
class Merged:
    """What the sidecar shall hold in `FIELDS` and in photo-tagger's namespace; nothing else of it
    changes. Without values and marks it has no reason to be there (see `is_empty`)."""

    values: Values
    marks: Marks
    # What a person removed and is not written again: keywords as paths with bars, texts as tags
    declined: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.values and self.marks.empty

    def equals(self, packet: Packet | None) -> bool:
        """Whether a sidecar holds this already, whichever run wrote it."""
        there = packet or Packet()
        same = there.values == self.values
        return same and there.marks.without_run() == self.marks.without_run()


def merge(
    ours: Packet,
    found: Packet | None,
    embedded: Values,
    options: Options = Options(),
    *,
    carry: Collection[str] = (),
) -> Merged:
    """Join photo-tagger's values with a person's, from the sidecar and from the photo.

    ours: its `values` have a key for every field that is switched on, be it empty; its marks say
        where the values come from (`written` and `digests` are not looked at).
    found: the sidecar as it is; None if there is none.
    embedded: human values inside the photo.
    carry: tags whose embedded values the sidecar gets where it has none (texts and the rating).

    Merging again changes nothing. When nothing of photo-tagger's stands, the sidecar is as if it
    had never been there, but for copies of human keywords, and the memory of what was declined.
    """
    found = found or Packet()
    keywords = _merge_keywords(ours, found, embedded, options)
    texts = [_merge_text(tags, ours, found, embedded, options, carry) for tags in TEXT_GROUPS]
    said = {tag for text in texts for tag in text.ours}
    if said & {tag for tags in _SHOWN_IN.values() for tag in tags}:
        texts.append(_merge_text((WRITER,), ours, found, embedded, options, carry))

    declined_marks = tuple(KeywordMark("|".join(path), DECLINED) for path in keywords.declined)
    declined_digests = _join(text.declined for text in texts)
    declined = (*(mark.path for mark in declined_marks), *declined_digests)
    if not said and not any(keywords.written.values()):
        marks = Marks(keywords=declined_marks, digests=declined_digests)
        values = _human_values(found)
        return Merged(values, _remembering(found.mirrored, values, marks), declined)

    values = {tag: [text] for tag, text in _join(text.values for text in texts).items()}
    values |= {tag: items for tag, items in keywords.lists.items() if items}
    human = _human_values(found)
    if RATING in carry and RATING in embedded:
        human.setdefault(RATING, embedded[RATING])
    spoken_for = {*KEYWORD_LISTS, *values}
    if options.replace_human:
        spoken_for |= {tag for tags in TEXT_GROUPS if not said.isdisjoint(tags) for tag in tags}
    values |= {tag: items for tag, items in human.items() if tag not in spoken_for}
    marks = replace(
        ours.marks,
        models=_standing_models(ours.marks.models, said, keywords.written),
        keywords=_standing_keywords(ours.marks.keywords, keywords.kept) + declined_marks,
        written={tag: tuple(items) for tag, items in keywords.written.items() if items},
        digests=_join(text.digests for text in texts) | declined_digests,
    )
    return Merged(_in_order(values), _remembering(found.mirrored, values, marks), declined)


def _human_values(found: Packet) -> Values:
    """The sidecar without anything that photo-tagger wrote, and nothing added."""
    values = found.theirs
    for tag, mirrors in found.mirrored.items():
        kept = {*values.get(tag, ()), *mirrors}
        values[tag] = [value for value in found.values[tag] if value in kept]
    for tag in found.marks.digests:
        if (text := _human_text(found, tag)) is not None:
            values[tag] = [text]
    return _in_order(values)


def _in_order(values: Values) -> Values:
    return {tag: values[tag] for tag in sorted(values, key=_ORDER.__getitem__)}


def _join(mappings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for mapping in mappings for key, value in mapping.items()}


def _standing_models(
    models: Sequence[ModelMark], said: Collection[str], written: Values
) -> tuple[ModelMark, ...]:
    def stands(model: ModelMark) -> bool:
        shown_in = _SHOWN_IN.get(model.field)
        return any(written.values()) if shown_in is None else not shown_in.isdisjoint(said)

    return tuple(model for model in models if stands(model))


def _standing_keywords(
    marks: Sequence[KeywordMark], kept: Collection[Levels]
) -> tuple[KeywordMark, ...]:
    return tuple(mark for mark in marks if tuple(mark.path.split("|")) in kept)


def _remembering(mirrors: Values, values: Values, marks: Marks) -> Marks:
    """The marks, with what it takes to know again the mirrors that are still there.

    One that a person has in such a list too, is the person's from now on.
    """
    if not mirrors:
        return marks
    theirs = Packet(values, marks).theirs
    human = {tag: _without(items, mirrors.get(tag, ())) for tag, items in theirs.items()}
    forgotten = {
        tag: [item for item in items if item in theirs.get(tag, ())]
        for tag, items in mirrors.items()
    }
    paths = sorted(paths_in(forgotten) - paths_in(human))
    more = tuple(KeywordMark("|".join(path), WITHDRAWN) for path in paths)
    return replace(marks, keywords=marks.keywords + more)


# ------------------------------------------------------------------------------------- keywords


@dataclass(frozen=True)
class _Keywords:
    lists: Values  # everything
    written: Values  # photo-tagger's values among them: no person has them there
    kept: Collection[Levels]  # of the keywords proposed
    declined: Collection[Levels]


def _merge_keywords(ours: Packet, found: Packet, embedded: Values, options: Options) -> _Keywords:
    wanted = {tag: ours.values[tag] for tag in KEYWORD_LISTS if tag in ours.values}
    proposed = _proposed(wanted)
    alone = options.replace_human and bool(proposed)
    declined = {} if options.overwrite or alone else _declined(proposed, found)
    kept = {path: None for path in proposed if path not in declined}
    human = {} if alone else unite(found.theirs, embedded, wanted)
    mirrors = {} if alone else found.mirrored
    if alone and SUBJECT in wanted:  # also the keywords that only a person had there
        wanted[SUBJECT] = extended(wanted[SUBJECT], (path[-1] for path in proposed))

    lists: Values = {}
    written: Values = {}
    mirrorable = paths_in(human)  # written into another list, a person's would become a mirror
    for tag, separator in KEYWORD_LISTS.items():
        theirs = human.get(tag, [])
        taken = {folded(value) for value in theirs}
        taken |= {folded(spell(path, tag)) for path in mirrorable if separator}
        values = _of_paths(wanted.get(tag, []), tag, kept)
        written[tag] = [value for value in values if folded(value) not in taken]
        # what is there keeps its place, so that a list some program sorted is not written again
        wanted_here = {*theirs, *written[tag], *mirrors.get(tag, ())}
        staying = [value for value in found.values.get(tag, []) if value in wanted_here]
        lists[tag] = extended(staying, [*theirs, *written[tag]])
    return _Keywords(lists, written, kept, declined)


def _proposed(wanted: Values) -> dict[Levels, None]:
    """The keywords in photo-tagger's lists; a flat one if it is no level of another."""
    paths = {
        tuple(value.split(separator)): None
        for tag, separator in KEYWORD_LISTS.items()
        if separator
        for value in wanted.get(tag, [])
    }
    levels = {level for path in paths for level in path}
    return paths | {(word,): None for word in wanted.get(SUBJECT, []) if word not in levels}


def _of_paths(values: Iterable[str], tag: str, kept: Collection[Levels]) -> list[str]:
    """Which of photo-tagger's values in a list the kept keywords need: themselves, their levels."""
    if separator := KEYWORD_LISTS[tag]:
        return [value for value in values if tuple(value.split(separator)) in kept]
    levels = {level for path in kept for level in path}
    return [value for value in values if value in levels]


def _declined(proposed: Iterable[Levels], found: Packet) -> dict[Levels, None]:
    """The keywords that a person removed, now or before.

    One is removed if it is missing in a list where it was written and others still are. A whole
    list that is missing was dropped by some program, unless it was the last one.
    """
    known = {
        tuple(mark.path.split("|")) for mark in found.marks.keywords if mark.source == DECLINED
    }
    mirrors = found.mirrored
    none_left = all(len(found.values.get(t, ())) == len(mirrors.get(t, ())) for t in KEYWORD_LISTS)
    missing = {
        (tag, value)
        for tag, written in found.marks.written.items()
        if none_left or found.values.get(tag)
        for value in set(written) - set(found.values.get(tag, ()))
    }
    return {
        path: None
        for path in proposed
        if path in known or any((tag, spell(path, tag)) in missing for tag in KEYWORD_LISTS)
    }


def folded(keyword: str) -> str:
    """The form in which two spellings of a keyword are the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", keyword).casefold())


# ---------------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class _Text:
    """The fields of one group; all by tag."""

    values: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)  # of what photo-tagger put there
    ours: Collection[str] = ()  # where its own words stand
    declined: Mapping[str, str] = field(default_factory=dict)  # digests


def _merge_text(
    tags: Sequence[str],
    ours: Packet,
    found: Packet,
    embedded: Values,
    options: Options,
    carry: Collection[str],
) -> _Text:
    wanted = {tag: ours.values[tag][0] for tag in tags if ours.values.get(tag)}
    said = _Text(wanted, _digests(wanted), wanted.keys())
    if wanted and options.replace_human:
        return said
    if human := {tag: text for tag in tags if (text := _human_text(found, tag)) is not None}:
        text = next(iter(human.values()))
        copies = {tag: text for tag in tags if tag in ours.values and tag not in human}
        return _Text(human | copies, _digests(copies))
    if inside := {tag: texts[0] for tag in tags if (texts := embedded.get(tag))}:
        text = next(iter(inside.values()))
        copies = {tag: inside.get(tag, text) for tag in tags if tag in carry}
        return _Text(copies, _digests(copies))
    if not options.overwrite and _emptied(tags, found, said.digests):
        return _Text(declined=said.digests)
    return said


def _digests(texts: Mapping[str, str]) -> dict[str, str]:
    return {tag: text_digest(text) for tag, text in texts.items()}


def _human_text(found: Packet, tag: str) -> str | None:
    """A person's text in a field, in whatever language; None if there is none."""
    texts = [*found.values.get(tag, ()), *found.languages.get(tag, {}).values()]
    digest = found.marks.digests.get(tag)
    return next((t for t in texts if t.strip() and text_digest(t) != digest), None)


def _emptied(tags: Iterable[str], found: Packet, digests: Mapping[str, str]) -> bool:
    """Whether photo-tagger wrote this text before, and none of the fields has any text now."""
    written = {found.marks.digests[tag] for tag in tags if tag in found.marks.digests}
    texts = (text for tag in tags for text in found.values.get(tag, ()))
    return not written.isdisjoint(digests.values()) and not any(map(str.strip, texts))


# --------------------------------------------------------------------------------------- changes


@dataclass(frozen=True)
class Change:
    """What happens to one field: keywords come and go, a text becomes another."""

    tag: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    before: str | None = None
    after: str | None = None


def changes(before: Packet | None, after: Merged) -> tuple[Change, ...]:
    """The differences in the fields, in their order; none if only the marks differ."""
    old, new = (before or Packet()).values, after.values
    found = []
    for tag in old | new:
        was, will = old.get(tag, []), new.get(tag, [])
        if tag not in KEYWORD_LISTS:
            change = Change(tag, before=_first(was), after=_first(will))
        else:
            change = Change(tag, _without(will, was), _without(was, will))
        if was != will:
            found.append(change)
    return tuple(sorted(found, key=lambda change: _ORDER[change.tag]))


def _without(values: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    others = set(others)
    return tuple(value for value in values if value not in others)


def _first(items: Sequence[str]) -> str | None:
    return items[0] if items else None
