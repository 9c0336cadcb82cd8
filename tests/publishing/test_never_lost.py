"""Runs, applies, edits by a person and undos in any order: no human value is ever missing."""

import itertools
import tempfile
from pathlib import Path
from typing import ClassVar

import pyexiv2
import pytest
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
TEXTS = {  # where a person writes one
    "XMP-dc:Description": "Xmp.dc.description",
    "XMP-tiff:ImageDescription": "Xmp.tiff.ImageDescription",
    "XMP-photoshop:Headline": "Xmp.photoshop.Headline",
    "XMP-dc:Title": "Xmp.dc.title",
}
# What programs keep for themselves, in attributes, structures and unknown namespaces
EMPTY = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:acme="http://acme.example/1/" xmlns:darktable="http://darktable.sf.net/"
 xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 acme:kept="yes" darktable:history_end="1" xmp:Label="Red" xmp:Rating="4">
 <darktable:history><rdf:Seq><rdf:li darktable:operation="exposure" darktable:params="gz02eJxj"/>
 </rdf:Seq></darktable:history>
 <crs:MaskGroupBasedCorrections><rdf:Seq><rdf:li><rdf:Description crs:What="Correction">
 <crs:CorrectionMasks><rdf:Seq><rdf:li crs:What="Mask/Gradient" crs:ZeroX="0.5"/></rdf:Seq>
 </crs:CorrectionMasks></rdf:Description></rdf:li></rdf:Seq></crs:MaskGroupBasedCorrections>
