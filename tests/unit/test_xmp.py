import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phototagger import xmp
from phototagger.errors import UserError

ODD = [
    "日本 東京",
    "emoji 😀👩‍👩‍👧",
    "שלום עולם",
    "-rating=5",
    "=x",
    "<file.txt",
    "#comment",
    "a \"quoted\" 'word'",
    "<b>&amp;</b>",
    "$Model @x %f \\n \\",
    "base64:QUJD",
    "x" * 300,
    "&#10;",
    "0",
]


def keyword(*path, synonyms=()):
    return {"keyword": path[-1], "path": list(path), "synonyms": list(synonyms)}


def record(*keywords, **more):
    return {"rel_path": "a.jpg", "keywords": list(keywords)} | more


def read(path):
    """What a separate ExifTool process reads, tag -> list of values."""
    out = subprocess.run(
        ["exiftool", "-G1", "-j", "-struct", str(path)], capture_output=True, check=True
    )
    (tags,) = json.loads(out.stdout)
    return {
        tag.replace("XMP-", ""): [str(v) for v in (value if isinstance(value, list) else [value])]
        for tag, value in tags.items()
        if tag.startswith("XMP-")
    }


def test_keywords_in_all_three_fields():
    cat = keyword("animal", "mammal", "cat", synonyms=["kitty"])
    values = xmp.sidecar_values(record(cat, keyword("animal", "dog"), keyword("night")))
    assert values == {
        "XMP-dc:Subject": ["animal", "mammal", "cat", "kitty", "dog", "night"],
        "XMP-lr:HierarchicalSubject": ["animal|mammal|cat", "animal|dog", "night"],
        "XMP-digiKam:TagsList": ["animal/mammal/cat", "animal/dog", "night", "kitty"],
    }


def test_nothing_to_write():
    assert xmp.sidecar_values(record()) == {}
    assert xmp.sidecar_values({"rel_path": "a.jpg"}) == {}
    assert xmp.sidecar_values(record(keyword("\x01 "), caption=" ", description=None)) == {}


def test_what_the_photo_says_itself_is_nothing_to_write():
    own = keyword("Tom") | {"source": "person"}
    known = keyword("animal", "cat", synonyms=["kitty"]) | {"source": "person"}
    new = keyword("harbour") | {"source": "vlm"}
    assert xmp.sidecar_values(record(own)) == {}
    assert xmp.sidecar_values(record(own, new))["XMP-dc:Subject"] == ["Tom", "harbour"]
    # a label of CLIP that the photo has too: its place and its synonyms are new
    assert xmp.sidecar_values(record(known))["XMP-dc:Subject"] == ["animal", "cat", "kitty"]
    with_caption = xmp.sidecar_values(record(own, caption="A cat."))
    assert with_caption["XMP-dc:Subject"] == ["Tom"]
    assert with_caption["XMP-photoshop:CaptionWriter"] == ["photo-tagger"]


def test_texts():
    values = xmp.sidecar_values(record(caption="A cat.", description="A cat\r\nasleep. "))
    assert values == {
        "XMP-dc:Description": ["A cat\nasleep."],
        "XMP-tiff:ImageDescription": ["A cat\nasleep."],
        "XMP-photoshop:Headline": ["A cat."],
        "XMP-photoshop:CaptionWriter": ["photo-tagger"],
    }
    assert "XMP-photoshop:CaptionWriter" not in xmp.sidecar_values(record(keyword("cat")))


def test_separators_stay_out_of_a_level():
    values = xmp.sidecar_values(record(keyword("style", "black/white|toned\tprint")))
    assert values["XMP-dc:Subject"] == ["style", "black-white-toned print"]
    assert values["XMP-lr:HierarchicalSubject"] == ["style|black-white-toned print"]
    assert values["XMP-digiKam:TagsList"][0] == "style/black-white-toned print"


def test_equal_letters_in_two_normal_forms_are_one_keyword():
    values = xmp.sidecar_values(record(keyword("cafe\u0301"), keyword("caf\u00e9")))
    assert values["XMP-dc:Subject"] == ["caf\u00e9"]


