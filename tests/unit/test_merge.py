from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phototagger.fields import ALT_TEXT, HEADLINE, RATING, SUBJECT, TITLE, WRITER
from phototagger.merge import (
    DESCRIPTIONS,
    Change,
    Merged,
    Options,
    changes,
    merge,
)
from phototagger.mirrors import MIRRORING
from phototagger.xmp import KEYWORD_LISTS, KeywordMark, Marks, ModelMark, Packet, text_digest

HIERARCHICAL, TAGS_LIST, LAST_KEYWORD, CATALOG_SETS = list(KEYWORD_LISTS)[1:]
ON = (SUBJECT, HIERARCHICAL, TAGS_LIST)
DC, TIFF = DESCRIPTIONS
PLAIN, OVERWRITE, REPLACE = Options(), Options(overwrite=True), Options(replace_human=True)


def ours(*paths, lists=ON, flat=(), **texts):
    """What photo-tagger says: paths as a|b|c, synonyms, texts by field."""
    levels = [path.split("|") for path in paths]
    values = {}
    for tag in lists:
        if tag == SUBJECT:
            words = [level for path in levels for level in path]
        else:
            words = [KEYWORD_LISTS[tag].join(path) for path in levels]
        values[tag] = list(dict.fromkeys([*words, *flat]))
    fields = {
        "description": DESCRIPTIONS,
        "caption": (HEADLINE,),
        "title": (TITLE,),
        "writer": (WRITER,),
    }
    values |= {tag: [text] if text else [] for key, text in texts.items() for tag in fields[key]}
    return Packet(values, Marks(keywords=tuple(KeywordMark(p, "vlm") for p in paths)))


def written(merged, before=None):
    """The sidecar after writing; None if it would be removed."""
    languages = before.languages if before else {}
    if merged.is_empty and not languages:
        return None
    return Packet(merged.values, merged.marks, languages)


def run(said, found=None, embedded=None, options=PLAIN, **more):
    return written(merge(said, found, embedded or {}, options, **more), found)


def edited(packet, **changed):
    """A person's edit: tags (last part, lower case) to values; None removes the field."""
    names = {tag.partition(":")[2].lower(): tag for tag in (*KEYWORD_LISTS, *packet.values, DC)}
    values = {**packet.values, **{names[k]: v for k, v in changed.items()}}
    return replace(packet, values={tag: v for tag, v in values.items() if v})


def sidecar(**values):
    return edited(Packet({}), **values)


# ------------------------------------------------------------------------------------- keywords


def test_a_new_sidecar():
    after = run(ours("animal|cat", "night", flat=["kitty"]))
    assert after.values == {
        SUBJECT: ["animal", "cat", "night", "kitty"],
        HIERARCHICAL: ["animal|cat", "night", "kitty"],
        TAGS_LIST: ["animal/cat", "night", "kitty"],
    }
    assert after.marks.written == {tag: tuple(v) for tag, v in after.values.items()}


def test_a_persons_keywords_go_into_every_list_as_the_persons():
    found = sidecar(subject=["Tom", "boat"], hierarchicalsubject=["people|Tom"])
    after = run(ours("night"), found, {TAGS_LIST: ["places/Lisbon"]})
    assert after.values == {
        SUBJECT: ["Tom", "boat", "Lisbon", "night"],
        HIERARCHICAL: ["people|Tom", "places|Lisbon", "boat", "night"],
        TAGS_LIST: ["places/Lisbon", "people/Tom", "boat", "night"],
    }
    assert after.marks.written == dict.fromkeys(ON, ("night",))
    assert run(ours(), after).values == {
        tag: [v for v in items if v != "night"] for tag, items in after.values.items()
    }


def test_separators_in_a_flat_keyword_do_not_make_it_a_path():
    after = run(ours("night"), sidecar(subject=["AC/DC", "a|b"]))
    assert all(after.values[tag] == ["AC/DC", "a|b", "night"] for tag in ON)
    assert run(ours("night"), after) == after


def test_a_flat_keyword_is_no_path_either_where_one_list_has_paths():
    said = ours("night", lists=[SUBJECT, TAGS_LIST])
    after = run(said, sidecar(subject=["AC/DC"]))
    assert after.values == {SUBJECT: ["AC/DC", "night"], TAGS_LIST: ["AC/DC", "night"]}
    assert run(said, after) == after


