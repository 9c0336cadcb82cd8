"""Whose a sidecar is, what a new one is called, and what its token says."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from phototagger.beside import LARGEST, Folder, read_packet, read_sidecar, targets
from phototagger.tokens import NOTHING, Tokens, joined, tokens_of
from phototagger.xmp import NotXmpError, text_digest

EXTENSIONS = (".jpg", ".png", ".cr3", ".dng")

PACKET = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:lr="http://ns.adobe.com/lightroom/1.0/" xmlns:digiKam="http://www.digikam.org/ns/1.0/"
 xmlns:darktable="http://darktable.sf.net/"
 xmlns:phototagger="http://ns.photo-tagger.org/xmp/1.0/">%s</rdf:Description></rdf:RDF></x:xmpmeta>
"""


def bag(element: str, *values: str) -> str:
    items = "".join(f"<rdf:li>{value}</rdf:li>" for value in values)
    return f"<{element}><rdf:Bag>{items}</rdf:Bag></{element}>"


def sidecar(*elements: str) -> bytes:
    return (PACKET % "".join(elements)).encode()


def folder(files: Iterable[str], extensions: tuple[str, ...] = EXTENSIONS) -> Folder:
    return Folder(Path("/photos"), extensions, files)


def alone(name: str) -> str:
    return name


def led_by(leader: str) -> Callable[[str], str]:
    return lambda _: leader


# ------------------------------------------------------------------------------------- existing


@pytest.mark.parametrize(
    ("photo", "others", "expected"),
    [
        ("IMG.jpg", ["IMG.jpg.xmp"], ["IMG.jpg.xmp"]),
        ("IMG.jpg", ["IMG.xmp"], ["IMG.xmp"]),
        ("IMG.jpg", ["IMG.jpg.XMP"], ["IMG.jpg.XMP"]),
        ("IMG.JPG", ["IMG.JPG.xmp"], ["IMG.JPG.xmp"]),
        ("IMG.JPG", ["img.jpg.XMP"], ["img.jpg.XMP"]),
        ("IMG.JPG", ["img.XMP"], ["img.XMP"]),
        # both names exist
        ("IMG.CR3", ["IMG.CR3.xmp", "IMG.xmp"], ["IMG.CR3.xmp", "IMG.xmp"]),
        # on a disk that knows case, these are two photos
        ("IMG.JPG", ["img.jpg", "img.jpg.xmp"], []),
        ("img.jpg", ["IMG.JPG", "img.jpg.xmp"], ["img.jpg.xmp"]),
        ("IMG.JPG", ["img.jpg", "Img.Jpg.xmp"], []),
        # the stem's sidecar is the raw file's
        ("IMG.CR3", ["IMG.jpg", "IMG.xmp"], ["IMG.xmp"]),
        ("IMG.jpg", ["IMG.CR3", "IMG.xmp"], []),
        ("IMG.jpg", ["IMG.nef", "IMG.xmp"], []),  # also if such raw files are no photos here
        ("IMG.jpg", ["IMG.CR3", "IMG.xmp", "IMG.jpg.xmp"], ["IMG.jpg.xmp"]),
        ("IMG.CR3", ["IMG.dng", "IMG.xmp"], ["IMG.xmp"]),
        ("IMG.dng", ["IMG.CR3", "IMG.xmp"], []),
        # nobody knows whose
        ("a.jpg", ["a.png", "a.xmp"], []),
        ("a.CR3", ["a.nef", "a.xmp"], []),
        # neither of duplicates in darktable, nor of photos that are gone, nor of the hidden
        ("IMG.CR3", ["IMG_01.CR3.xmp"], []),
        ("IMG.jpg.png", ["IMG.jpg.xmp"], []),
        ("IMG.jpg", [".IMG.jpg.xmp", "._IMG.jpg.xmp", ".xmp"], []),
        ("IMG.jpg", ["IMG.jpg.xmp_original", "IMG.jpg.xmp_exiftool_tmp"], []),
        (os.fsdecode(b"\xff.jpg"), [os.fsdecode(b"\xff.jpg.xmp")], [os.fsdecode(b"\xff.jpg.xmp")]),
        ("ünï 東京.jpg", ["ÜNÏ 東京.XMP"], ["ÜNÏ 東京.XMP"]),
        ("-a\nb.jpg", ["-a\nb.jpg.xmp"], ["-a\nb.jpg.xmp"]),
    ],
)
def test_whose_a_sidecar_is(photo: str, others: list[str], expected: list[str]) -> None:
    found = folder([photo, *others]).existing(photo)
    assert [path.name for path in found] == expected
    assert all(path.parent == Path("/photos") for path in found)


def test_every_sidecar_has_one_photo_at_most() -> None:
    names = ["a.jpg", "A.jpg", "a.cr3", "a.png", "a.jpg.png", "b.jpg", "b.png", "c.dng"]
    files = [*names, *(f"{n}.xmp" for n in names), "a.xmp", "A.XMP", "b.xmp", "c.xmp", "C.Xmp"]
    here = folder(files)
    owned = [path for name in names for path in here.existing(name, lambda _: True)]
    assert len(owned) == len(set(owned)) == 13


