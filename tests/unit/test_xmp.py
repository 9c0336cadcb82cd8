"""Reading and writing XMP: nothing that was in a sidecar gets lost, whatever it was."""

import json
import random
import subprocess
from dataclasses import replace
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phototagger import exiftool, xmp
from phototagger.xmp import Item, KeywordMark, Marks, ModelMark, NotXmpError, WriteFailure

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
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
    "&eacute; &",
    "0",
    "007",
    "1e5",
    "true",
    "-",
    "[a, b]",
    "{a=b}",
    "a||b, c] d} |",
    "; , a;b",
    " blanks ",
    "\ttab\t",
    "two\nlines",
    "cr\r\nlf\r",
    "\u00a0nbsp\u2028",
    "-execute",
    "]]>",
]
MARKS = Marks(
    "20260101-120000",
    "IMG_1.jpg",
    (
        ModelMark("caption", "org/model-7b", "lab", "default", "ab" * 32),
        ModelMark("clip", "ViT-B-32"),
    ),
    (KeywordMark("animal|cat", "clip", "0.273100"), KeywordMark("night", "vlm")),
    {"XMP-dc:Subject": ("animal", "cat"), "XMP-digiKam:TagsList": ("animal/cat",)},
    {"XMP-dc:Description": "0" * 64},
)


def packet(inside="", blocks=""):
    """A sidecar with one rdf:Description that has `inside` it, and `blocks` after it."""
    return (
        "<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>"
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'>"
        f"<rdf:RDF xmlns:rdf='{RDF}' xmlns:dc='{DC}' xmlns:q='http://example.org/q#'"
        " xmlns:xmp='http://ns.adobe.com/xap/1.0/'>"
        f"<rdf:Description rdf:about=''>{inside}</rdf:Description>{blocks}</rdf:RDF></x:xmpmeta>"
        "<?xpacket end='w'?>"
    ).encode()


def write(base, values, marks=None):
    (result,) = xmp.write_xmp([Item("a.jpg", base, values, marks or Marks())])
    return result


def alt(**texts):
    items = "".join(
        f"<rdf:li xml:lang='{language.replace('_', '-')}'>{escape(text)}</rdf:li>"
        for language, text in texts.items()
    )
    return f"<rdf:Alt>{items}</rdf:Alt>"


def read(path):
    """What a separate ExifTool process reads, tag -> list of values."""
    out = subprocess.run(
        ["exiftool", "-G1", "-j", "-struct", str(path)], capture_output=True, check=True
    )
    (tags,) = json.loads(out.stdout, parse_int=str, parse_float=str)
    return {
        tag: value if isinstance(value, list) else [value]
        for tag, value in tags.items()
        if tag.startswith("XMP-")
    }


# ---------------------------------------------------------------------------------- our texts


def test_a_level_of_ours():
    assert xmp.clean_level("black/white|toned,\tprint; x") == "black-white-toned print x"
    assert xmp.clean_level("Paris ,France;  Île-de-France,") == "Paris France Île-de-France"
    assert xmp.clean_level("cafe\u0301\x00") == "caf\u00e9"
    assert xmp.clean_level("日" * 30) == "日" * 21  # 63 bytes
    assert xmp.clean_level("x" * 63 + " y") == "x" * 63
    assert xmp.clean_level(" \x01\n") == ""
    assert xmp.clean_text("A cat\r\nasleep. \x07\n\n") == "A cat\nasleep."


# ------------------------------------------------------------------------------------ reading


def test_values_of_every_field():
    assert list(xmp.KEYWORD_LISTS) == [f.tag for f in xmp.FIELDS[:5]]
    values = {f.tag: [f"{f.element} 1"] for f in xmp.FIELDS if f.switch} | {"XMP-xmp:Rating": ["3"]}
    written = write(None, values)
    assert xmp.parse(written).values == values
    assert list(xmp.parse(written).values) == [f.tag for f in xmp.FIELDS]
    text = written.decode()
    for field in xmp.FIELDS:
        start = f":{field.element}>\n   <rdf:{field.container}>"
        assert (start in text) == (field.container is not None), field
    assert text.count("xml:lang='x-default'") == 5


