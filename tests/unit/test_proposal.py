import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phototagger import xmp
from phototagger.fields import ALT_TEXT, EXTENDED, HEADLINE, RATING, SUBJECT, TITLE, WRITER
from phototagger.merge import (
    DESCRIPTIONS,
    Merged,
    Options,
    merge,
)
from phototagger.proposal import embedded, ours, propose, shortened, split
from phototagger.xmp import FIELDS, KeywordMark, ModelMark, Packet, text_digest

DC, TIFF = DESCRIPTIONS
HIERARCHICAL, TAGS_LIST = "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList"
LAST_KEYWORD, CATALOG_SETS = "XMP-microsoft:LastKeywordXMP", "XMP-mediapro:CatalogSets"
OFF = {"title", "last_keyword", "catalog_sets"}  # by default
SWITCHES = {f.switch: f.switch not in OFF for f in FIELDS if f.switch} | {"provenance": True}
NOTHING = dict.fromkeys(SWITCHES, False)


def keyword(*path, synonyms=(), source="vlm", score=None):
    return {
        "keyword": path[-1],
        "path": list(path),
        "synonyms": list(synonyms),
        "source": source,
        "score": score,
    }


def record(*keywords, profiles=None, **more):
    describe = {
        field: {
            "setup": "s",
            "profile": (profiles or {}).get(field, "general"),
            "prompt_digest": "d",
        }
        for field in ("caption", "keywords", "description")
    }
    return {
        "rel_path": "a.jpg",
        "embedded": {},
        "inherited_from": None,
        "keywords": list(keywords),
        "caption": None,
        "description": None,
        "models": {"clip": "c"} | dict.fromkeys(describe, "m"),
        "describe": describe,
    } | more


def values(record, **switches):
    return {tag: v for tag, v in ours(record, SWITCHES | switches).values.items() if v}


def test_every_keyword_is_in_every_list():
    cat = keyword("animal", "mammal", "cat", synonyms=["kitty"])
    found = values(record(cat, keyword("animal", "dog"), keyword("night")), catalog_sets=True)
    assert found == {
        SUBJECT: ["animal", "mammal", "cat", "kitty", "dog", "night"],
        HIERARCHICAL: ["animal|mammal|cat", "animal|dog", "night", "kitty"],
        TAGS_LIST: ["animal/mammal/cat", "animal/dog", "night", "kitty"],
        CATALOG_SETS: ["animal|mammal|cat", "animal|dog", "night", "kitty"],
    }


def test_each_field_has_a_switch():
    full = record(
        keyword("cat"),
        caption="Cat",
        description="A cat.",
        profiles={"caption": "alt-text", "description": "alt-text"},
    )
    everything = ours(full, dict.fromkeys(SWITCHES, True))
    assert set(everything.values) == {field.tag for field in FIELDS if field.switch}
    for field in FIELDS:
        if field.switch:
            assert list(ours(full, NOTHING | {field.switch: True}).values) == [field.tag]
    assert ours(full, NOTHING) == Packet()


def test_texts():
    said = record(caption="A\x00 cat. ", description="A cat\r\nasleep. ")
    assert values(said, title=True) == {
        TITLE: ["A cat."],
        DC: ["A cat\nasleep."],
        TIFF: ["A cat\nasleep."],
        HEADLINE: ["A cat."],
        WRITER: ["photo-tagger"],
    }
    assert values(record(caption=" \x01")) == {}


def test_alt_text_is_that_of_the_profile():
    alt = record(caption="Cat", description="A cat.", profiles={"caption": "alt-text"})
    assert values(alt)[ALT_TEXT] == ["Cat"]
    assert EXTENDED not in values(alt)
    assert ALT_TEXT not in values(record(caption="Cat"))


def test_limits():
    long = "Zwölf Boxkämpfer jagen Viktor " * 100
    found = values(
        record(
            keyword("日" * 30), caption=long, description=long, profiles={"caption": "alt-text"}
        ),
        title=True,
    )
    sizes = {tag: len(v[0].encode()) for tag, v in found.items()}
    assert 40 < sizes[TITLE] <= 64
    assert 200 < sizes[HEADLINE] <= 256
    assert 1900 < sizes[DC] == sizes[TIFF] <= 2000
    assert sizes[SUBJECT] == 63
    assert found[ALT_TEXT] == [long.strip()]