def test_who_owns_a_stem() -> None:
    def owner(*files: str, same: bool = False) -> str | None:
        return folder(files).owner("a", lambda _: same)

    assert owner("a.jpg") == "a.jpg"
    assert owner("a.jpg", "a.CR3") == "a.CR3"
    assert owner("a.jpg", "a.png") is None
    assert owner("a.png", "a.jpg", same=True) == "a.jpg"
    assert owner("a.png", "a.heic", same=True) == "a.heic"
    assert owner("a.nef", "a.CR3", same=True) == "a.CR3"
    assert owner("a.nef", "a.CR3") is None
    assert owner("b.jpg") is None
    assert folder(["a.png", "a.jpg"]).owner("a") is None


def test_a_folder_is_listed_once(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.CR3", "a.CR3.xmp", ".c.jpg", "d.jpg_original", "e.gif"):
        (tmp_path / name).touch()
    here = Folder(tmp_path, EXTENSIONS)
    (tmp_path / "f.jpg").touch()
    assert here.photos == ["a.CR3", "b.jpg"]
    assert here.existing("a.CR3") == [tmp_path / "a.CR3.xmp"]
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path / "gone", EXTENSIONS)


# -------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("photo", "others", "naming", "expected"),
    [
        ("IMG.JPG", [], "ext", ["IMG.JPG.xmp"]),
        ("IMG.CR3", [], "ext", ["IMG.CR3.xmp"]),
        ("IMG.CR3", [], "stem", ["IMG.xmp"]),
        ("IMG.CR3", [], "both", ["IMG.CR3.xmp", "IMG.xmp"]),
        ("IMG.jpg", [], "both", ["IMG.jpg.xmp"]),
        # what exists keeps its name, whatever the naming
        ("IMG.CR3", ["IMG.xmp"], "ext", ["IMG.xmp"]),
        ("IMG.CR3", ["IMG.CR3.xmp"], "stem", ["IMG.CR3.xmp"]),
        ("IMG.CR3", ["IMG.CR3.XMP"], "both", ["IMG.CR3.XMP"]),
        ("IMG.jpg", ["IMG.xmp"], "stem", ["IMG.xmp"]),
        ("IMG.CR3", ["IMG.xmp", "IMG.CR3.xmp"], "stem", ["IMG.CR3.xmp", "IMG.xmp"]),
        # beside a raw file with the stem's sidecar, a JPEG gets its own
        ("IMG.jpg", ["IMG.CR3", "IMG.xmp"], "ext", ["IMG.jpg.xmp"]),
        ("IMG.CR3", ["IMG_01.CR3.xmp"], "ext", ["IMG.CR3.xmp"]),
        # the stem would be shared: only its own name is left
        ("a.CR3", ["a.nef"], "both", ["a.CR3.xmp"]),
        ("a.dng", ["a.CR3"], "both", ["a.dng.xmp"]),
        ("a.jpg.dng", ["a.jpg"], "both", ["a.jpg.dng.xmp"]),
    ],
)
def test_names_to_write(photo: str, others: list[str], naming: str, expected: list[str]) -> None:
    found = targets(folder([photo, *others]), photo, naming, leader_of=alone)
    assert [path.name for path in found.paths] == expected
    assert (found.kind, found.message) == (None, None)


@pytest.mark.parametrize(
    ("photo", "others", "naming", "kind", "word"),
    [
        ("IMG.jpg", [], "stem", "no_sidecar", "only raw files"),
        ("IMG.jpg", ["IMG.CR3"], "stem", "no_sidecar", "IMG.xmp is that of IMG.CR3, and"),
        ("IMG.jpg", ["IMG.nef"], "stem", "no_sidecar", "only raw files"),  # no photo here
        ("a.CR3", ["a.nef"], "stem", "shared_stem", "a.nef"),
        ("a.dng", ["a.CR3"], "stem", "no_sidecar", "the sidecar of a.CR3"),
        ("a.jpg.dng", ["a.jpg"], "stem", "shared_stem", "a photo a.jpg"),
        ("a.jpg", ["a.png", "a.xmp"], "ext", "shared_stem", "a.jpg, a.png"),
        ("a.jpg", ["a.png", "a.xmp"], "stem", "shared_stem", "rename it"),
    ],
)
def test_what_gets_no_sidecar(
    photo: str, others: list[str], naming: str, kind: str, word: str
) -> None:
    found = targets(folder([photo, *others]), photo, naming, leader_of=alone)
    assert (found.paths, found.kind) == ((), kind)
    assert word in found.message
    assert "\n" not in found.message


