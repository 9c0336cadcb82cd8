"""One long-lived ExifTool process, for what only ExifTool can read or write.

    with ExifTool() as exiftool:
        tags = exiftool.tags(path, "-Make", "-Model")
        exiftool.execute("-o", "out.xmp", ...)

The process starts with the first command and gets its arguments over a pipe, one per line (`-@`):
no shell sees a file name. Names that would not survive that (a newline, leading or trailing blanks,
bytes that are not UTF-8, a leading `-` or `#`) are not to be passed: `link` gives any file a plain
name.
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from phototagger.errors import UserError


class ExifToolMissingError(UserError):
    """There is no ExifTool on this machine."""


class ExifTool:
    """A lazily started ExifTool that several threads may share; commands run one at a time."""

    def __init__(self, config: Path | None = None, common_args: list[str] | None = None):
        self._config = config
        self._common_args = common_args or []
        self._process: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._links = 0
        self._lock = threading.RLock()

    def __enter__(self) -> "ExifTool":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def available() -> bool:
        return shutil.which("exiftool") is not None

    def start(self) -> None:
        """Start the process; done by the first command, unless somebody wants it earlier.

        Raises ExifToolMissingError.
        """
        import exiftool

        with self._lock:
            if self._process is not None and self._process.running:
                return
            if not self.available():
                raise ExifToolMissingError(
                    "exiftool: not found on PATH; install it (Debian: apt install "
                    "libimage-exiftool-perl, macOS: brew install exiftool)"
                )
            # An empty config keeps a person's own ~/.ExifTool_config from changing results.
            process = exiftool.ExifTool(
                common_args=self._common_args,
                config_file=str(self._config) if self._config else "",
                encoding="utf-8",
            )
            process.run()
            self._process = process

    def close(self) -> None:
        with self._lock:
            if self._process is not None and self._process.running:
                self._process.terminate()
            self._process = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def execute(self, *args: str | bytes) -> bytes:
        """Run one command and return its standard output; see `last_error` for what went wrong.

        Raises ValueError if an argument holds a line break, which would make it two.
        """
        for arg in args:
            text = arg if isinstance(arg, bytes) else arg.encode()
            if b"\n" in text or b"\r" in text or b"\0" in text:
                raise ValueError(f"not one line: {arg!r}")
        with self._lock:
            self.start()
            return self._process.execute(*args, raw_bytes=True)

    @property
    def last_error(self) -> str:
        """What the last command wrote to standard error (shared by all threads)."""
        error = self._process.last_stderr if self._process else b""
        return error.decode(errors="replace") if isinstance(error, bytes) else error or ""

    def tags(self, path: Path, *args: str) -> dict[str, Any]:
        """The tags of one file as ExifTool's JSON gives them; {} if it cannot make sense of it.

        What looks like a number stays text: it may be a keyword, `007` or `1e5`.
        `path` must be a plain name, see `link`.
        """
        output = self.execute("-j", *args, str(path))
        try:
            tags = json.loads(output.decode(errors="replace"), parse_int=str, parse_float=str)[0]
        except (ValueError, IndexError):
            return {}
        tags.pop("SourceFile", None)
        return tags

    @contextmanager
    def link(self, path: Path, suffix: str = "") -> Iterator[Path]:
        """A symlink with a plain name to any file; it ends in `suffix`, which ExifTool looks at."""
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="phototagger-")
            self._links += 1
            link = Path(self._folder.name) / f"photo{self._links}{suffix}"
        link.symlink_to(path.absolute())
        try:
            yield link
        finally:
            link.unlink(missing_ok=True)