def test_copies_that_read_as_something_else_settle_at_once():
    said = ours("night", lists=[SUBJECT, TAGS_LIST])
    after = run(said, sidecar(hierarchicalsubject=["x|a/b"], tagslist=["a/b"]))
    assert run(said, after) == after


def test_separators_in_a_level():
    after = run(ours("night"), sidecar(hierarchicalsubject=["bands|AC/DC"]))
    assert after.values == {
        SUBJECT: ["AC/DC", "night"],
        HIERARCHICAL: ["bands|AC/DC", "night"],
        TAGS_LIST: ["bands/AC/DC", "night"],
    }
    assert run(ours("night"), after) == after


def test_a_list_that_is_switched_off_keeps_what_a_person_has_there():
    found = sidecar(lastkeywordxmp=["people/Tom"])
    after = run(ours("night"), found)
    assert after.values[LAST_KEYWORD] == ["people/Tom"]
    assert after.values[HIERARCHICAL] == ["people|Tom", "night"]
    wide = run(ours("night", lists=KEYWORD_LISTS), after)
    assert wide.values[LAST_KEYWORD] == ["people/Tom", "night"]
    narrow = run(ours("night"), wide)
    assert narrow.values == {**after.values, CATALOG_SETS: ["people|Tom"]}


def test_what_the_person_has_is_not_said_twice_and_stays_the_persons():
    after = run(ours("animal|cat"), sidecar(subject=["CAT"]))
    assert after.values[SUBJECT] == ["CAT", "animal"]
    assert after.values[TAGS_LIST] == ["CAT", "animal/cat"]
    assert after.marks.written[SUBJECT] == ("animal",)


def test_what_is_no_longer_proposed_goes():
    after = run(ours("dog"), run(ours("cat", "dog"), sidecar(subject=["Tom"])))
    assert all(after.values[tag] == ["Tom", "dog"] for tag in ON)


def test_what_is_there_keeps_its_place():
    before = run(ours("cat", "dog"))
    found = edited(before, subject=["boat", "dog", "cat"], tagslist=["boat", "cat", "dog"])
    found = edited(found, hierarchicalsubject=["dog", "boat", "cat"])
    assert run(ours("cat", "dog"), found) == found


def test_a_persons_keyword_that_is_also_a_level_is_in_every_list():
    after = run(ours("night"), sidecar(hierarchicalsubject=["animal", "animal|cat"]))
    assert after.values == {
        SUBJECT: ["cat", "animal", "night"],
        HIERARCHICAL: ["animal", "animal|cat", "night"],
        TAGS_LIST: ["animal/cat", "night"],
    }


def test_one_whose_list_was_dropped_is_filled_again():
    before = run(ours("animal|cat", "night"))
    assert run(ours("animal|cat", "night"), edited(before, tagslist=None)) == before


@pytest.mark.parametrize(
    "edit",
    [
        {"subject": ["animal", "dog"]},
        {"tagslist": ["animal/dog"]},
        {"hierarchicalsubject": ["animal|dog"], "subject": None},
    ],
)
def test_a_removed_keyword_is_declined(edit):
    said = ours("animal|cat", "animal|dog")
    found = edited(run(said), **edit)
    merged = merge(said, found, {})
    after = written(merged)
    assert merged.declined == ("animal|cat",)
    assert after.values[SUBJECT] == ["animal", "dog"]
    assert after.values[TAGS_LIST] == ["animal/dog"]
    assert run(said, after) == after
    assert run(said, after, options=OVERWRITE).values[TAGS_LIST] == ["animal/dog", "animal/cat"]


def test_a_level_is_filled_again():
    said = ours("animal|cat")
    found = edited(run(said), subject=["cat"])
    merged = merge(said, found, {})
    assert merged.values[SUBJECT] == ["cat", "animal"]
    assert merged.declined == ()


def test_a_removed_synonym_is_declined():
    said = ours("cat", flat=["kitty"])
    assert all(v == ["cat"] for v in run(said, edited(run(said), subject=["cat"])).values.values())


def test_all_removed_are_all_declined_and_remembered():
    said = ours("cat", "dog")
    nothing = dict.fromkeys(("subject", "hierarchicalsubject", "tagslist"))
    merged = merge(said, edited(run(said), **nothing), {SUBJECT: ["Tom"]})
    assert (merged.values, merged.declined) == ({}, ("cat", "dog"))
    assert not merged.is_empty
    assert run(said, written(merged)) == written(merged)
    assert run(ours("cat", "cow"), written(merged)).values[SUBJECT] == ["cow"]


