"""Label packs: formats, identities, errors, and the pack that ships."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from phototagger import CLONE
from phototagger.errors import UserError
from phototagger.labels import check_pack, check_templates, load_pack, resolve_threshold

PHOTOGRAPHIC = CLONE / "config/labels/photographic"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def ids(path: Path) -> list[str]:
    return [label.label for label in load_pack(path).labels]


def error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_pack(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path.parent) + "/", "")


# ----------------------------------------------------------------------------------- plain text


def test_plain_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(
        "\ufeff# mine\r\n Cat \r\nDOG\r\n\r\n  # no\r\ncat\t\r\nEspan\u0303a\r\n".encode()
    )
    pack = load_pack(path)
    assert [label.label for label in pack.labels] == ["cat", "dog", "espa\u00f1a"]
    cat = pack.labels[0]
    assert (cat.group, cat.path, cat.text, cat.export) == ("mine", ("cat",), "cat", True)
    assert pack.name == "mine"
    assert len(pack.duplicates) == 1
    assert pack.duplicates[0].endswith("mine.txt:6: cat: as " + str(path) + ":2")


def test_plain_text_joins_blanks_and_keeps_order(tmp_path):
    write(tmp_path, {"a.txt": "zebra\nold   car\nape\n"})
    assert ids(tmp_path / "a.txt") == ["zebra", "old car", "ape"]


@given(st.lists(st.sampled_from(["cat", "Cat", " dog", "# x", "", "owl ", "DOG"]), max_size=12))
def test_plain_text_is_deduplicated_in_order(tmp_path_factory, lines):
    expected = list(dict.fromkeys(x.strip().lower() for x in lines if x.strip() and x[0] != "#"))
    path = tmp_path_factory.mktemp("labels") / "a.txt"
    path.write_text("\n".join(lines))
    if expected:
        assert ids(path) == expected
    else:
        assert "no labels" in error(path)


# -------------------------------------------------------------------------------- Lightroom list

LIGHTROOM = """\
[WHAT]
	Animals
		Bird
			Crane
				{Grus grus}
				{Kranich}
		Cat
			{Kitty}
	Machines
		Crane