def test_whose_values_they_are():
    ours, theirs = "A cat.", "My cat"
    found = xmp.Packet(
        {"XMP-dc:Subject": ["Tom", "cat"], "XMP-dc:Title": [theirs], "XMP-dc:Description": [ours]},
        Marks(
            written={"XMP-dc:Subject": ("cat", "gone")},
            digests={
                "XMP-dc:Title": xmp.text_digest(ours),
                "XMP-dc:Description": xmp.text_digest(ours),
            },
        ),
    )
    assert found.theirs == {"XMP-dc:Subject": ["Tom"], "XMP-dc:Title": [theirs]}
    assert xmp.Packet().is_empty
    assert not found.is_empty
    assert Marks(run_id="1").empty
    assert not MARKS.without_run().empty


STYLES = [
    # attributes, no wrapper, other prefixes, several blocks
    f"<r:RDF xmlns:r='{RDF}' xmlns:d='{DC}' xmlns:z='http://example.org/q#'>"
    "<r:Description r:about='uuid:1' z:name='v' z:empty='' d:description='text'>"
    "<z:struct z:a='1' z:b='2'/></r:Description>"
    "<r:Description about='uuid:1'><d:subject><r:Seq><r:li>a</r:li><r:li>b</r:li></r:Seq>"
    "</d:subject><z:list><r:Seq><r:li z:a='3' /></r:Seq></z:list></r:Description></r:RDF>",
    # elements, parseType, comments, processing instructions, CDATA, empty lists, default namespace
    packet(
        "<!-- c --><name xmlns='http://example.org/q#'>v</name><q:empty/>"
        f"<dc:description>\n{alt(x_default='text')}</dc:description>"
        "<q:struct rdf:parseType='Resource'>\n<q:b>2</q:b>\n<q:a><![CDATA[1]]></q:a>"
        "</q:struct><dc:subject><rdf:Bag><rdf:li>a</rdf:li><?pi x?><rdf:li>b</rdf:li></rdf:Bag>"
        "</dc:subject><q:nothing><rdf:Seq/></q:nothing><q:list> <rdf:Seq> "
        "<rdf:li rdf:parseType='Resource'> <q:a>3</q:a></rdf:li></rdf:Seq></q:list>"
    ).decode(),
    # nested descriptions, a language besides the default one left empty
    packet(
        "<q:name>&#x76;</q:name><q:empty></q:empty><q:struct><rdf:Description><q:a>1</q:a>"
        "<q:b>2</q:b></rdf:Description></q:struct><dc:subject><rdf:Bag><rdf:li/><rdf:li>a</rdf:li>"
        f"<rdf:li>b</rdf:li></rdf:Bag></dc:subject><dc:title>{alt(x_default='')}</dc:title>",
        "<rdf:Description rdf:about='other'><q:list><rdf:Seq><rdf:li><rdf:Description q:a='3'/>"
        f"</rdf:li></rdf:Seq></q:list><dc:description>{alt(x_default='text', de='')}"
        "</dc:description></rdf:Description>",
    ).decode(),
]


@pytest.mark.parametrize("style", range(len(STYLES)))
def test_every_way_of_writing_it_down_reads_the_same(style):
    found = xmp.parse(STYLES[style].encode())
    assert found.values == {"XMP-dc:Subject": ["a", "b"], "XMP-dc:Description": ["text"]}
    assert found == xmp.parse(STYLES[0].encode())
    names = {name.removeprefix("{http://example.org/q#}") for name in found.rest}
    assert names == {"name", "empty", "struct", "list"}


@pytest.mark.parametrize(
    "bom, encoding",
    [
        ("\ufeff", "utf-8"),
        ("\ufeff", "utf-16-le"),
        ("\ufeff", "utf-16-be"),
        ("", "utf-16-le"),
        ("\ufeff", "utf-32-le"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>\n", "latin-1"),
        ("\n <?xml version='1.0' encoding='UTF-8'?>\n", "utf-8"),
    ],
)
def test_encodings_and_padding(bom, encoding):
    inside = packet("<q:name>Zoë</q:name>").decode().replace("begin='\ufeff'", "begin=''")
    content = f"{bom}{inside}{' ' * 99}\n\0\0\0".encode(encoding)
    assert xmp.parse(content).rest == {"{http://example.org/q#}name": '"Zoë"'}
    written = write(content, {"XMP-dc:Subject": ["ü"]})
    assert xmp.parse(written).rest == {"{http://example.org/q#}name": '"Zoë"'}
    assert xmp.parse(written).values == {"XMP-dc:Subject": ["ü"]}


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"\0" * 99, "empty"),
        (b"<PTG photo", "not XML"),
        (packet()[:-40], "not XML"),
        (packet("<q:a>\x01</q:a>"), "not XML"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not text in utf-8"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "not text in nonsense"),
        (b"<html><body/></html>", "no rdf:RDF"),
        (b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]>" + packet(), "document type"),
        (packet("<q:a rdf:parseType='Resource'>" * 100 + "</q:a>" * 100), "nested more than 64"),
        (b" " * ((16 << 20) + 1), "larger than 16 MiB"),
    ],
)
def test_what_is_not_xmp(content, reason):
    with pytest.raises(NotXmpError, match=reason):
        xmp.parse(content)
    result = write(content, {"XMP-dc:Subject": ["x"]})
    assert isinstance(result, WriteFailure)
    assert result.message.startswith("a.jpg: its sidecar is not XMP: ")
    assert reason in result.message