def test_one_declined_and_then_added_by_the_person_is_the_persons():
    said = ours("cat", "dog")
    after = run(said, edited(run(said), subject=["dog"]))
    again = run(said, edited(after, subject=["dog", "cat"]))
    assert all(v == ["dog", "cat"] for v in again.values.values())
    assert all(v == ["cat"] for v in run(ours(), again).values.values())


def test_replacing_the_persons_keywords():
    found = sidecar(subject=["Tom", "cat"], lastkeywordxmp=["people/Tom"])
    said = Packet({SUBJECT: ["animal"], TAGS_LIST: ["animal/cat"]})  # as `split` has it
    after = run(said, found, {SUBJECT: ["boat"]}, REPLACE)
    assert after.values == {SUBJECT: ["cat", "animal"], TAGS_LIST: ["animal/cat"]}
    assert after.marks.written == {SUBJECT: ("animal", "cat"), TAGS_LIST: ("animal/cat",)}
    assert run(said, after, {SUBJECT: ["boat"]}, REPLACE) == after
    assert run(ours(description="text"), found, {}, REPLACE).values[SUBJECT] == ["Tom", "cat"]


def test_a_rating_is_carried_over_and_never_changed():
    embedded = {RATING: ["3"]}
    assert RATING not in run(ours("cat"), None, embedded).values
    after = run(ours("cat"), None, embedded, carry=[RATING])
    assert after.values[RATING] == ["3"]
    found = replace(after, values={**after.values, RATING: ["5"]})
    assert run(ours("cat"), found, embedded, REPLACE, carry=[RATING]) == found
    assert run(ours(), found, embedded, carry=[RATING]).values == {RATING: ["5"]}


def test_the_sidecar_is_withdrawn():
    found = sidecar(subject=["Tom"])
    found = replace(found, values={**found.values, RATING: ["4"], DC: ["Mine"]})
    after = run(ours("cat", caption="A cat.", writer="photo-tagger"), found)
    gone = run(ours(), after)
    assert gone == Packet({**found.values, **{tag: ["Tom"] for tag in ON}})
    assert run(ours(), run(ours("cat"))) is None


# ---------------------------------------------------------------------------------------- mirrors


def mirroring(packet):
    """What digiKam does on every write: all lists it knows, from its own database."""
    tags_list = packet.values[TAGS_LIST]
    return edited(
        packet,
        lastkeywordxmp=tags_list,
        catalogsets=[value.replace("/", "|") for value in tags_list],
    )


def test_copies_of_ours_are_nobodys():
    after = run(ours("animal|cat", "night"), sidecar(subject=["Tom"]))
    found = mirroring(after)
    assert found.theirs == {tag: ["Tom"] for tag in (*ON, LAST_KEYWORD, CATALOG_SETS)}
    assert found.mirrored[LAST_KEYWORD] == ["animal/cat", "night"]
    assert run(ours("animal|cat", "night"), found) == found

    less = run(ours("night"), found)
    assert less.values[TAGS_LIST] == ["Tom", "night"]
    assert less.values[CATALOG_SETS] == ["Tom", "animal|cat", "night"]
    assert KeywordMark("animal|cat", "withdrawn") in less.marks.keywords
    assert less.theirs == found.theirs
    assert run(ours("night"), less) == less

    nothing = run(ours(), less)
    assert nothing.values[LAST_KEYWORD] == ["Tom", "animal/cat", "night"]
    assert {mark.path for mark in nothing.marks.keywords} == {"animal|cat", "night"}
    assert nothing.theirs == found.theirs
    gone = run(ours(), mirroring(nothing))
    assert gone == Packet(found.theirs)  # nothing left to be remembered

    again = run(ours("animal|cat", "night"), nothing)
    assert again == found


def test_what_the_person_has_in_a_list_of_copies_is_the_persons():
    found = sidecar(lastkeywordxmp=["animal", "animal/cat"], catalogsets=["night"])
    said = ours("animal", "animal|cat", "night", "dog")
    after = run(said, found)
    assert after.marks.written == dict.fromkeys(ON, ("dog",))
    assert after.theirs[LAST_KEYWORD] == ["animal", "animal/cat"]
    assert run(said, after) == after
    assert run(ours(), after).theirs.items() >= found.values.items()


