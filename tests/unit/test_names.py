import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phototagger import names

# names as a POSIX file system may hold them: any bytes but NUL and the slash
file_names = st.binary(min_size=1, max_size=40).map(
    lambda raw: raw.replace(b"\x00", b"\x01").replace(b"/", b"\\")
)
tricky = st.lists(
    st.sampled_from(
        [b"\\", b"x", b"u", b"n", b"r", b"t", b"00", b"ff", b"\xff", b"\n", b"\xc2\x85"]
    ),
    min_size=1,
).map(b"".join)
text_names = st.text(min_size=1, max_size=20).map(lambda text: text.encode(errors="ignore") or b"a")


@given(file_names | tricky | text_names)
def test_every_file_name_comes_back_byte_for_byte(raw):
    encoded = names.encode(os.fsdecode(raw))
    assert os.fsencode(names.decode(encoded)) == raw


@given(file_names | tricky | text_names)
def test_encoded_names_are_one_line_of_valid_text(raw):
    encoded = names.encode(os.fsdecode(raw))
    encoded.encode("utf-8")
    assert encoded.splitlines() == [encoded]
    assert not any(char < " " or "\x7f" <= char <= "\x9f" for char in encoded)


@given(file_names | tricky, file_names | tricky)
def test_different_names_are_encoded_differently(first, second):
    same = names.encode(os.fsdecode(first)) == names.encode(os.fsdecode(second))
    assert same == (first == second)


@pytest.mark.parametrize("name", ["IMG_1.jpg", "Größe | 'x' \"y\".jpg", "🚤.png", "a b,c;d=e.jpg"])
def test_ordinary_names_stay_as_they_are(name):
    assert names.encode(name) == name


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\nb", r"a\nb"),
        (b"\xff.jpg", r"\xff.jpg"),
        (b"a\\nb", r"a\\nb"),
        ("\u2028".encode(), r"\u2028"),
        (b"\x1b[0m", r"\u001b[0m"),
    ],
)
def test_what_does_not_fit_is_escaped(raw, text):
    assert names.encode(os.fsdecode(raw)) == text


def test_a_file_of_any_name_is_found_again(tmp_path):
    for raw in (b"a\nb.jpg", b"\xff\xfe.jpg", b"\\x41.jpg", "ü|\u2028.jpg".encode()):
        path = tmp_path / os.fsdecode(raw)
        path.write_bytes(raw)
        assert names.local_path(tmp_path, names.encode(path.name)).read_bytes() == raw


@pytest.mark.parametrize("rel_path", ["../x.jpg", "a/../../x.jpg", "/etc/passwd"])
def test_paths_outside_are_refused(rel_path):
    with pytest.raises(ValueError, match="not below"):
        names.local_path(Path("/photos"), rel_path)


def test_folder_of():
    assert names.folder_of("a.jpg") == "."
    assert names.folder_of("x/y/a.jpg") == "x/y"