def test_languages():
    content = packet(
        f"<dc:title>{alt(de='Hallo', x_default='Hello')}</dc:title>"
        f"<dc:description>{alt(de_AT='Servus')}</dc:description>"
    )
    found = xmp.parse(content)
    assert found.values == {"XMP-dc:Title": ["Hello"], "XMP-dc:Description": ["Servus"]}
    assert found.languages == {
        "XMP-dc:Title": {"de": "Hallo"},
        "XMP-dc:Description": {"de-AT": "Servus"},
    }


# ------------------------------------------------------------------------------------ writing


def test_odd_texts_and_marks(tmp_path):
    values = {"XMP-dc:Subject": ODD, "XMP-photoshop:Headline": ['"Quoted" & <odd> $x @y ']}
    for number, tag in enumerate(t for t in xmp.KEYWORD_LISTS if t != "XMP-dc:Subject"):
        values[tag] = ODD[number:]
    marks = replace(
        MARKS,
        keywords=tuple(KeywordMark(text, "vlm", text) for text in ODD),
        models=tuple(ModelMark(text, text, None, text) for text in ODD),
        written={tag: tuple(reversed(values[tag])) for tag in xmp.KEYWORD_LISTS},
    )
    items = [Item(text, None, {"XMP-dc:Description": [text]}, Marks(text, text)) for text in ODD]
    *texts, content = xmp.write_xmp([*items, Item("a.jpg", None, values, marks)])
    found = xmp.parse(content)
    assert (found.values, found.marks) == ({t: values[t] for t in found.values}, marks)
    assert [xmp.parse(c).values["XMP-dc:Description"][0] for c in texts] == ODD
    assert [xmp.parse(c).marks for c in texts] == [Marks(text, text) for text in ODD]

    path = tmp_path / "a.xmp"
    path.write_bytes(content)
    tags = read(path)  # without our configuration
    assert [str(v) for v in tags["XMP-dc:Subject"]][:8] == ODD[:8]
    score = ODD[0].replace("%", "%25").replace(" ", "%20")
    assert tags["XMP-phototagger:KeywordSources"][0] == f"vlm {score} {ODD[0]}"
    assert {t for t in tags if not t.startswith("XMP-phototagger:")} == {
        *values,
        "XMP-x:XMPToolkit",
    }


def test_lists_that_are_ours_as_the_sources_spell_them_are_named():
    keywords = (
        KeywordMark("animal|cat", "clip", "0.273100"),
        KeywordMark("-", "vlm"),
        KeywordMark("animal|dog", "declined"),
        KeywordMark("animal|a/b", "vlm", "-"),
    )
    spelt = {
        "XMP-dc:Subject": ("animal", "cat", "-", "a/b"),
        "XMP-lr:HierarchicalSubject": ("animal|cat", "-", "animal|a/b"),
        "XMP-digiKam:TagsList": ("animal/cat", "-", "animal/a/b"),
    }
    values = {"XMP-dc:Subject": ["cat"]}
    content = write(None, values, Marks(keywords=keywords, written=spelt))
    assert xmp.parse(content).marks == Marks(keywords=keywords, written=spelt)
    assert content.count(b"phototagger:Written") == 2  # one element, start and end
    assert content.count(b"animal|cat") == 1

    others = {tag: ours[::-1] for tag, ours in spelt.items()} | {"XMP-dc:Subject": ("cat",)}
    for marks in (
        Marks(keywords=keywords, written=others),
        Marks(keywords=keywords, written=spelt | {"XMP-dc:Subject": ("animal", "cat", "-")}),
        Marks(keywords=keywords),
        Marks(written=spelt),
    ):
        changed = write(content, values, marks)
        assert xmp.parse(changed).marks == marks
        assert xmp.parse(write(changed, values, Marks(written=spelt))).marks.written == spelt