def test_a_flat_keyword_of_the_person_below_ours_is_the_persons():
    said = ours("animal|cat")
    after = mirroring(run(said, sidecar(subject=["cat"])))
    assert after.theirs[LAST_KEYWORD] == ["cat"]
    assert after.mirrored[LAST_KEYWORD] == ["animal/cat"]
    again = run(ours(), run(said, after))
    assert again.theirs == {tag: ["cat"] for tag in (*ON, LAST_KEYWORD, CATALOG_SETS)}


def test_a_list_of_copies_that_is_switched_on_becomes_ours():
    found = mirroring(run(ours("cat", "dog")))
    found = run(ours("dog"), found)
    wide = run(ours("dog", lists=KEYWORD_LISTS), found)
    assert wide.marks.written[LAST_KEYWORD] == ("dog",)
    assert wide.values[LAST_KEYWORD] == ["cat", "dog"]
    assert wide.theirs == {}
    assert run(ours("dog", lists=KEYWORD_LISTS), wide) == wide


def test_all_removed_but_copies_are_all_declined():
    said = ours("cat", "dog")
    found = mirroring(run(said))
    gone = edited(found, subject=None, hierarchicalsubject=None, tagslist=None)
    merged = merge(said, gone, {})
    assert merged.declined == ("cat", "dog")
    assert merged.values == gone.values
    assert run(said, written(merged)) == written(merged)
    assert written(merged).theirs == {}


# ---------------------------------------------------------------------------------------- texts


def test_texts():
    after = run(ours(description="A cat.", caption="Cat", title="Cat", writer="photo-tagger"))
    assert after.values == {
        TITLE: ["Cat"],
        DC: ["A cat."],
        TIFF: ["A cat."],
        HEADLINE: ["Cat"],
        WRITER: ["photo-tagger"],
    }
    assert after.marks.digests == {tag: text_digest(v) for tag, (v,) in after.values.items()}


def test_our_text_follows_the_proposal_and_goes_with_it():
    before = run(ours("cat", description="A cat."))
    after = run(ours("cat", description="A tabby."), before)
    assert after.values[DC] == after.values[TIFF] == ["A tabby."]
    assert DC not in run(ours("cat"), after).values


@pytest.mark.parametrize("where", [DC, TIFF])
def test_a_persons_description_stands_in_both_fields(where):
    said = ours("cat", description="A cat.")
    other = TIFF if where == DC else DC
    before = run(said)
    found = replace(before, values={**before.values, where: ["Tom at 3"]})
    after = run(said, found)
    assert after.values[DC] == after.values[TIFF] == ["Tom at 3"]
    assert after.marks.digests == {other: text_digest("Tom at 3")}
    assert run(said, after) == after
    found = replace(after, values={**after.values, where: ["Tom at 4"]})
    assert run(said, found).values[other] == ["Tom at 4"]
    assert run(ours("cat", description=None), found).values[other] == ["Tom at 4"]
    assert other not in run(ours("cat"), found).values  # switched off
    assert other not in run(ours(description=None), found).values


@pytest.mark.parametrize("where", [DC, TIFF])
def test_a_persons_description_gets_its_twin_with_whatever_is_ours(where):
    found, both = Packet({where: ["Tom at 3"]}), {tag: ["Tom at 3"] for tag in DESCRIPTIONS}
    for said in (ours("cat", description=None), ours(caption="Cat", description=None)):
        after = run(said, found)
        assert {tag: after.values[tag] for tag in DESCRIPTIONS} == both
        assert run(said, after) == after
        assert run(ours(), after) == found
    only_here = ours("cat")
    only_here = replace(only_here, values={**only_here.values, where: []})
    assert {tag for tag in DESCRIPTIONS if tag in run(only_here, found).values} == {where}
    assert run(ours(description=None), found) == found


def test_two_descriptions_of_a_person_both_stay():
    found = Packet({DC: ["one"], TIFF: ["two"]})
    assert run(ours("cat", description="A cat."), found).values.items() >= found.values.items()


def test_an_embedded_text_is_enough():
    said = ours("cat", description="A cat.")
    embedded = {DC: ["Mine"]}
    assert DC not in run(said, run(said), embedded).values
    carried = run(said, None, embedded, carry=DESCRIPTIONS)
    assert carried.values[DC] == carried.values[TIFF] == ["Mine"]
    follows = run(said, carried, {DC: ["Mine, later"]}, carry=DESCRIPTIONS)
    assert follows.values[DC] == ["Mine, later"]
    found = replace(follows, values={**follows.values, DC: ["In the sidecar"]})
    after = run(said, found, {DC: ["Mine, later"]}, carry=DESCRIPTIONS)
    assert after.values[DC] == after.values[TIFF] == ["In the sidecar"]