@given(st.text(max_size=40).map(str.strip), st.integers(8, 40))
def test_shortened(text, most):
    short = shortened(text, most)
    assert len(short.encode()) <= most
    assert short == text or (short.endswith("…") and text.startswith(short[:-1]))


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two…"),
        ("one two, three", 11, "one two…"),
        ("one two three", 10, "one two…"),
        ("日本日本日本", 12, "日本日…"),
    ],
)
def test_cut_between_words(text, most, short):
    assert shortened(text, most) == short


def test_what_may_not_be_in_a_level():
    found = values(record(keyword("style", "black/white, toned; print|x")))
    assert found[SUBJECT] == ["style", "black-white toned print-x"]
    assert found[TAGS_LIST] == ["style/black-white toned print-x"]
    assert values(record(keyword("cafe\u0301"), keyword("caf\u00e9")))[SUBJECT] == ["caf\u00e9"]
    assert values(record(keyword("\x01 "))) == {}


def test_a_persons_word_is_the_persons_and_its_place_is_ours():
    tom = keyword("Tom", source="person")
    cat = keyword("animal", "cat", synonyms=["kitty"], source="person", score=0.3)
    assert values(record(tom)) == {}
    assert values(record(tom, cat)) == {
        SUBJECT: ["animal", "kitty"],
        HIERARCHICAL: ["animal|cat", "kitty"],
        TAGS_LIST: ["animal/cat", "kitty"],
    }
    assert ours(record(cat), SWITCHES).marks.keywords == (
        KeywordMark("animal|cat", "clip", "0.300000"),
    )
    odd = keyword("people", "Smith, John", source="person", score=0.3)
    assert values(record(odd))[TAGS_LIST] == ["people"]


def test_marks():
    said = record(
        keyword("animal", "cat", source="clip", score=0.27312345),
        keyword("night"),
        caption="Cat",
        inherited_from="trip/IMG_1.jpg",
    )
    marks = ours(said, SWITCHES).marks
    assert marks.inherited_from == "IMG_1.jpg"
    assert marks.run_id is None
    assert marks.models == (
        ModelMark("caption", "m", "s", "general", "d"),
        ModelMark("keywords", "m", "s", "general", "d"),
        ModelMark("clip", "c"),
    )
    assert marks.keywords == (
        KeywordMark("animal|cat", "clip", "0.273123"),
        KeywordMark("night", "vlm"),
    )
    assert marks.digests == {HEADLINE: text_digest("Cat"), WRITER: text_digest("photo-tagger")}
    bare = ours(said, SWITCHES | {"provenance": False}).marks
    assert (bare.models, bare.keywords) == ((), ())
    assert (bare.written, bare.digests) == (marks.written, marks.digests)


def test_nothing_to_propose():
    inside = {SUBJECT: ["Tom"], TITLE: ["Mine"]}
    assert propose(record(), SWITCHES) is None
    own = record(keyword("Tom", source="person"), embedded=inside)
    assert propose(own, SWITCHES, ["title"]) is None
    blocked = record(description="A cat.", embedded={DC: ["Mine"]})
    assert propose(blocked, SWITCHES) is None
    assert propose(record(keyword("cat"), caption="Cat"), NOTHING) is None


def test_what_is_embedded_is_in_the_proposal():
    inside = {SUBJECT: ["Tom"], HIERARCHICAL: ["people|Ann"], TITLE: ["Mine"], RATING: ["3"]}
    said = record(keyword("cat"), embedded=inside | {"XMP-crs:Odd": ["x"]})
    assert embedded(said) == inside
    found = propose(said, SWITCHES).values
    assert found == {
        SUBJECT: ["Tom", "Ann", "cat"],
        HIERARCHICAL: ["people|Ann", "Tom", "cat"],
        TAGS_LIST: ["people/Ann", "Tom", "cat"],
    }
    carried = propose(said, SWITCHES, ["title", "rating"])
    assert carried.values == found | {TITLE: ["Mine"], RATING: ["3"]}
    assert carried.marks.digests == {}


def test_a_description_is_carried_over_into_the_fields_that_are_on():
    said = record(keyword("cat"), embedded={DC: ["Mine"]})
    assert propose(said, SWITCHES, ["description"]).values[TIFF] == ["Mine"]
    off = SWITCHES | {"image_description": False}
    assert TIFF not in propose(said, off, ["description"]).values


