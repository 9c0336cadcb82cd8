"""`undo`: take back what an `apply` wrote."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phototagger.cli import options as o
from phototagger.cli.errors import FailedError
from phototagger.cli.publishing import Yes, absolute, check_below_roots, need_folder
from phototagger.cli.run import enter
from phototagger.cli.terminal import (
    confirm,
    need_terminal,
    progress,
    speak_plainly,
    tell_refused,
)

if TYPE_CHECKING:
    from phototagger.changeset import Changeset, Entry

_RUN_ID = r"\d{8}-\d{6}(-\d+)?"


def undo(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|PATH",
            help="The apply to take back, as 20260131-120000 (default: the last that is not), "
            "and of it only these photos, sidecars or folders.",
            show_default=False,
        ),
    ] = None,
    workdir: o.Workdir = Path(),
    yes: Yes = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Say which runs there are, and what they wrote.")
    ] = False,
) -> None:
    """Take back what `apply` wrote, except where somebody edited since."""
    run, words = _split_run(arguments or ())
    places = absolute([Path(word) for word in words], gone=True)
    need_folder(workdir)
    enter(workdir)
    speak_plainly()
    results = Path("results")
    if listing:
        _list_runs(results, run)
        return
    check_below_roots(places)
    from phototagger.changeset import JournalError
    from phototagger.publish import pending

    try:
        run, entries = pending(results, run, places)
    except JournalError as error:
        raise FailedError(str(error)) from error
    if not yes:
        need_terminal("undo", "photo-tagger undo --list shows what there is")
        print(f"{run}, written {_when(run)}: {_counted(entries)}")
        files = "this file" if len(entries) == 1 else f"these {len(entries):,} files"
        confirm(f"Give {files} back as before?")
    _undo(results, run, places, len(entries))


def _undo(results: Path, run: str, places: Sequence[Path], total: int) -> None:
    from phototagger.changeset import FOLDER, JournalError
    from phototagger.publish import Refused, undo

    refused: list[Refused] = []

    def report(item: object) -> None:
        if isinstance(item, Refused):
            refused.append(item)
        tick()

    with progress("taking back", total) as tick:
        try:
            outcome = undo(results, run, places, report)
        except JournalError as error:
            raise FailedError(str(error)) from error
        except KeyboardInterrupt:
            raise FailedError(
                "stopped; every file is whole, and the same undo again goes on"
            ) from None
    counts = outcome.counts
    print(f"as before: {counts['restored']:,} restored, {counts['removed']:,} new ones removed")
    tell_refused(refused, results / FOLDER / run / "not-undone.txt", "left as it is")
    if refused:
        raise FailedError(f"{len(refused):,} not taken back, see above")


def _split_run(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run, if the first word has the form of one, and the other words."""
    if words and re.fullmatch(_RUN_ID, words[0]) and not Path(words[0]).exists():
        return words[0], list(words[1:])
    return None, list(words)


def _list_runs(results: Path, run: str | None) -> None:
    from phototagger import changeset

    known = [run] if run else changeset.changesets(results)
    for name in known:
        found = changeset.open_changeset(results, name)
        print(f"{name}  {_when(name)}  {_described(found)}")
    if not known:
        print("no runs: apply has written nothing here yet")


def _when(run: str) -> str:
    """The id of a run as local time, `2026-01-31 12:00:00`."""
    day, time = run.split("-")[:2]
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}:{time[4:]}"


def _described(changeset: "Changeset") -> str:
    """As `3 new, 1 changed, 2 taken back`."""
    said = _counted(changeset.of("intent", "done"))
    if undone := len(changeset.of("undone")):
        said = f"{said}, {undone:,} taken back" if said else f"{undone:,} taken back"
    cut = "" if changeset.closed else " (cut off; the next apply or undo clears that up)"
    return f"{said or 'nothing'}{cut}"


def _counted(entries: Sequence["Entry"]) -> str:
    counts = {
        "new": sum(entry.before is None for entry in entries),
        "changed": sum(entry.before is not None and entry.after is not None for entry in entries),
        "removed": sum(entry.after is None for entry in entries),
    }
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