</rdf:Description></rdf:RDF></x:xmpmeta>"""
KEPT = xmp.parse(EMPTY.encode())
INSIDE = {  # what the photos have embedded
    "a.jpg": {SUBJECT: ["inside"], HIERARCHY: ["In|Deep inside"]},
    "trip/b.cr3": {"XMP-photoshop:Headline": ["Headline inside"]},
}

photos = st.sampled_from(PHOTOS)
words = st.sampled_from(
    ["boat", "Boat", "東京", "קיץ 2024", "rock & <roll>", "A; B", "🚤", "family"]
)
SAID = [
    [],
    ["boat"],
    ["night"],
    ["vehicle|boat", "family"],
    ["animal|cat", "night", "東京"],
    ["Italy|Rome", "boat"],
]
MODELS = {"description": "m", "caption": "m"}
SAID_TEXTS = ["Ours.", "Ours, another.", None]
paths = st.sampled_from([("Italy", "Rome"), ("Friends", "Zoë & Co"), ("自然", "海")])
lists = st.sampled_from([(SUBJECT,), (TAGS_LIST,), (SUBJECT, HIERARCHY), (SUBJECT, TAGS_LIST)])


class Person(RuleBasedStateMachine):
    """A person with an editor, and photo-tagger."""

    cache: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        top = Path(self._folder.name)
        self.root = make_photos(top / "photos", *PHOTOS)
        self.work = _work(top / "work", self.root, self.cache)
        self.keywords: dict[str, set[tuple[str, str]]] = {name: set() for name in PHOTOS}
        self.paths: dict[str, set[tuple[str, ...]]] = {name: set() for name in PHOTOS}
        self.texts: dict[str, dict[str, str]] = {name: {} for name in PHOTOS}
        self.edited: set[str] = set()

    def teardown(self) -> None:
        self._folder.cleanup()

    # ------------------------------------------------------------------------------ the program

    @initialize(said=st.sampled_from(SAID), text=st.sampled_from(SAID_TEXTS))
    def first_run(self, said: list[str], text: str | None) -> None:
        self._run(dict.fromkeys(PHOTOS, said), text)

    @rule(
        photo=photos,
        said=st.sampled_from(SAID),
        text=st.sampled_from(SAID_TEXTS),
        overwrite=st.sampled_from([False, True, None]),
    )
    def run(self, photo: str, said: list[str], text: str | None, overwrite: bool | None) -> None:
        self._run({name: ["night"] for name in PHOTOS} | {photo: said}, text)
        if overwrite is not None:
            self.apply(overwrite)

    def _run(self, said: dict[str, list[str]], text: str | None) -> None:
        texts = dict.fromkeys(PHOTOS, text) if text else {}
        models = dict.fromkeys(texts, MODELS)
        self.work.propose(said, embedded=INSIDE, description=texts, caption=texts, models=models)

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

    @rule(photo=photos, path=paths, tag=st.sampled_from([HIERARCHY, TAGS_LIST]))
    def add_path(self, photo: str, path: tuple[str, ...], tag: str) -> None:
        with self._editor(photo) as image:
            there = image.read_xmp().get(KEYS[tag], [])
            spelt = xmp.KEYWORD_LISTS[tag].join(path)
            if spelt not in there:
                image.modify_xmp({KEYS[tag]: [*there, spelt]})
                self.keywords[photo].add((tag, spelt))
                self.paths[photo].add(path)

    @rule(
        photo=photos,
        tag=st.sampled_from(list(TEXTS)),
        text=st.sampled_from(["Mine: a <b> & 'c'", "二行\nטקסט"]),
    )
    def write(self, photo: str, tag: str, text: str) -> None:
        with self._editor(photo) as image:
            there = image.read_xmp().get(TEXTS[tag])
            if text in (there.values() if isinstance(there, dict) else [there]):
                return  # nothing that anybody could notice
            alt = tag != "XMP-photoshop:Headline"
            image.modify_xmp({TEXTS[tag]: {'lang="x-default"': text} if alt else text})
        self.texts[photo][tag] = text

    @precondition(lambda self: any(self.keywords.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        photo = data.draw(st.sampled_from([name for name in PHOTOS if self.keywords[name]]))
        tag, word = data.draw(st.sampled_from(sorted(self.keywords[photo])))
        path = tuple(word.split(xmp.KEYWORD_LISTS[tag])) if tag != SUBJECT else (word,)
        spelt = {word, path[-1], "|".join(path), "/".join(path)}
        with self._editor(photo) as image:
            for key in KEYS.values():
                there = image.read_xmp().get(key, [])
                image.modify_xmp({key: [value for value in there if value not in spelt] or None})
        self.keywords[photo] = {k for k in self.keywords[photo] if k[1] not in spelt}
        self.paths[photo].discard(path)

    # ------------------------------------------------------------------------------- the promise

    @invariant()
    def nothing_human_is_missing(self) -> None:
        for photo in PHOTOS:
            path = self._sidecar(photo)
            packet = xmp.parse(path.read_bytes()) if path.exists() else xmp.Packet()
            for tag, word in self.keywords[photo]:
                assert word in packet.values.get(tag, []), (photo, tag, word)
            for tag, text in self.texts[photo].items():
                assert packet.values[tag] == [text]
            if photo in self.edited:
                assert packet.rest == KEPT.rest
                assert packet.values["XMP-xmp:Rating"] == ["4"]

    def _check_what_is_written(self) -> None:
        """After an apply each keyword of a person is in each list that a reader may take alone."""
        for row in read_manifest(self.work.results / "sidecars-manifest/s1.tsv"):
            path = self._sidecar(row.rel_path)
            if row.sidecar_sha256 is None or not path.exists():
                continue
            packet = xmp.parse(path.read_bytes())
            inside = row.rel_path == "a.jpg"
            if packet.marks.written:
                flat = {w for _, w in self.keywords[row.rel_path] if not {"|", "/"} & set(w)}
                for word in flat | ({"inside"} if inside else set()):
                    for tag in KEYS:
                        assert word in packet.theirs[tag], (row.rel_path, tag, word)
                human = self.paths[row.rel_path] | ({("In", "Deep inside")} if inside else set())
                for path in human:
                    assert path[-1] in packet.theirs[SUBJECT]
                    for tag in (HIERARCHY, TAGS_LIST):
                        spelt = xmp.KEYWORD_LISTS[tag].join(path)
                        assert spelt in packet.theirs[tag], (row.rel_path, tag, spelt)
            if not inside and "XMP-photoshop:Headline" not in self.texts[row.rel_path]:
                assert "XMP-photoshop:Headline" not in packet.values  # a person has one inside

    def _sidecar(self, photo: str) -> Path:
        return self.root / f"{photo}.xmp"

    def _editor(self, photo: str) -> pyexiv2.Image:
        path = self._sidecar(photo)
        if not path.exists():
            path.write_text(EMPTY)
            self.edited.add(photo)
        return pyexiv2.Image(str(path))


def _work(folder: Path, root: Path, cache: Path) -> Work:
    """With a cache that knows all proposals, which would cost most of the time otherwise."""
    folder.mkdir()
    (folder / "cache").symlink_to(cache)
    return Work(folder, root)


@pytest.fixture
def person(tmp_path: Path) -> type[Person]:
    Person.cache = tmp_path / "cache"
    Person.cache.mkdir()
    said = dict(enumerate(itertools.product(PHOTOS, SAID, SAID_TEXTS)))
    root = make_photos(tmp_path / "photos", *(f"{number}.jpg" for number in said))
    texts = {f"{number}.jpg": text for number, (_, _, text) in said.items() if text}
    _work(tmp_path / "work", root, Person.cache).propose(
        {f"{number}.jpg": words for number, (_, words, _) in said.items()},
        embedded={f"{number}.jpg": INSIDE[photo] for number, (photo, _, _) in said.items()},
        description=texts,
        caption=texts,
        models=dict.fromkeys(texts, MODELS),
    )
    return Person


def test_everything_a_person_writes_outlives_overwriting(person: type[Person]) -> None:
    """The walk below gets everywhere only now and then."""
    me = person()
    me.first_run(SAID[1], None)
    first, second = PHOTOS
    description, other_description, headline, title = TEXTS
    for photo, tags in ((first, (other_description, headline)), (second, (description, title))):
        for tag in tags:
            me.write(photo, tag, "Mine: a <b> & 'c'")
        me.add(photo, "Boat", (SUBJECT,))
        me.add_path(photo, ("Italy", "Rome"), HIERARCHY)
    for number, text in enumerate(SAID_TEXTS):
        me.run(first, SAID[-1 - number], text, overwrite=True)
        me.nothing_human_is_missing()
    me.undo()
    me.nothing_human_is_missing()
    me.teardown()


def test_nothing_human_is_ever_missing(person: type[Person]) -> None:
    run_state_machine_as_test(
        person, settings=settings(max_examples=8, stateful_step_count=15, deadline=None)
    )
