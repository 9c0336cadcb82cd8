"""ExifTool, for what only it can read or write: many commands in one process, or a long-lived one.

`run_batch` is the fastest for commands that are known beforehand. The other:

    with ExifTool() as exiftool:
        tags = exiftool.tags(path, "-Make", "-Model")
        exiftool.execute("-o", "out.xmp", ...)

The process starts with the first command and gets its arguments over a pipe, one per line (`-@`):
no shell sees a file name. Names that would not survive that (a newline, leading or trailing blanks,
bytes that are not UTF-8, a leading `-` or `#`) are not to be passed: `link` gives any file a plain
name.
"""

import json
import os
import secrets
import selectors
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from phototagger import CLONE
from phototagger.errors import UserError

CONFIG = CLONE / "config/exiftool/photo-tagger.config"  # tells ExifTool of our namespace
LIST_SEPARATOR = "\x1f"  # a control character, so it is in no value

# Seconds that ExifTool may take for one command; far more than the largest file needs.
PATIENCE = 300.0
_PER_COMMAND = 5.0  # more for each further one of a batch

# ExifTool stops with one of these two even when a file failed; anything else is a crash.
_ORDINARY_EXITS = (0, 1)


class ExifToolMissingError(UserError):
    """There is no ExifTool on this machine."""


class ExifToolCrashError(UserError):
    """ExifTool ended before it was done."""


class ExifToolHangsError(UserError):
    """ExifTool did not come to an end."""


def find_exiftool() -> str:
    """The path of the ExifTool executable.

    Raises ExifToolMissingError.
    """
    if found := shutil.which("exiftool"):
        return found
    raise ExifToolMissingError(
        "exiftool: not found on the PATH; install it "
        "(apt install libimage-exiftool-perl, brew install exiftool, or exiftool.org)"
    )


def assignment(tag: str, value: str | Sequence[str]) -> str:
    """The argument of `run_batch` that sets a tag to a text or a list; nothing deletes the tag.

    A list is one argument, which ExifTool handles twice as fast as one per item.
    """
    text = value if isinstance(value, str) else LIST_SEPARATOR.join(value)
    text = text.replace("&", "&amp;").replace("\n", "&#10;").replace("\r", "&#13;")
    # ExifTool takes blanks away from both ends of a line
    start, end = len(text) - len(text.lstrip(" \t")), len(text.rstrip(" \t"))
    if start or end < len(text):
        text = "".join(
            f"&#{ord(char)};" if not start <= place < end else char
            for place, char in enumerate(text)
        )
    return f"-{tag}={text}"