def test_one_process_per_chunk(monkeypatch):
    run_batch, sizes = xmp.run_batch, []

    def counted(commands, folder):
        commands = list(commands)
        sizes.append(len(commands))
        return run_batch(commands, folder)

    monkeypatch.setattr(xmp, "run_batch", counted)
    monkeypatch.setattr(xmp, "CHUNK", 6)
    items = [Item(f"{n}.jpg", None, {"XMP-dc:Subject": [f"cat {n}"]}, Marks()) for n in range(15)]
    assert len(list(xmp.write_all(items))) == 15
    assert sizes == [6, 6, 3]


def test_all_in_order_whatever_the_number_of_processes():
    items = [Item(f"{n}.jpg", None, {"XMP-dc:Subject": [f"cat {n}"]}, Marks()) for n in range(70)]
    one, several = (list(xmp.write_all(items, processes)) for processes in (1, 2))
    assert one == several
    assert [xmp.parse(content).values for content in several] == [item.values for item in items]
    assert list(xmp.write_all([], 2)) == []


def test_the_configuration_is_enough_for_exiftool(tmp_path):
    path = tmp_path / "a.xmp"
    path.write_bytes(write(None, {"XMP-dc:Subject": ["cat"]}, MARKS))
    command = ["exiftool", "-config", exiftool.CONFIG, "-overwrite_original", "-m"]
    subprocess.run([*command, "-XMP-phototagger:RunID=other", path], check=True)
    assert xmp.parse(path.read_bytes()).marks == replace(MARKS, run_id="other")
    subprocess.run([*command, "-XMP-phototagger:all=", path], check=True)
    assert xmp.parse(path.read_bytes()) == xmp.Packet({"XMP-dc:Subject": ["cat"]})


def test_other_languages_stay():
    base = packet(f"<dc:title>{alt(x_default='Ours', de='Hallo', fr='Salut')}</dc:title>")
    title, kept = "XMP-dc:Title", {"XMP-dc:Title": {"de": "Hallo", "fr": "Salut"}}
    for values in ({}, {title: ["Hallo"]}):  # ours is taken back: the first language shows
        found = xmp.parse(write(base, values))
        assert (found.values, found.languages) == ({title: ["Hallo"]}, kept)
    found = xmp.parse(write(base, {title: ["New"]}))
    assert (found.values, found.languages) == ({title: ["New"]}, kept)

    only_german = packet(f"<dc:title>{alt(de='Hallo')}</dc:title>")
    assert write(only_german, {}) == write(only_german, {title: ["Hallo"]}) == only_german
    found = xmp.parse(write(only_german, {title: ["New"]}))
    assert (found.values, found.languages) == ({title: ["New"]}, {title: {"de": "Hallo"}})


def test_fields_in_odd_forms_are_replaced():
    base = packet(
        "<dc:subject><rdf:Seq><rdf:li>a</rdf:li></rdf:Seq></dc:subject><dc:title>plain</dc:title>"
        "<dc:description xml:lang='de'>Text</dc:description>",
        "<rdf:Description rdf:about='' xmp:Rating='3' xmlns:p='http://ns.adobe.com/photoshop/1.0/'"
        " p:Headline='x'/>",
    )
    assert xmp.parse(base).values == {
        "XMP-dc:Subject": ["a"],
        "XMP-dc:Title": ["plain"],
        "XMP-dc:Description": ["Text"],
        "XMP-photoshop:Headline": ["x"],
        "XMP-xmp:Rating": ["3"],
    }
    values = {
        "XMP-dc:Subject": ["a", "b"],
        "XMP-dc:Title": ["t"],
        "XMP-dc:Description": ["Text"],
        "XMP-photoshop:Headline": ["h"],
        "XMP-xmp:Rating": ["3"],
    }
    content = write(base, values)
    assert xmp.parse(content).values == values
    assert b"<rdf:Bag>\n    <rdf:li>a" in content
    assert xmp.parse(write(content, {})).values == {"XMP-dc:Description": ["Text"]}  # their German