def test_read_back_by_exiftool(tmp_path):
    values = xmp.sidecar_values(
        record(
            *(keyword("odd", text) for text in ODD if "/" not in text),
            caption='"Quoted" & <odd> $x @y',
            description="First line: 日本 $x @y \\n\n-second=\n\n# third & last",
        )
    )
    path = tmp_path / "a.xmp"
    path.write_bytes(xmp.write_xmp([("a.jpg", values)])[0])
    found = read(path)
    assert found["dc:Subject"] == values["XMP-dc:Subject"]
    assert set(ODD) - {"<b>&amp;</b>"} <= set(found["dc:Subject"])
    assert found["lr:HierarchicalSubject"] == values["XMP-lr:HierarchicalSubject"]
    assert found["digiKam:TagsList"] == values["XMP-digiKam:TagsList"]
    text = "First line: 日本 $x @y \\n\n-second=\n\n# third & last"
    assert found["dc:Description"] == found["tiff:ImageDescription"] == [text]
    assert found["photoshop:Headline"] == ['"Quoted" & <odd> $x @y']
    assert found["photoshop:CaptionWriter"] == ["photo-tagger"]
    written = {tag.removeprefix("XMP-") for tag in values}
    assert set(found) == written | {"x:XMPToolkit"}


def test_containers_and_languages(tmp_path):
    values = xmp.sidecar_values(record(keyword("a", "b"), description="text"))
    (content,) = xmp.write_xmp([("a.jpg", values)])
    text = content.decode()
    for element, container in [
        ("dc:subject", "Bag"),
        ("lr:hierarchicalSubject", "Bag"),
        ("digiKam:TagsList", "Seq"),
        ("dc:description", "Alt"),
        ("tiff:ImageDescription", "Alt"),
    ]:
        assert f"<{element}>\n   <rdf:{container}>" in text
    assert text.count("xml:lang='x-default'") == 2


@pytest.fixture(scope="module")
def many():
    """Random keywords through one ExifTool process, since one per example would take minutes."""
    examples = []

    @given(st.lists(st.text(max_size=12), max_size=4), st.text(max_size=30))
    def collect(path, text):
        examples.append(record(keyword(*path, "x"), description=text))

    collect()
    values = [v for example in examples if (v := xmp.sidecar_values(example))]
    return values, xmp.write_xmp([(str(n), v) for n, v in enumerate(values)])


def test_any_text_survives(many):
    values, contents = many
    assert len(values) > 50
    assert [xmp.parse_xmp(content) for content in contents] == values


def test_same_values_same_bytes(many):
    values, contents = many
    again = xmp.write_xmp([(str(n), v) for n, v in reversed(list(enumerate(values)))])
    assert again[::-1] == contents


def test_a_value_that_was_not_written_names_the_photo():
    with pytest.raises(UserError, match=r"holiday/b\.jpg: the sidecar could not be written"):
        xmp.write_xmp(
            [
                ("a.jpg", {"XMP-dc:Subject": ["cat"]}),
                ("holiday/b.jpg", {"XMP-dc:Subject": ["dog"], "XMP-dc:NoSuchTag": ["x"]}),
            ]
        )


def test_holds():
    values = {"XMP-dc:Subject": ["cat", "dog"]}
    (content,) = xmp.write_xmp([("a.jpg", values)])
    assert xmp.holds(content, values)
    assert not xmp.holds(content, {"XMP-dc:Subject": ["dog", "cat"]})
    assert not xmp.holds(content, {"XMP-dc:Subject": ["cat"]})
    assert not xmp.holds(content[:-40], values)
    assert not xmp.holds(b"", values)


def test_exiftool_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="exiftool: not found on the PATH; install it"):
        xmp.find_exiftool()


# What two applications take from a sidecar: the first field that is not empty, and only that.


def immich_tags(found):
    if tags := found.get("digiKam:TagsList"):
        return tags
    if tags := found.get("lr:HierarchicalSubject"):
        return [tag.replace("|", "/") for tag in tags]
    return found.get("IPTC:Keywords", [])  # dc:subject is not looked at


def digikam_tags(found):
    for tag, separator in [("digiKam:TagsList", "/"), ("lr:HierarchicalSubject", "|")]:
        if tags := found.get(tag):
            return [t.replace(separator, "/") for t in tags]
    return found.get("dc:Subject", [])


@pytest.mark.parametrize("tags_of", [immich_tags, digikam_tags])
def test_first_non_empty_field_has_every_keyword(tags_of, tmp_path):
    values = xmp.sidecar_values(
        record(keyword("animal", "mammal", "cat", synonyms=["kitty"]), keyword("night"))
    )
    path = tmp_path / "a.xmp"
    path.write_bytes(xmp.write_xmp([("a.jpg", values)])[0])
    found = read(path)
    tags = tags_of(found)
    # both make a tag of every level of a path
    assert {level for tag in tags for level in tag.split("/")} == set(found["dc:Subject"])
    assert set(tags) >= {t.replace("|", "/") for t in found["lr:HierarchicalSubject"]}
