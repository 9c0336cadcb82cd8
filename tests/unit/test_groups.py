"""Which files are one picture, and who of them is asked."""

from itertools import permutations

import pytest
import skimage.data
from PIL import Image, ImageEnhance

from phototagger.groups import ALIKE_BITS, capture_groups, dhash, same_picture

NOON, LATER = "2024-05-01T12:00:00", "2024-05-01T12:00:01"


def row(rel_path, format_="JPEG", taken_at=NOON, dhash="0" * 16, own=()):
    row = {"rel_path": rel_path, "format": format_, "taken_at": taken_at, "dhash": dhash}
    return row | {f"own_{field}": "mine" for field in own}


# ----------------------------------------------------------------------------------- likeness


def bits(first, second):
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_the_hash_is_of_the_picture_not_of_its_size_or_exposure():
    cat = Image.fromarray(skimage.data.chelsea())
    whole = dhash(cat)
    assert len(whole) == 16
    assert bits(whole, dhash(cat.resize((200, 133)))) <= 2
    assert bits(whole, dhash(ImageEnhance.Brightness(cat).enhance(0.8))) <= 4
    assert bits(whole, dhash(cat.convert("L"))) == 0
    assert bits(whole, dhash(cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > ALIKE_BITS


def test_different_photos_are_far_apart():
    pictures = (
        skimage.data.chelsea,
        skimage.data.astronaut,
        skimage.data.coffee,
        skimage.data.rocket,
    )
    hashes = [dhash(Image.fromarray(picture())) for picture in pictures]
    assert min(bits(a, b) for a, b in permutations(hashes, 2)) > ALIKE_BITS


def test_every_bit_says_whether_the_next_pixel_is_brighter():
    ramp = Image.linear_gradient("L").rotate(90)  # brighter to the right
    assert {dhash(ramp), dhash(ramp.rotate(180))} == {"f" * 16, "0" * 16}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((NOON, "0" * 16), (NOON, "f" * 16), True),  # a black-and-white edit, say
        ((NOON, "0" * 16), (LATER, "0" * 16), False),  # a burst
        ((None, "0" * 16), (NOON, "3ff".zfill(16)), True),
        ((None, "0" * 16), (NOON, "7ff".zfill(16)), False),
        ((None, "0" * 16), (None, "0" * 16), True),
        ((None, None), (None, None), False),
        ((None, None), (NOON, "0" * 16), False),
    ],
)
def test_the_moment_decides_then_the_look(first, second, same):
    a, b = (row("a", taken_at=taken_at, dhash=dhash) for taken_at, dhash in (first, second))
    assert same_picture(a, b) is same_picture(b, a) is same


# ------------------------------------------------------------------------------------- groups


def test_the_jpeg_leads_whatever_the_order():
    rows = [
        row("x/IMG.CR3", "CR3"),
        row("x/IMG.HEIC", "HEIF"),
        row("x/IMG.JPG"),
        row("x/IMG.png", "PNG"),
        row("x/IMG.tif", "TIFF"),
    ]
    for some in permutations(rows):
        groups = capture_groups(some)
        assert groups.members("x/IMG.JPG") == [
            f"x/IMG.{ending}" for ending in ("JPG", "HEIC", "tif", "png", "CR3")
        ]
        assert {groups.leader(r["rel_path"]) for r in rows} == {"x/IMG.JPG"}
        assert groups.clashes == {}
    assert capture_groups([rows[0], rows[4]]).leader("x/IMG.CR3") == "x/IMG.tif"


def test_folder_and_stem_are_exact():
    names = ["IMG.jpg", "x/IMG.CR3", "img.CR2", "IMG_1.NEF", "IMG.jpg.png", ".jpg", ".CR3"]
    groups = capture_groups(row(name) for name in names)
    assert [groups.leader(name) for name in names] == names
    assert groups.members("IMG.jpg") == ["IMG.jpg"]
    assert capture_groups([]).leader("any") == "any"


def test_other_pictures_of_the_same_name_clash():
    rows = [
        row("a.jpg"),
        row("a.CR3", "CR3"),
        row("a.png", "PNG", taken_at=LATER),
        row("a.webp", "WEBP", taken_at=LATER),
        row("b.jpg"),
    ]
    groups = capture_groups(rows)
    assert [groups.leader(r["rel_path"]) for r in rows] == [
        "a.jpg",
        "a.jpg",
        "a.png",
        "a.png",
        "b.jpg",
    ]
    jpeg, png = ["a.CR3", "a.jpg"], ["a.png", "a.webp"]
    assert groups.clashes == {"a.jpg": png, "a.CR3": png, "a.png": jpeg, "a.webp": jpeg}


# -------------------------------------------------------------------------------------- asking


def sources(rows, overwrite=False):
    def asks(photo, field):
        return overwrite or not photo.get(f"own_{field}")

    return capture_groups(rows).sources(rows, ("caption", "keywords"), asks)


def test_one_of_a_group_is_asked_for_each_field():
    raw, heic = row("a.CR3", "CR3"), row("a.heic", "HEIF")
    assert sources([raw, heic, row("a.jpg"), row("b.jpg")]) == {
        (name, field): "a.jpg" for name in ("a.CR3", "a.heic") for field in ("caption", "keywords")
    }


def test_who_has_own_words_neither_inherits_nor_passes_on():
    rows = [
        row("a.CR3", "CR3"),
        row("a.heic", "HEIF"),
        row("a.jpg", own=("caption",)),
        row("a.tif", "TIFF", own=("caption", "keywords")),
    ]
    assert sources(rows) == {
        ("a.CR3", "caption"): "a.heic",
        ("a.CR3", "keywords"): "a.jpg",
        ("a.heic", "keywords"): "a.jpg",
    }
    assert set(sources(rows, overwrite=True).values()) == {"a.jpg"}
