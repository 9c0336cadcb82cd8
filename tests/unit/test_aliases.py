"""Embedding again and again leads back to the picture's first content."""

from pathlib import Path

from phototagger.aliases import Aliases

A, B, C = ("0" * 64, "1" * 64, "2" * 64)


def test_chain(tmp_path: Path) -> None:
    aliases = Aliases(tmp_path)
    assert aliases.first(A) == A and not any(tmp_path.iterdir())
    aliases.note(B, A)
    aliases.note(C, B)
    assert [Aliases(tmp_path).first(each) for each in (A, B, C)] == [A, A, A]
    aliases.note(A, C)  # taken out again: nothing may lead in a circle
    assert [Aliases(tmp_path).first(each) for each in (A, B, C)] == [A, A, A]


def test_damaged_note_is_none(tmp_path: Path) -> None:
    Aliases(tmp_path).note(B, A)
    for content in (b"", b"\xff\xfe", b"../../etc/passwd\n", b"0" * 63):
        (tmp_path / "pictures" / B[:2] / B).write_bytes(content)
        assert Aliases(tmp_path).first(B) == B