@pytest.mark.parametrize("end", ["/", ""])
def test_both_spellings_of_microsofts_namespace(end):
    """With a slash at its end in Windows, digiKam and Exiv2; without in ExifTool."""
    space = f"http://ns.microsoft.com/photo/1.0{end}"
    base = packet(
        blocks=f"<rdf:Description rdf:about='' xmlns:p='{space}' p:Rating='50'><p:LastKeywordXMP>"
        "<rdf:Bag><rdf:li>a/b</rdf:li></rdf:Bag></p:LastKeywordXMP></rdf:Description>"
    )
    tag = "XMP-microsoft:LastKeywordXMP"
    assert xmp.parse(base).values == {tag: ["a/b"]}
    found = xmp.parse(write(base, {tag: ["a/b", "c"]}))
    assert found == xmp.Packet({tag: ["a/b", "c"]}, rest={f"{{{space}}}Rating": '"50"'})
    assert b"'http://ns.microsoft.com/photo/1.0/'" in write(None, {tag: ["a"]})


def test_dates_ratings_and_positions_are_not_touched():
    theirs = (
        "<xmp:MetadataDate>2020-01-01T00:00:00Z</xmp:MetadataDate><xmp:ModifyDate>2020</xmp:ModifyDate>"
        "<xmp:Label>Red</xmp:Label><exif:GPSLatitude xmlns:exif='http://ns.adobe.com/exif/1.0/'>"
        "52,30.0N</exif:GPSLatitude><dc:identifier>7</dc:identifier><dc:date><rdf:Seq><rdf:li>2019"
        "</rdf:li></rdf:Seq></dc:date>"
    )
    base = packet(theirs + "<xmp:Rating>4</xmp:Rating>")
    values = {"XMP-dc:Subject": ["cat"], "XMP-xmp:Rating": ["4"]}
    found = xmp.parse(write(base, values, MARKS))
    assert (found.values, found.marks) == (values, MARKS)
    assert found.rest == xmp.parse(packet(theirs)).rest
    assert len(found.rest) == 6


@pytest.mark.parametrize(
    "inside, about",
    [
        ("<q:a>1</q:a><q:a>2</q:a>", "Duplicate XMP property"),
        ("<q:a q:b='1\n2'/>", "would not keep {http://example.org/q#}a"),
        (  # a qualifier of a keyword
            "<dc:subject><rdf:Bag><rdf:li rdf:parseType='Resource'><rdf:value>x</rdf:value>"
            "<q:who>me</q:who></rdf:li></rdf:Bag></dc:subject>",
            "would not keep XMP-dc:Subject",
        ),
    ],
)
def test_what_would_get_lost_is_a_failure(inside, about):
    values = {"XMP-dc:Subject": ["x", "y"], "XMP-dc:Title": ["t"]}
    other = Item("b.jpg", None, values, MARKS)
    bad, good = xmp.write_xmp([Item("holiday/a.jpg", packet(inside), values, MARKS), other])
    assert isinstance(bad, WriteFailure)
    assert bad.message.startswith("holiday/a.jpg: its sidecar cannot be written: ")
    assert about in bad.message
    assert xmp.parse(good).values == values


def test_a_value_that_cannot_be_written_is_a_failure():
    good = {"XMP-dc:Subject": ["cat"]}
    items = [Item("a.jpg", None, v, Marks()) for v in (good, good | {"XMP-dc:NoSuch": ["x"]}, {})]
    first, unknown, nothing = xmp.write_xmp(items)
    assert xmp.parse(first).values == good
    assert "would not keep XMP-dc:NoSuch" in unknown.message
    assert nothing.message == "a.jpg: there is nothing to write in a sidecar"
    assert "would not keep XMP-dc:Subject" in write(None, {"XMP-dc:Subject": ["a\x01"]}).message


def test_5000_keywords():
    many = [f"keyword {number}" for number in range(5000)]
    values = dict.fromkeys(xmp.KEYWORD_LISTS, many)
    content = write(None, values, Marks(written={"XMP-dc:Subject": tuple(many)}))
    assert xmp.parse(content).values == values
    fewer = dict.fromkeys(list(xmp.KEYWORD_LISTS)[:2], many[1:])
    assert xmp.parse(write(content, fewer)).values == fewer