def test_a_text_in_another_language_is_a_persons():
    said = ours("cat", description="A cat.")
    before = run(said)
    found = replace(before, languages={DC: {"de": "Eine Katze", "en": "A cat."}})
    after = run(said, found)
    assert after.values[DC] == after.values[TIFF] == ["Eine Katze"]
    assert run(said, after) == after
    assert run(ours(), found).values == {DC: ["Eine Katze"]}


def test_the_caption_writer_comes_and_goes_with_our_texts():
    said = ours("cat", caption="Cat", description="A cat.", writer="photo-tagger")
    before = run(said)
    mine = {DC: ["Mine"], HEADLINE: ["Mine too"]}
    found = replace(before, values={**before.values, **mine})
    assert WRITER not in run(said, found).values
    found = replace(before, values={**before.values, WRITER: ["Tom"]})
    assert run(said, found).values[WRITER] == ["Tom"]
    assert run(said, found, options=REPLACE).values[WRITER] == ["photo-tagger"]


def test_an_emptied_text_is_declined():
    said = ours("cat", caption="Cat", description="A cat.")
    before = run(said)
    half = {tag: v for tag, v in before.values.items() if tag != DC}
    assert run(said, replace(before, values=half)) == before
    both = {tag: v for tag, v in half.items() if tag != TIFF}
    merged = merge(said, replace(before, values=both), {})
    assert set(merged.declined) == {DC, TIFF}
    after = written(merged)
    assert after.values == both
    assert run(said, after) == after
    assert run(said, after, options=OVERWRITE) == before
    other = run(ours("cat", caption="Cat", description="A tabby."), after)
    assert other.values[DC] == ["A tabby."]


def test_replacing_a_persons_texts():
    found = Packet({DC: ["Mine"], TIFF: ["Mine"], HEADLINE: ["Mine"], RATING: ["2"]})
    said = ours(description="A cat.")
    after = run(replace(said, values={DC: ["A cat."]}), found, {DC: ["Mine"]}, REPLACE)
    assert after.values == {DC: ["A cat."], HEADLINE: ["Mine"], RATING: ["2"]}


def test_models_are_named_for_what_stands():
    models = (ModelMark("caption", "m"), ModelMark("description", "m"), ModelMark("clip", "c"))
    said = ours("cat", caption="Cat", description="A cat.")
    said = replace(said, marks=replace(said.marks, models=models, run_id="r1"))
    after = run(said, Packet({DC: ["Mine"]}))
    assert [model.field for model in after.marks.models] == ["caption", "clip"]
    assert after.marks.run_id == "r1"


def test_equals_leaves_the_run_aside():
    said = ours("cat")
    merged = merge(said, None, {})
    there = replace(written(merged), marks=replace(merged.marks, run_id="old"))
    assert merged.equals(there)
    assert not merged.equals(None)
    assert not merge(ours("dog"), there, {}).equals(there)
    assert Merged({}, Marks()).equals(None)


def test_changes():
    before = Packet({SUBJECT: ["Tom", "cat"], DC: ["A"], RATING: ["1"]})
    after = Merged({SUBJECT: ["Tom", "dog"], HEADLINE: ["Cat"], RATING: ["1"]}, Marks())
    assert changes(before, after) == (
        Change(SUBJECT, ("dog",), ("cat",)),
        Change(DC, before="A"),
        Change(HEADLINE, after="Cat"),
    )
    assert changes(None, after)[0] == Change(SUBJECT, ("Tom", "dog"))
    assert changes(before, Merged(before.values, Marks(run_id="x"))) == ()


# ------------------------------------------------------------------- any sequence of runs and edits

OURS = ["o1", "o2", "o1|o2", "o1|o3", "o2|o3|o4"]
WORDS = ["a", "b", "A", "a/b", "b|a", "x/y|z", "é", "e\u0301"]
PATHS = ["p|a", "p/a", "p|q|b", "p/q/b", "p|a/b", "p/a|b", "q", "a|", "|b", "/a"]
TEXTS = ["mine", "yours", " "]