def test_split_tells_ours_from_what_is_carried_over():
    inside = {TITLE: ["Mine"], SUBJECT: ["cat"], RATING: ["3"]}
    said = record(keyword("animal", "cat"), description="A cat.", embedded=inside)
    merged = propose(said, SWITCHES, ["title", "rating"])
    mine, theirs = split(Packet(merged.values, merged.marks), SWITCHES)
    assert {tag: v for tag, v in mine.values.items() if v} == {
        SUBJECT: ["animal"],
        HIERARCHICAL: ["animal|cat"],
        TAGS_LIST: ["animal/cat"],
        DC: ["A cat."],
        TIFF: ["A cat."],
        WRITER: ["photo-tagger"],
    }
    assert {tag: v for tag, v in theirs.items() if v} == inside
    applied = merge(mine, None, theirs, carry=theirs)
    assert applied.values == merged.values
    assert applied.marks.digests == merged.marks.digests | {TITLE: text_digest("Mine")}


def test_split_knows_the_fields_that_are_on_and_empty():
    merged = propose(record(caption="Cat"), SWITCHES)
    mine, _ = split(Packet(merged.values, merged.marks), SWITCHES)
    assert list(mine.values) == [f.tag for f in FIELDS if f.switch and SWITCHES[f.switch]]
    assert mine.values[SUBJECT] == mine.values[TIFF] == []
    applied = merge(mine, Packet({SUBJECT: ["Tom"], DC: ["At sea"]}), {})
    assert applied.values.items() >= {TAGS_LIST: ["Tom"], TIFF: ["At sea"]}.items()
    assert applied.marks.written == {}


def test_keywords_that_a_person_has_too_outlive_a_replacement():
    said = record(
        keyword("animal", "cat"), embedded={SUBJECT: ["cat", "Tom"], HIERARCHICAL: ["animal|cat"]}
    )
    merged = propose(said, SWITCHES)
    assert merged.marks.written == {SUBJECT: ("animal",)}
    mine, theirs = split(Packet(merged.values, merged.marks), SWITCHES)
    assert merge(mine, None, theirs, Options(replace_human=True)).values == {
        SUBJECT: ["animal", "cat"],
        HIERARCHICAL: ["animal|cat"],
        TAGS_LIST: ["animal/cat"],
    }


words = st.lists(st.sampled_from(["Tom", "cat", "boat", "Zoë"]), max_size=3, unique=True)
human = st.fixed_dictionaries(
    {},
    optional={
        SUBJECT: words,
        HIERARCHICAL: words.map(lambda some: [f"people|{word}" for word in some]),
        TAGS_LIST: words,
        DC: st.just(["Mine"]),
        HEADLINE: st.just(["Mine too"]),
        RATING: st.just(["3"]),
    },
).map(lambda found: {tag: v for tag, v in found.items() if v})
records = st.builds(
    lambda paths, caption, description, inside: record(
        *(keyword(*path) for path in paths),
        caption=caption,
        description=None if DC in inside else description,  # then no model was asked
        embedded=inside,
    ),
    st.lists(st.sampled_from([("animal", "cat"), ("animal", "dog"), ("boat",)]), unique=True),
    st.sampled_from([None, "Our caption"]),
    st.sampled_from([None, "Our description"]),
    human,
)


@settings(max_examples=300)
@given(records, human, st.sampled_from([[], ["description", "caption", "rating"]]))
def test_applying_a_proposal_is_merging_the_record(said, found, carry_over):
    proposal = propose(said, SWITCHES, carry_over)
    if proposal is None:
        return
    mine, theirs = split(Packet(proposal.values, proposal.marks), SWITCHES)
    tags = {"description": DESCRIPTIONS, "caption": (HEADLINE,), "rating": (RATING,)}
    carry = {tag for key in carry_over for tag in tags[key]}
    applied = merge(mine, Packet(found), theirs, carry=theirs)
    direct = merge(ours(said, SWITCHES), Packet(found), embedded(said), carry=carry)
    assert sorted_values(applied) == sorted_values(direct)
    assert applied.marks.digests == direct.marks.digests
    assert applied.marks.keywords == direct.marks.keywords


def sorted_values(merged: Merged):
    return {tag: sorted(v) for tag, v in merged.values.items()}


def test_a_proposal_survives_the_file():
    said = record(
        keyword(
            "animal", '<cat> & "dog" 日本 שלום 😀', synonyms=["a'b"], source="clip", score=0.25
        ),
        caption="Line one\nline two; <b>&amp;</b>",
        embedded={SUBJECT: ["Tom & Jerry, Inc."]},
        inherited_from="IMG 1.jpg",
    )
    merged = propose(said, SWITCHES)
    (content,) = xmp.write_xmp([xmp.Item("a.jpg", None, merged.values, merged.marks)])
    assert merged.equals(xmp.parse(content))