def test_unchanged_is_the_same_bytes_without_exiftool(monkeypatch):
    base = packet("<dc:subject><rdf:Bag><rdf:li>a</rdf:li></rdf:Bag></dc:subject>")
    monkeypatch.setattr(xmp, "run_batch", None)
    assert write(base, {"XMP-dc:Subject": ["a"]}) == base


def test_exiftool_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(exiftool.ExifToolMissingError, match="not found on the PATH; install it"):
        write(None, {"XMP-dc:Subject": ["a"]})


def test_a_sidecar_that_crashes_exiftool_is_found(monkeypatch):
    run_batch = exiftool.run_batch

    def crashing(commands, folder):
        output = run_batch(commands, folder)
        if any(b"Crash" in path.read_bytes() for path in folder.glob("*.xmp")):
            raise exiftool.ExifToolCrashError("exiftool: ended abnormally (signal 11)")
        return output

    monkeypatch.setattr(xmp, "run_batch", crashing)
    values = {"XMP-dc:Subject": ["x"]}
    bases = [None, packet(), packet("<q:a>Crash</q:a>"), packet()]
    results = xmp.write_xmp([Item(f"{n}.jpg", b, values, MARKS) for n, b in enumerate(bases)])
    assert [isinstance(r, WriteFailure) for r in results] == [False, False, True, False]
    assert results[2].message == "2.jpg: exiftool: ended abnormally (signal 11)"
    monkeypatch.setattr(exiftool, "_ORDINARY_EXITS", (99,))  # it does not work at all
    with pytest.raises(exiftool.ExifToolCrashError, match="ended abnormally"):
        write(None, values)


# ------------------------------------------------------------------------------ property tests

_BAD = "".join(map(chr, [*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF]))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=_BAD), max_size=12)
SOME = TEXTS.filter(bool).filter(lambda text: not text.isspace())
VALUES = st.fixed_dictionaries(
    {},
    optional={
        f.tag: st.lists(SOME, min_size=1, max_size=4 if f.tag in xmp.KEYWORD_LISTS else 1)
        for f in xmp.FIELDS
        if f.switch
    },
)
ALL_MARKS = st.builds(
    Marks,
    st.none() | SOME,
    st.none() | SOME,
    st.lists(st.builds(ModelMark, SOME, SOME, st.none() | SOME), max_size=2).map(tuple),
    st.lists(st.builds(KeywordMark, SOME, SOME, st.none() | SOME), max_size=3).map(tuple),
    st.dictionaries(
        st.sampled_from(list(xmp.KEYWORD_LISTS)),
        st.lists(SOME, min_size=1, max_size=3).map(tuple),
        max_size=2,
    ),
    st.dictionaries(st.just("XMP-dc:Title"), SOME, max_size=1),
)
NAMES = st.sampled_from(["a", "B2", "Some_Name", "x-y", "z.1", "history"])
NODES = st.recursive(
    TEXTS,
    lambda nodes: (
        st.dictionaries(NAMES, nodes, min_size=1, max_size=3)
        | st.tuples(st.sampled_from(["Bag", "Seq"]), st.lists(nodes, min_size=1, max_size=3))
    ),
    max_leaves=8,
)
# The same property in several namespaces, and a prefix that ExifTool knows for another one
SPACES = {
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "darktable": "http://darktable.sf.net/",
    "_o-d.d": "http://example.org/odd/",
    "lr": "http://example.org/not-lightroom#",
    "phototagger2": "urn:x",
}
PROPERTIES = st.dictionaries(st.tuples(st.sampled_from(list(SPACES)), NAMES), NODES, max_size=5)