tags = st.sampled_from(list(KEYWORD_LISTS))
text_tags = st.sampled_from([*DESCRIPTIONS, HEADLINE, TITLE, WRITER, ALT_TEXT])
lists = st.lists(tags, unique=True).map(lambda some: [t for t in KEYWORD_LISTS if t in some])
proposals = st.builds(
    lambda paths, lists, texts: ours(*paths, lists=lists, **texts),
    st.lists(st.sampled_from(OURS), unique=True),
    lists,
    st.dictionaries(
        st.sampled_from(["description", "caption", "title", "writer"]),
        st.sampled_from(["our text", "our other text", None]),
    ),
)


def humans(words):
    return st.dictionaries(tags, st.lists(st.sampled_from(words), max_size=4, unique=True))


def actions(words):
    word = st.sampled_from(words)
    return st.lists(
        st.one_of(
            st.tuples(st.just("merge"), proposals, st.sampled_from([PLAIN, OVERWRITE])),
            st.tuples(st.just("add"), tags, word),
            st.tuples(st.just("remove"), tags, word),
            st.tuples(st.just("drop"), tags, st.none()),
            st.tuples(st.just("say"), text_tags, st.sampled_from(TEXTS)),
            st.tuples(st.just("empty"), text_tags, st.none()),
            st.tuples(st.just("mirror"), st.none(), st.none()),
        ),
        max_size=8,
    )


class Simulation:
    """A sidecar, what a person has put in it and not taken out again, and what a program copied."""

    def __init__(self, human, embedded):
        self.packet = Packet({tag: list(v) for tag, v in human.items() if v})
        self.embedded = {tag: v for tag, v in embedded.items() if v}
        self.keywords = {(tag, v) for tag, items in human.items() for v in items}
        self.texts = {}
        self.mirrors = set()

    def act(self, action, what, how):
        if action == "merge":
            self.merge(what, how)
            return
        if action == "mirror":
            self.mirror()
            return
        values = {tag: list(v) for tag, v in self.packet.values.items()}
        there = values.setdefault(what, [])
        if action == "add" and how not in there:
            there.append(how)
            if how not in self.packet.marks.written.get(what, ()):  # else as if never taken out
                self.keywords.add((what, how))
        if action == "remove" and how in there:
            there.remove(how)
            self.keywords.discard((what, how))
            self.mirrors.discard((what, how))
        if action == "drop":
            there.clear()
            self.mirrors = {(tag, v) for tag, v in self.mirrors if tag != what}
            self.keywords = {(tag, v) for tag, v in self.keywords if tag != what}
        if action == "say":
            values[what] = [how]
            self.texts.pop(what, None)
            if how.strip() and self.packet.marks.digests.get(what) != text_digest(how):
                self.texts[what] = how
        if action == "empty":
            there.clear()
            self.texts.pop(what, None)
        self.packet = replace(self.packet, values={tag: v for tag, v in values.items() if v})
        if action == "add" and how in self.packet.mirrored.get(what, ()):  # as if it was copied
            self.keywords.discard((what, how))
            self.mirrors.add((what, how))

    def mirror(self):
        """What a program does that reads keywords from one list and knows two others."""
        ours = self.packet.marks.written
        values = {tag: list(v) for tag, v in self.packet.values.items()}
        copied = []
        for value in values.get(TAGS_LIST, ()):
            for tag in MIRRORING:
                copy = value.replace("/", KEYWORD_LISTS[tag])
                if copy not in values.setdefault(tag, []):
                    values[tag].append(copy)
                    if copy not in ours.get(tag, ()):
                        copied.append((tag, copy, value in ours.get(TAGS_LIST, ())))
        self.packet = replace(self.packet, values={tag: v for tag, v in values.items() if v})
        for tag, copy, is_ours in copied:
            is_mirror = copy in self.packet.mirrored.get(tag, ())
            assert is_mirror or not is_ours
            (self.mirrors if is_mirror else self.keywords).add((tag, copy))

    def merge(self, said, options):
        after = run(said, self.packet, self.embedded, options) or Packet()
        assert (run(said, after, self.embedded, options) or Packet()) == after  # idempotent
        for tag, value in self.keywords:
            assert value in after.values.get(tag, ()), (tag, value)
        for tag, text in self.texts.items():
            assert after.values.get(tag) == [text]
        for tag, values in after.marks.written.items():
            assert set(values) <= set(after.values[tag])
            assert not {(tag, value) for value in values} & self.keywords
            self.mirrors -= {(tag, value) for value in values}  # it is wanted there now
        for tag, value in self.mirrors:
            assert value in after.values[tag]
            if value in after.theirs.get(tag, ()):  # because a person has it, too
                spelt = {v.replace("|", "/") for _, v in self.keywords}
                assert value.replace("|", "/") in spelt
        standing = {tag for tag, items in said.values.items() if after.values.get(tag) == items}
        if after.marks.written or standing & after.marks.digests.keys():
            embedded = {(tag, v) for tag, items in self.embedded.items() for v in items}
            for other in after.values.keys() & said.values.keys() & KEYWORD_LISTS.keys():
                for tag, value in self.keywords | embedded:
                    assert is_found(value, tag, after.values[other], other), (value, tag, other)
        self.packet = after


