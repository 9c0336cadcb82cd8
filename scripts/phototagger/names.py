r"""File names as text that survives JSON, CSV, TSV and Parquet.

A POSIX file name is any bytes but NUL and `/`; text formats want valid UTF-8 on one line. `encode`
leaves an ordinary name as it is and escapes only what does not fit: control characters, bytes
that are not UTF-8, line separators and the backslash itself, Python style (`\n`, `\xff`, `\\`).
`decode` gives back the exact name.
"""

import os
import re
from pathlib import Path, PurePosixPath

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
# C0 and C1 controls, line and paragraph separators, surrogates (undecodable bytes), backslash
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([nrt\\]))")
_LETTER = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if char in _NAMED:
        return _NAMED[char]
    if "\udc80" <= char <= "\udcff":  # a byte that os.fsdecode could not decode
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\u{ord(char):04x}"


def _unescape(match: re.Match[str]) -> str:
    byte, code, letter = match.groups()
    if byte:
        return chr(0xDC00 + int(byte, 16))
    return chr(int(code, 16)) if code else _LETTER[letter]


def encode(name: str | os.PathLike[str]) -> str:
    """A path as the operating system gives it (with surrogate escapes) as plain one-line text."""
    return _UNSAFE.sub(_escape, os.fspath(name))


def decode(text: str) -> str:
    """The inverse of `encode`."""
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def folder_of(rel_path: str) -> str:
    """The folder of an encoded rel_path, `.` for photos that lie in the root itself."""
    return rel_path.rpartition("/")[0] or "."


def local_path(base: Path, rel_path: str) -> Path:
    """Where an encoded rel_path lies below `base`.

    Raises ValueError if it would lie outside.
    """
    relative = PurePosixPath(decode(rel_path))
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{rel_path}: not below {base}")
    return base / relative