class Writer:
    """Writes properties as XMP, each time in another of the ways that mean the same."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def packet(self, properties):
        blocks = [{}, {}]
        for name, node in properties.items():
            self.random.choice(blocks)[name] = node
        names = {p: p if self.random.random() < 0.5 else f"n{i}" for i, p in enumerate(SPACES)}
        self.names = names
        spaces = "".join(f" xmlns:{names[p]}={quoteattr(uri)}" for p, uri in SPACES.items())
        inside = "".join(
            self.description(
                [(f"{names[p]}:{n}", node, p) for (p, n), node in block.items()], " rdf:about=''"
            )
            for block in blocks
        )
        return f"<rdf:RDF xmlns:rdf='{RDF}'{spaces}>{inside}</rdf:RDF>".encode()

    def attributes(self, fields):
        """Some of the fields with texts as attributes, and the others."""
        taken = [f for f in fields if isinstance(f[1], str) and self.random.random() < 0.5]
        chars = {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
        text = "".join(f" {name}={quoteattr(value, chars)}" for name, value, _ in taken)
        return text, [f for f in fields if f not in taken]

    def description(self, fields, about=""):
        attributes, others = self.attributes(fields)
        inside = "".join(self.element(*field) for field in others)
        return f"<rdf:Description{about}{attributes}>{inside}</rdf:Description>"

    def element(self, name, node, prefix):
        blank = self.random.choice(["", "\n  "])
        if isinstance(node, str):
            return f"<{name}>{escape(node, {chr(13): '&#13;'})}</{name}>"
        if isinstance(node, tuple):
            kind, items = node
            inside = blank.join(self.element("rdf:li", item, prefix) for item in items)
            return f"<{name}>{blank}<rdf:{kind}>{inside}</rdf:{kind}>{blank}</{name}>"
        fields = [(f"{self.names[prefix]}:{key}", value, prefix) for key, value in node.items()]
        style = self.random.choice(["resource", "description", "attributes"])
        if style == "description":
            return f"<{name}>{blank}{self.description(fields)}{blank}</{name}>"
        if style == "attributes" and all(isinstance(value, str) for value in node.values()):
            chars = {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
            return f"<{name}{''.join(f' {n}={quoteattr(v, chars)}' for n, v, _ in fields)}/>"
        self.random.shuffle(fields)
        inside = "".join(self.element(*field) for field in fields)
        return f"<{name} rdf:parseType='Resource'>{blank}{inside}</{name}>"


@pytest.fixture(scope="module")
def many():
    """Random examples for one ExifTool process, since one process per example takes minutes."""
    examples = []

    @settings(suppress_health_check=list(HealthCheck), deadline=None)
    @given(PROPERTIES, VALUES.filter(bool), VALUES, ALL_MARKS, st.integers(0, 999))
    def collect(properties, before, after, marks, seed):
        examples.append((properties, before, after, marks, seed))

    collect()
    return examples


def test_how_it_is_written_down_does_not_matter(many):
    for properties, _, _, _, seed in many:
        packets = [xmp.parse(Writer(seed + n).packet(properties)) for n in range(3)]
        assert packets[0] == packets[1] == packets[2]
        assert {name.partition("}")[2] for name in packets[0].rest} == {n for _, n in properties}


def written(items):
    results = []
    for start in range(0, len(items), xmp.CHUNK):
        results += xmp.write_xmp(items[start : start + xmp.CHUNK])
    for item, result in zip(items, results, strict=True):
        assert not isinstance(result, WriteFailure), (result, item)
    return results


def test_any_values_survive_and_are_byte_stable(many):
    before = [Item("a", None, before, marks) for _, before, _, marks, _ in many]
    contents = written(before)
    assert [xmp.parse(c).values for c in contents] == [item.values for item in before]
    assert [xmp.parse(c).marks for c in contents] == [item.marks for item in before]
    assert written(before[::-1])[::-1] == contents

    # changing the values and changing them back leaves no trace
    after = [
        Item("a", content, after, Marks("x"))
        for content, (_, _, after, _, _) in zip(contents, many, strict=True)
    ]
    changed = written(after)
    assert [xmp.parse(c).values for c in changed] == [item.values for item in after]
    assert [xmp.parse(c).marks for c in changed] == [Marks("x")] * len(many)
    back = [replace(i, base=c) for i, c in zip(before, changed, strict=True)]
    assert written(back) == contents


def test_everything_else_survives(many):
    bases = [Writer(seed).packet(properties) for properties, _, _, _, seed in many]
    items = [
        Item("a", base, values, marks)
        for base, (_, values, _, marks, _) in zip(bases, many, strict=True)
    ]
    contents = written(items)
    assert [xmp.parse(c).rest for c in contents] == [xmp.parse(b).rest for b in bases]
    # what ExifTool writes of what it wrote is the same
    other = [replace(i, base=c, marks=Marks("x")) for i, c in zip(items, contents, strict=True)]
    back = [replace(i, base=c) for i, c in zip(items, written(other), strict=True)]
    assert written(back) == contents