[Client X]
Čáp
"""


def test_lightroom_list(tmp_path):
    write(tmp_path, {"Keywords.txt": LIGHTROOM})
    labels = {label.label: label for label in load_pack(tmp_path / "Keywords.txt").labels}
    assert list(labels) == [
        *("Animals", "Bird", "Crane (Bird)", "Cat", "Machines", "Crane (Machines)"),
        *("Client X", "Čáp"),
    ]
    crane = labels["Crane (Bird)"]
    assert crane.path == ("Animals", "Bird", "Crane")  # the bracketed parent is not exported
    assert crane.keyword == "Crane"
    assert crane.text == "crane bird"
    assert crane.synonyms == ("Grus grus", "Kranich")
    assert labels["Cat"].synonyms == ("Kitty",)
    assert labels["Cat"].text == "cat"
    assert labels["Client X"].export is False
    assert labels["Cat"].export is True
    assert labels["Crane (Machines)"].path == ("Machines", "Crane")


def test_namesakes_take_as_many_ancestors_as_they_need(tmp_path):
    text = "crane\nwater\n\tbird\n\t\tcrane\nland\n\tbird\n\t\tcrane\n"
    write(tmp_path, {"a.txt": text})
    labels = load_pack(tmp_path / "a.txt").labels
    names = [label.label for label in labels if label.keyword == "crane"]
    assert names == ["crane", "crane (water > bird)", "crane (land > bird)"]
    assert labels[3].text == "crane bird water"


def test_a_path_that_is_the_end_of_a_longer_one(tmp_path):
    write(tmp_path, {"a.txt": "bird\n\tcrane\nwater\n\tbird\n\t\tcrane\n"})
    names = ids(tmp_path / "a.txt")
    assert "crane (bird)" in names
    assert "crane (water > bird)" in names
    assert len(set(names)) == len(names) == 5


def test_the_same_path_twice_is_one_label(tmp_path):
    write(tmp_path, {"a.txt": "bird\n\tcrane\nBird\n\tCrane\n\tduck\n"})
    pack = load_pack(tmp_path / "a.txt")
    assert [label.label for label in pack.labels] == ["bird", "crane", "duck"]
    assert len(pack.duplicates) == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "c", "B", "[d]"])),
        min_size=1,
        max_size=25,
    )
)
def test_ids_are_unique_in_any_tree(tmp_path_factory, rows):
    depth, lines = -1, []
    for wanted, keyword in rows:
        depth = min(wanted, depth + 1)
        lines.append("\t" * depth + keyword)
    path = tmp_path_factory.mktemp("tree") / "a.txt"
    path.write_text("\n".join(lines))
    try:
        labels = load_pack(path).labels
    except UserError as caught:
        assert "no labels" in str(caught)
        return
    assert len({label.label.casefold() for label in labels}) == len(labels)
    assert all("[" not in label.label and label.path for label in labels)


# ---------------------------------------------------------------------------------------- folder

PACK = {
    "animals.txt": "animal:\n\tcat\n\t\t{kitty}\n\tdog\n",
    "styles.txt": "Macro\nclose-up\ncat\n1984\n",
    "prompts.yaml": "styles: ['{} photo', '{}']\nanimals: 'one {}'\n",
    "thresholds.yaml": "groups:\n  styles: +0.02\nlabels:\n  CAT (animal): 0.3\n  1984: -.01\n",
    "synonyms.yaml": "- [macro, close-up]\n",
    "notes.md": "not read",
}


def test_folder(tmp_path):
    pack = load_pack(write(tmp_path / "mine", PACK))
    labels = {label.label: label for label in pack.labels}
    assert list(labels) == ["cat (animal)", "dog", "macro", "close-up", "cat", "1984"]
    cat = labels["cat (animal)"]
    assert (cat.path, cat.group, cat.threshold) == (("animal", "cat"), "animals", 0.3)
    assert cat.templates == ("one {}",)
    assert labels["macro"].templates == ("{} photo", "{}")
    assert labels["macro"].group_threshold == "+0.02"
    assert labels["1984"].threshold == "-0.01"
    assert labels["dog"].group_threshold is None
    assert labels["macro"].synonym_group == labels["close-up"].synonym_group == "macro"
    assert pack.name == "mine"


def test_synonyms_may_be_named(tmp_path):
    write(tmp_path, PACK | {"synonyms.yaml": "near:\n  - macro\n  - close-up\n"})
    assert {label.synonym_group for label in load_pack(tmp_path).labels} == {None, "near"}


def test_empty_yaml_files_say_nothing(tmp_path):
    write(tmp_path, PACK | dict.fromkeys(["prompts.yaml", "synonyms.yaml"], "# later\n"))
    write(tmp_path, {"thresholds.yaml": "groups:\nlabels:\n"})
    assert {label.synonym_group for label in load_pack(tmp_path).labels} == {None}


def test_digest_is_of_the_content(tmp_path):
    first = load_pack(write(tmp_path / "a", PACK)).digest
    comments = {"styles.txt": "# styles\n\nmacro\nclose-up\n\ncat\n1984\n"}
    assert load_pack(write(tmp_path / "b", PACK | comments)).digest == first
    changes = [
        {"styles.txt": "macro\ncat\nclose-up\n1984\n"},
        {"prompts.yaml": "styles: ['{} photo']\n"},
        {"thresholds.yaml": "groups: {styles: +0.03}\n"},
        {"synonyms.yaml": "- [macro, 1984]\n"},
        {"animals.txt": "animal\n\tcat\n\t\t{kitty}\n\tdog\n"},
        {"animals.txt": "animal:\n\tcat\n\tdog\n"},
    ]
    digests = {load_pack(write(tmp_path / str(n), PACK | c)).digest for n, c in enumerate(changes)}
    assert len(digests | {first}) == len(changes) + 1


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\na|b\n", "a.txt:2: '|' inside the label 'a|b'"),
        ("cat, dog", "a.txt:1: ',' inside"),
        ("a;b", "';' inside"),
        ("a/b", "'/' inside"),
        ("a\tb", "'\\t' inside"),
        ("a\x07b", "'\\x07' inside"),
        ("a\u2028b", "'\\u2028' inside"),
        ("cat\n\t{kit,ty}", "a.txt:2: ',' inside"),
        ("cat\n\t{kitty", "a.txt:2: '{' inside"),
        ("\n\n", "a.txt: no labels"),
        ("[all]\n\t[", "a.txt:2: '[' inside"),
        ("cat\n\t\tdog", "a.txt:2: indented by 2 tabs"),
        ("\tcat", "a.txt:1: indented by 1 tabs"),
        ("cat\n\tkitten\n    dog", "a.txt:3: indented with blanks"),
        ("{kitty}\ncat", "a.txt:1: synonym without a keyword"),
        ("cat\n\t{}", "a.txt:2: empty label"),
        ("[ ]", "a.txt:1: empty label"),
        ("bird\n\tcrane\nmachine\n\tcrane\ncrane (bird)\n", "crane (bird) is also another"),
    ],
)
def test_refused_text(tmp_path, text, expected):
    write(tmp_path, {"a.txt": text})
    assert expected in error(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"prompts.yaml": "style: '{}'"}, "prompts.yaml:1: group: unknown 'style'; valid are:"),
        ({"prompts.yaml": "styles:\n- '{}'\n- a photo"}, "prompts.yaml:3: template 'a photo' has"),
        ({"prompts.yaml": "styles: []"}, "prompts.yaml:1: no template"),
        ({"prompts.yaml": "- styles"}, "prompts.yaml:1: expected lines"),
        ({"prompts.yaml": "styles: '{}'\nstyles: 'a {}'"}, "prompts.yaml:2: 'styles' is given"),
        ({"prompts.yaml": "styles: '{}\n"}, "not valid YAML"),
        ({"thresholds.yaml": "labels:\n  dgo: 0.2"}, "thresholds.yaml:2: label 'dgo' is in none"),
        ({"thresholds.yaml": "labels:\n  dgo: 0.2"}, "did you mean dog?"),
        ({"thresholds.yaml": "label: {}"}, "thresholds.yaml:1: section: unknown 'label'"),
        ({"thresholds.yaml": "groups:\n  style: 0.2"}, "valid are: animals, styles"),
        ({"thresholds.yaml": "groups: {styles: high}"}, "threshold 'high'"),
        ({"thresholds.yaml": "groups: {styles: 25}"}, "threshold '25'"),
        ({"thresholds.yaml": "groups: {styles: [1]}"}, "expected a single"),
        ({"thresholds.yaml": "labels: [dog]"}, "thresholds.yaml:1: expected lines"),
        ({"synonyms.yaml": "- [macro, makro]"}, "synonyms.yaml:1: label 'makro' is in none"),
        ({"synonyms.yaml": "- [macro, dog]\n- [dog, 1984]"}, "synonyms.yaml:2: 'dog' is in two"),
        ({"synonyms.yaml": "- [macro]"}, "at least two"),
        ({"synonyms.yaml": "macro"}, "synonyms.yaml:1: expected a list"),
        ({"treshold.yaml": ""}, "valid are: prompts.yaml, synonyms.yaml, thresholds.yaml"),
        ({"animals.txt": "animal:\ncat\n\tkitten"}, "animals.txt:1: heading with nothing below"),
    ],
)
def test_refused_folder(tmp_path, files, expected):
    folder = write(tmp_path / "pack", PACK | files)
    assert expected in error(folder)


def test_an_ambiguous_keyword_is_not_guessed(tmp_path):
    animals = "bird:\n\tcrane\nmachine:\n\tcrane\n"
    write(tmp_path, {"a.txt": animals, "thresholds.yaml": "labels: {crane: 0.3}"})
    assert "crane (bird), crane (machine)" in error(tmp_path)


def test_not_utf8_not_there_empty(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("cat\nK\xe4fer\n".encode("latin-1"))
    assert "a.txt:2: not UTF-8" in error(path)
    assert "b.txt: no such label file" in error(tmp_path / "b.txt")
    (tmp_path / "empty").mkdir()
    assert "empty: no labels in it" in error(tmp_path / "empty")


def test_templates():
    check_templates(["a photo of {}"], "labels.templates")
    with pytest.raises(UserError, match=r"labels\.templates: template 'photo' has no \{\}"):
        check_templates(["{}", "photo"], "labels.templates")
    with pytest.raises(UserError, match=r"labels\.templates: no template"):
        check_templates([], "labels.templates")


def test_threshold_of_label_before_group_before_global():
    assert resolve_threshold(0.3, 0.2, 0.1) == 0.3
    assert resolve_threshold(None, 0.2, 0.1) == 0.2
    assert resolve_threshold(None, None, 0.1) == 0.1
    assert resolve_threshold("+0.02", 0.5, 0.25) == pytest.approx(0.27)
    assert resolve_threshold(None, "-0.02", 0.25) == pytest.approx(0.23)


# ---------------------------------------------------------------------------------------- report


def test_check_pack(tmp_path):
    long = "ä" * 33
    files = PACK | {"long.txt": f"{long}\nmacro\n", "none.txt": "# later\n"}
    report = check_pack(write(tmp_path / "mine", files))
    assert report.labels == 7
    assert report.groups == {"animals": 2, "long": 2, "styles": 3}
    assert report.synonym_groups == {"macro": ["macro", "close-up"]}
    assert report.synonyms == 1
    assert report.not_exported == 0
    assert len(report.duplicates) == 1
    assert "none: group without labels" in report.warnings
    assert "one keyword for several labels: cat (animal), cat" in report.warnings
    assert any(warning.startswith(f"{long}: 66 bytes") for warning in report.warnings)
    assert len(report.warnings) == 3


def test_the_pack_that_ships():
    pack = load_pack(PHOTOGRAPHIC)
    report = check_pack(PHOTOGRAPHIC)
    assert 280 <= report.labels <= 330
    assert not report.warnings
    assert not report.duplicates
    labels = {label.label: label for label in pack.labels}
    assert labels["cat"].path == ("animal", "mammal", "cat")
    assert {"cat", "rocket", "cup", "coffee", "flower", "astronaut"} <= set(labels)
    assert all(label.export and label.label == label.label.lower() for label in pack.labels)
    # relative, so that they mean the same for every model
    for label in pack.labels:
        assert not isinstance(label.threshold, float)
        assert not isinstance(label.group_threshold, float)
    groups = yaml.safe_load((PHOTOGRAPHIC / "synonyms.yaml").read_text())
    assert len(report.synonym_groups) == len(groups)
    assert f"{report.labels} labels" in (PHOTOGRAPHIC.parent / "README.md").read_text()
