"""A rule's digest follows what its code means, through the modules it imports."""

import pytest

from phototagger import codedigest
from phototagger.codedigest import rule_digest, used_modules


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    (tmp_path / "phototagger").mkdir()
    files = {
        "one.py": "from phototagger.a import f\n",
        "two.py": "def g():\n    from phototagger import b\n",
        "phototagger/a.py": "import phototagger.c\n",
        "phototagger/b.py": "x = 1\n",
        "phototagger/c.py": "y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(codedigest, "SCRIPTS", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    codedigest._analyse.cache_clear()


def digests() -> dict[str, str]:
    forget()
    return {rule: rule_digest(rule) for rule in ("one", "two")}


def test_imports_are_followed(scripts):
    assert {p.stem for p in used_modules(scripts / "one.py")} == {"a", "c"}
    assert {p.stem for p in used_modules(scripts / "two.py")} == {"b"}


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("one.py", "from phototagger.a import f\nz = 1\n", {"one"}),
        ("phototagger/b.py", "x = 2\n", {"two"}),
        ("phototagger/c.py", "y = 2\n", {"one"}),
        ("phototagger/c.py", '"""Now documented."""\n# and commented\ny   =  1\n', set()),
        ("phototagger/unused.py", "z = 1\n", set()),
    ],
)
def test_a_change_of_meaning_changes_exactly_the_users(scripts, file, text, changed):
    before = digests()
    (scripts / file).write_text(text)
    after = digests()
    assert {rule for rule in before if before[rule] != after[rule]} == changed


def test_data_files_count(scripts):
    data = scripts / "page.jinja"
    data.write_text("a")
    before = rule_digest("one", [data])
    data.write_text("b")
    assert rule_digest("one", [data]) != before


def test_no_result_depends_on_how_it_is_published():
    rules = codedigest.SCRIPTS.glob("*.py")
    found = {module.stem for rule in rules for module in used_modules(rule)}
    assert found >= {"xmp", "merge", "groups"}
    assert not found & {"applying", "changeset", "comparing", "decisions", "locks", "originals"}
    assert not found & {"publish", "recovery", "replacing", "tokencache", "tokens", "undoing"}