def is_found(value, tag, values, other):
    """Whether a reader of one list finds a keyword of another: itself, or as level of a path."""

    def levels(text):
        return "/".join(["", *text.replace("|", "/").split("/"), ""])

    if not value.replace("|", "").replace("/", "").strip() or value in values:
        return True
    if other != SUBJECT:
        return any(levels(value) in levels(there) for there in values)
    return any(levels(value.rstrip("|/")).endswith(levels(there)) for there in values)


@settings(max_examples=400)
@given(humans(WORDS + PATHS), humans(WORDS + PATHS), actions(WORDS + PATHS + OURS))
def test_nothing_human_is_ever_missing(human, embedded, sequence):
    simulation = Simulation(human, embedded)
    for action in sequence:
        simulation.act(*action)
    simulation.merge(ours("o1", caption="our text"), PLAIN)
    simulation.merge(ours(lists=[]), PLAIN)


@settings(max_examples=150)
@given(humans(WORDS + PATHS), humans(WORDS), actions(WORDS + PATHS), proposals)
def test_nothing_of_ours_stays_that_is_not_proposed(human, embedded, sequence, last):
    simulation = Simulation(human, embedded)
    for action in sequence:
        simulation.act(*action)
    before = simulation.packet
    simulation.merge(last, PLAIN)
    after = simulation.packet
    for tag, values in after.values.items():
        if tag in KEYWORD_LISTS:
            values = {v for v in values if (tag, v) not in simulation.mirrors}
            assert {v for v in values if "o" in v} <= set(last.values.get(tag, ()))
        elif values[0].startswith("our"):
            assert values == last.values[tag]
    if not any(last.values.values()):
        assert after.theirs == before.theirs
        assert not after.marks.written
        assert not after.marks.digests
        assert (not after.marks.keywords) == (after.values == after.theirs)


@settings(max_examples=150)
@given(
    humans(WORDS),
    st.lists(
        st.one_of(
            st.tuples(st.just("merge"), proposals, st.sampled_from([PLAIN, OVERWRITE])),
            st.just(("mirror", None, None)),
            st.tuples(st.just("remove"), st.sampled_from([*ON, *MIRRORING]), st.sampled_from(OURS)),
        ),
        max_size=8,
    ),
    proposals,
)
def test_copies_of_ours_never_become_a_persons(human, sequence, last):
    simulation = Simulation(human, {})
    for action in [("merge", ours("o1", "o1|o2", "o3"), PLAIN), ("mirror", None, None), *sequence]:
        simulation.act(*action)
        theirs = simulation.packet.theirs.values()
        assert not [value for values in theirs for value in values if "o" in value]
    simulation.merge(last, PLAIN)
    for tag, mirrors in simulation.packet.mirrored.items():
        assert {(tag, value) for value in mirrors} == {m for m in simulation.mirrors if m[0] == tag}


@settings(max_examples=150)
@given(humans(WORDS + OURS), humans(WORDS + OURS), actions(WORDS + OURS), proposals)
def test_replacing_gives_exactly_ours(human, embedded, sequence, last):
    simulation = Simulation(human, embedded)
    for action in sequence:
        simulation.act(*action)
    values = (run(last, simulation.packet, simulation.embedded, REPLACE) or Packet()).values
    wanted = {tag: set(v) for tag, v in last.values.items() if tag in KEYWORD_LISTS and v}
    if wanted:
        assert {tag: set(v) for tag, v in values.items() if tag in KEYWORD_LISTS} == wanted
    for tag, items in last.values.items():
        if tag not in KEYWORD_LISTS and items and tag != WRITER:
            assert values[tag] == items