def run_batch(
    commands: Iterable[Iterable[str]], folder: Path, *, config: Path | None = CONFIG
) -> str:
    """Run many ExifTool commands in one process, with `folder` as current directory.

    Every argument is one line; values are HTML-escaped (`-E`, see `assignment`), since a line
    cannot hold a line break. Files are plain names in `folder`. The user's own ExifTool
    configuration is left out. Returns what ExifTool had to complain about.

    Raises ExifToolMissingError and ExifToolCrashError.
    """
    executable = find_exiftool()
    lines = ["\n".join(command) for command in commands]
    (folder / "arguments").write_bytes("\n-execute\n".join(lines).encode() + b"\n")
    patience = PATIENCE + _PER_COMMAND * len(lines)
    try:
        process = subprocess.run(
            [
                *(executable, "-config", str(config or ""), "-@", "arguments"),
                *("-common_args", "-E", "-sep", LIST_SEPARATOR, "-charset", "utf8"),
            ],
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},  # otherwise perl complains about missing locales
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=patience,
        )
    except OSError as error:
        raise ExifToolCrashError(
            f"{executable}: cannot be run ({error.strerror}); install ExifTool anew"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ExifToolHangsError(
            f"{executable}: no answer for {patience:.0f} s, so it was ended; see whether "
            "`exiftool -ver` works, then run the same again"
        ) from error
    complaints = process.stderr.decode("utf-8", "replace").strip()
    if process.returncode not in _ORDINARY_EXITS:
        last = complaints.splitlines()[-1:] or ["it left no message"]
        how = f"signal {-process.returncode}" if process.returncode < 0 else process.returncode
        raise ExifToolCrashError(
            f"exiftool: ended abnormally ({how}; {last[0]}); run the same again"
        )
    return complaints


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new private folder, removed afterwards. Raises UserError if it cannot be written to."""
    try:
        with tempfile.TemporaryDirectory(prefix="photo-tagger-") as folder:
            yield Path(folder)
    except OSError as error:
        where = tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"
        raise UserError(
            f"{where}: no temporary files can be written there ({error.strerror}); "
            "free some space, or name another folder with TMPDIR"
        ) from error


def complaints_by_file(complaints: str) -> dict[str, str]:
    """What `run_batch` returned, by file name; of several complaints the first error."""
    found: dict[str, str] = {}
    for line in complaints.splitlines():
        message, _, name = line.rpartition(" - ")
        if message.startswith("Error") and not found.get(name, "").startswith("Error"):
            found[name] = message
        elif message:
            found.setdefault(name, message)
    return found


class ExifTool:
    """A lazily started ExifTool that several threads may share; commands run one at a time."""

    def __init__(self, config: Path | None = None, common_args: list[str] | None = None):
        self._config = config
        self._common_args = common_args or []
        self._process: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._links = 0
        self._errors = b""
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
            find_exiftool()
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
                with suppress(OSError):  # it has ended just now
                    self._process.terminate()
            self._process = None
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def execute(self, *args: str | bytes) -> bytes:
        """Run one command and return its standard output; see `last_error` for what went wrong.

        Raises ValueError if an argument holds a line break, which would make it two, and
        ExifToolCrashError if the process ends or does not answer; the next command starts another.
        """
        for arg in args:
            text = arg if isinstance(arg, bytes) else arg.encode()
            if b"\n" in text or b"\r" in text or b"\0" in text:
                raise ValueError(f"not one line: {arg!r}")
        with self._lock:
            self.start()
            process = self._process._process
            # `execute` of pyexiftool waits for ever for the answer of a process that has ended
            watchdog = threading.Timer(PATIENCE, process.kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                output, self._errors = _answer(process, args)
            except OSError as error:
                process.kill()
                process.wait()
                self._process = None
                raise ExifToolCrashError(
                    "exiftool: ended in the middle of a command, or did not answer; "
                    "run the same again"
                ) from error
            finally:
                watchdog.cancel()
            return output

    @property
    def last_error(self) -> str:
        """What the last command wrote to standard error (shared by all threads)."""
        return self._errors.decode(errors="replace")

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


def _answer(process: subprocess.Popen[bytes], args: Sequence[str | bytes]) -> tuple[bytes, bytes]:
    """What a process started with `-stay_open` writes to standard output and error about a command.

    Raises OSError if it ends meanwhile.
    """
    number = secrets.randbelow(10**9)
    ends = {process.stdout: b"{ready%d}" % number, process.stderr: b"{post%d}" % number}
    lines = [arg if isinstance(arg, bytes) else arg.encode() for arg in args]
    lines += [b"-echo4", ends[process.stderr], b"-execute%d" % number, b""]
    process.stdin.write(b"\n".join(lines))
    process.stdin.flush()
    found = {pipe: bytearray() for pipe in ends}
    with selectors.DefaultSelector() as waiting:
        for pipe in ends:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                pipe, content = key.fileobj, found[key.fileobj]
                more = os.read(key.fd, 1 << 20)
                if not more:
                    raise BrokenPipeError("ExifTool has ended")
                content += more
                if content[-64:].rstrip().endswith(ends[pipe]):
                    waiting.unregister(pipe)
    output, errors = (bytes(found[pipe].rstrip()[: -len(end)]) for pipe, end in ends.items())
    return output, errors