def test_of_one_capture_the_first_owns_the_stem() -> None:
    here = folder(["a.jpg", "a.png", "a.xmp"])
    of_leader = targets(here, "a.jpg", "ext", leader_of=led_by("a.jpg"))
    assert [path.name for path in of_leader.paths] == ["a.xmp"]
    member = targets(here, "a.png", "ext", leader_of=led_by("a.jpg"))
    assert [path.name for path in member.paths] == ["a.png.xmp"]
    pair = targets(folder(["a.jpg", "a.CR3"]), "a.jpg", "stem", leader_of=led_by("a.jpg"))
    assert (pair.kind, "only raw files" in pair.message) == ("no_sidecar", True)
    raws = folder(["a.CR3", "a.nef"])
    first = targets(raws, "a.CR3", "stem", leader_of=led_by("a.CR3"))
    assert [path.name for path in first.paths] == ["a.xmp"]
    second = targets(raws, "a.nef", "stem", leader_of=led_by("a.CR3"))
    assert (second.paths, second.kind) == ((), "no_sidecar")


def test_messages_are_one_line_whatever_the_names() -> None:
    photo, other = "a\n.jpg", os.fsdecode(b"a\n.png")
    found = targets(folder([photo, other, "a\n.xmp"]), photo, "ext", leader_of=alone)
    assert found.kind == "shared_stem"
    assert "\n" not in found.message
    found.message.encode()


# -------------------------------------------------------------------------------------- reading


def test_what_cannot_be_read_is_no_packet(tmp_path: Path) -> None:
    (tmp_path / "folder.xmp").mkdir()
    (tmp_path / "dangling.xmp").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.xmp").symlink_to(tmp_path / "loop.xmp")
    os.mkfifo(tmp_path / "pipe.xmp")
    (tmp_path / "empty.xmp").touch()
    (tmp_path / "text.xmp").write_text("cat, harbour")
    (tmp_path / "cut.xmp").write_bytes(sidecar(bag("dc:subject", "cat"))[:300])
    with (tmp_path / "huge.xmp").open("wb") as file:
        file.truncate(LARGEST + 1)
    odd = sorted(tmp_path.iterdir())
    assert len(odd) == 8
    for path in odd:
        assert read_packet(path) is None, path
    with pytest.raises(NotXmpError, match="not a regular file"):
        read_sidecar(tmp_path / "pipe.xmp")
    with pytest.raises(NotXmpError, match="at most"):
        read_sidecar(tmp_path / "huge.xmp")
    assert tokens_of(None) == NOTHING


# --------------------------------------------------------------------------------------- tokens


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., str]:
    def token_of(*elements: str, by: tuple[str, ...] = ("person",)) -> str:
        path = tmp_path / "a.jpg.xmp"
        path.write_bytes(sidecar(*elements))
        return tokens_of(read_packet(path)).of(by)

    return token_of


CAT = bag("dc:subject", "cat", "harbour")


def test_a_token_says_what_a_person_says(say: Callable[..., str]) -> None:
    first = say(CAT)
    assert len(first) == 16
    assert say(bag("dc:subject", "harbour", "cat")) == first  # order does not shape results
    assert say(bag("dc:subject", "cat")) != first
    assert say(CAT, "<xmp:Rating>3</xmp:Rating>") != first
    assert say(CAT, bag("lr:hierarchicalSubject", "animal|cat")) != first
    assert say(CAT, bag("darktable:history", "sharpen")) == first
    assert say(CAT, "<xmp:Rating>0</xmp:Rating>") == first
    assert say(bag("darktable:history", "sharpen")) == ""
    assert say() == ""


def test_what_photo_tagger_writes_is_not_in_a_token(say: Callable[..., str]) -> None:
    before = say(CAT, bag("lr:hierarchicalSubject", "animal|cat"))
    ours = "<phototagger:RunID>0123</phototagger:RunID>" + bag("phototagger:WrittenSubject", "sea")
    text = "<dc:description>By the sea</dc:description><phototagger:DigestDescription>"
    text += f"{text_digest('By the sea')}</phototagger:DigestDescription>"
    written = (
        bag("dc:subject", "cat", "harbour", "sea"),
        bag("lr:hierarchicalSubject", "animal|cat", "harbour"),  # copies of a person's keywords
        bag("digiKam:TagsList", "animal/cat", "harbour"),
        ours,
        text,
    )
    assert say(*written) == before
    both = ("person", "photo-tagger")
    assert say(*written, by=both) not in ("", before)
    assert say(CAT, by=both) == say(CAT)
    assert say(bag("dc:subject", "sea"), ours) == ""
    assert say(bag("dc:subject", "sea"), ours, by=both) != ""


def test_a_path_is_the_same_in_every_list(say: Callable[..., str]) -> None:
    with_slash = say(bag("lr:hierarchicalSubject", "band|AC/DC"))
    assert with_slash == say(
        bag("lr:hierarchicalSubject", "band|AC/DC"), bag("digiKam:TagsList", "band/AC/DC")
    )
    flat = say(bag("dc:subject", "and/or"))
    assert flat == say(bag("dc:subject", "and/or"), bag("digiKam:TagsList", "and/or"))


def test_several_sidecars_have_one_token() -> None:
    one, two = Tokens("a" * 16), Tokens("b" * 16, "c" * 16)
    assert joined([], ["person"]) == joined([Tokens()], ["person"]) == ""
    assert joined([one, Tokens()], ["person"]) == "a" * 16
    assert joined([one, two], ["person"]) not in ("a" * 16, "b" * 16)
    assert joined([one, two], ["person"]) != joined([one, two], ["photo-tagger"])
