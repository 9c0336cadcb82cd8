"""Questions, progress and lists of what was left out, on a terminal or without one."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from phototagger import names
from phototagger.cli.errors import FailedError
from phototagger.errors import UserError

if TYPE_CHECKING:
    from phototagger.cli.difference import Item
    from phototagger.publish import Refused

_LISTED = 20  # photos left out that are named; all are in a file


def need_terminal(command: str, hint: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            f"{command}: asks before it writes, and there is no terminal to ask at; give --yes "
            f"({hint})"
        )


def confirm(question: str) -> None:
    """Raises FailedError unless the answer is yes; Ctrl-C and the end of the input are no."""
    try:
        agreed = typer.confirm(question, default=False)
    except typer.Abort:
        print()
        agreed = False
    if not agreed:
        raise FailedError("nothing was written")


def speak_plainly() -> None:
    """Show characters that the terminal's encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_colourful() -> bool:
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal (on stderr), nothing elsewhere; yields what to call for each photo."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("photos"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def ticking(items: Iterator["Item"], tick: Callable[[], None]) -> Iterator["Item"]:
    for item in items:
        yield item
        tick()


def tell_refused(
    refused: Sequence["Refused"], file: Path | None, said: str = "not written"
) -> None:
    """Name the first of them, failures first; all in `file`, if there are more."""
    from phototagger.cli.difference import refused_line
    from phototagger.files import write_atomic

    ordered = sorted(refused, key=lambda item: not item.failure)
    for item in ordered[:_LISTED]:
        print(f"  {said}: {refused_line(item)}")
    if len(ordered) <= _LISTED:
        return
    if file is None:
        print(f"  and {len(ordered) - _LISTED:,} more: photo-tagger diff names all of them")
        return
    write_atomic(file, "".join(f"{refused_line(item)}\n" for item in ordered))
    print(f"  and {len(ordered) - _LISTED:,} more, all in {names.encode(file.absolute())}")
