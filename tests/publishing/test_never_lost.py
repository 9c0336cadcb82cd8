"""Runs, applies, edits by a person and undos in any order: no human value is ever missing."""

import tempfile
from pathlib import Path

import pyexiv2
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from phototagger import merge, xmp
from phototagger.manifest import read_manifest
from publishing.library import Work, make_photos, snapshot

PHOTOS = ("a.jpg", "trip/b.cr3")
SUBJECT, HIERARCHY, TAGS_LIST = list(xmp.KEYWORD_LISTS)[:3]
KEYS = {
    SUBJECT: "Xmp.dc.subject",
    HIERARCHY: "Xmp.lr.hierarchicalSubject",
    TAGS_LIST: "Xmp.digiKam.TagsList",
}
DESCRIPTION = "Xmp.dc.description"
EMPTY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:acme="http://acme.example/1/" acme:kept="yes"/></rdf:RDF></x:xmpmeta>'
)

photos = st.sampled_from(PHOTOS)
words = st.sampled_from(
    ["boat", "Boat", "東京", "קיץ 2024", "rock & <roll>", "A; B", "🚤", "family"]
)
ours = st.lists(
    st.sampled_from(["boat", "vehicle|boat", "animal|cat", "family", "night", "東京"]),
    max_size=3,
    unique=True,
)
lists = st.sampled_from([(SUBJECT,), (TAGS_LIST,), (SUBJECT, HIERARCHY), (SUBJECT, TAGS_LIST)])


class Person(RuleBasedStateMachine):
    """A person with an editor, and photo-tagger."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        top = Path(self._folder.name)
        self.root = make_photos(top / "photos", *PHOTOS)
        self.work = Work(top / "work", self.root)
        self.keywords: dict[str, set[tuple[str, str]]] = {name: set() for name in PHOTOS}
        self.descriptions: dict[str, str] = {}
        self.edited: set[str] = set()

    def teardown(self) -> None:
        self._folder.cleanup()

    # ------------------------------------------------------------------------------ the program

    @initialize(said=ours)
    def first_run(self, said: list[str]) -> None:
        self.work.propose(dict.fromkeys(PHOTOS, said), embedded={"a.jpg": {SUBJECT: ["inside"]}})

    @rule(photo=photos, said=ours, text=st.sampled_from([None, "Ours.", "Ours, another."]))
    def run(self, photo: str, said: list[str], text: str | None) -> None:
        others = {name: ["night"] for name in PHOTOS if name != photo}
        described = {photo: text} if text else {}
        self.work.propose(
            {photo: said, **others},
            embedded={"a.jpg": {SUBJECT: ["inside"]}},
            description=described,
            models={photo: {"description": "m"}},
        )

    @rule(overwrite=st.booleans())
    def apply(self, overwrite: bool) -> None:
        _, told = self.work.apply(merge=merge.Options(overwrite=overwrite))
        assert not [item for item in told if getattr(item, "failure", False)]
        before = snapshot(self.root)
        outcome, _ = self.work.apply(merge=merge.Options(overwrite=overwrite))
        assert outcome.changeset is None and snapshot(self.root) == before
        self._check_what_is_written()

    @rule()
    def undo(self) -> None:
        try:
            self.work.undo()
        except Exception as error:
            assert "nothing" in str(error), error

    # ------------------------------------------------------------------------------- the person

    @rule(photo=photos, word=words, where=lists)
    def add(self, photo: str, word: str, where: tuple[str, ...]) -> None:
        with self._editor(photo) as image:
            for tag in where:
                there = image.read_xmp().get(KEYS[tag], [])
                if word not in there:
                    image.modify_xmp({KEYS[tag]: [*there, word]})
                    self.keywords[photo].add((tag, word))

    @rule(photo=photos, text=st.sampled_from(["Mine: a <b> & 'c'", "二行\nטקסט"]))
    def describe(self, photo: str, text: str) -> None:
        with self._editor(photo) as image:
            image.modify_xmp({DESCRIPTION: {'lang="x-default"': text}})
        self.descriptions[photo] = text

    @precondition(lambda self: any(self.keywords.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        photo = data.draw(st.sampled_from([name for name in PHOTOS if self.keywords[name]]))
        _, word = data.draw(st.sampled_from(sorted(self.keywords[photo])))
        with self._editor(photo) as image:
            for key in KEYS.values():
                there = image.read_xmp().get(key, [])
                image.modify_xmp({key: [value for value in there if value != word] or None})
        self.keywords[photo] = {k for k in self.keywords[photo] if k[1] != word}

    # ------------------------------------------------------------------------------- the promise

    @invariant()
    def nothing_human_is_missing(self) -> None:
        for photo in PHOTOS:
            path = self._sidecar(photo)
            packet = xmp.parse(path.read_bytes()) if path.exists() else xmp.Packet()
            for tag, word in self.keywords[photo]:
                assert word in packet.values.get(tag, []), (photo, tag, word)
            if text := self.descriptions.get(photo):
                assert packet.values["XMP-dc:Description"] == [text]
            if photo in self.edited:
                assert any("acme" in name for name in packet.rest), "unknown namespace lost"

    def _check_what_is_written(self) -> None:
        """After an apply each keyword of a person is in each list that a reader may take alone."""
        for row in read_manifest(self.work.results / "sidecars-manifest/s1.tsv"):
            path = self._sidecar(row.rel_path)
            if row.sidecar_sha256 is None or not path.exists():
                continue
            packet = xmp.parse(path.read_bytes())
            inside = {(SUBJECT, "inside")} if row.rel_path == "a.jpg" else set()
            if packet.marks.written:
                for _, word in self.keywords[row.rel_path] | inside:
                    for tag in KEYS:
                        assert word in packet.values[tag], (row.rel_path, tag, word)

    def _sidecar(self, photo: str) -> Path:
        return self.root / f"{photo}.xmp"

    def _editor(self, photo: str) -> pyexiv2.Image:
        path = self._sidecar(photo)
        if not path.exists():
            path.write_text(EMPTY)
            self.edited.add(photo)
        return pyexiv2.Image(str(path))


def test_nothing_human_is_ever_missing() -> None:
    run_state_machine_as_test(
        Person, settings=settings(max_examples=12, stateful_step_count=12, deadline=None)
    )
