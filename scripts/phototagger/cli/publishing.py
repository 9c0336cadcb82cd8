"""`diff` and `apply`: look at what would be written beside the photos, and do it."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from phototagger import names
from phototagger.cli import options as o
from phototagger.cli.errors import FailedError
from phototagger.cli.run import child_environment, enter, read_shards
from phototagger.cli.settings import from_options, read_config, remembered
from phototagger.cli.terminal import (
    confirm,
    is_colourful,
    need_terminal,
    progress,
    speak_plainly,
    tell_refused,
    ticking,
)
from phototagger.config import Config
from phototagger.errors import UserError

if TYPE_CHECKING:
    from phototagger.cli.difference import Item, Tally
    from phototagger.publish import Library, Options, Refused

PAGE = Path("results/diff.html")
PAGE_ENDINGS = (".html", ".htm")

Places = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH",
        help="Only these photos, sidecars or folders; without any, all photos of the last run.",
        show_default=False,
    ),
]
OnlyApproved = Annotated[
    bool, typer.Option("--only-approved", help="Only what was approved in the review.")
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Also write what you removed of ours (never over yours)."),
]
ReplaceHuman = Annotated[
    bool,
    typer.Option(
        "--replace-human", help="Where we have something to say, replace what people wrote."
    ),
]
Both = Annotated[
    bool, typer.Option("--both", help="Two sidecars of a photo that differ: write both.")
]
Naming = Annotated[
    str | None,
    typer.Option(metavar="ext|stem|both", help="Names of new sidecars.", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class WithPage(TyperCommand):
    """A command whose --html needs no value: what ends in .html or .htm after it is the file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, word in enumerate(args):
            if word == "--":
                break
            following = args[place + 1 : place + 2]
            if word == "--html" and not (following and following[0].lower().endswith(PAGE_ENDINGS)):
                args = [*args[:place], "--html=", *args[place + 1 :]]
                break
        return super().parse_args(ctx, args)


# ------------------------------------------------------------------------------------------ diff


def diff(
    paths: Places = None,
    workdir: o.Workdir = Path(),
    html: Annotated[
        str | None,
        typer.Option(metavar="[FILE.html]", help=f"A page with pictures; default {PAGE}."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line for each file.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Only count, by folder.")] = False,
    only_approved: OnlyApproved = False,
    overwrite: Overwrite = False,
    replace_human: ReplaceHuman = False,
    both: Both = False,
    naming: Naming = None,
) -> None:
    """Show what `apply` would write. Writes nothing but the page."""
    if html is not None and (as_json or summary):
        raise UserError("diff --html: goes neither with --json nor with --summary; give one")
    page = _page(html)
    places = absolute(paths)
    library, config = _library(workdir, naming)
    from phototagger.publish import compare

    options = _options(library, config, places, None, only_approved, overwrite, replace_human, both)
    items = compare(library, options)
    speak_plainly()
    if html is None:
        _print_difference(items, as_json, summary, places)
        return
    from phototagger.cli.difference import Tally
    from phototagger.cli.difference_page import write_page

    tally = Tally()
    try:
        with progress("comparing", None) as tick:
            write_page(
                ticking(items, tick),
                page,
                tally,
                results=library.results,
                machine=library.machine,
                size=config.thumbs.size,
                quality=config.thumbs.quality,
                max_photos=config.report.max_photos,
            )
    except OSError as error:
        raise FailedError(f"{names.encode(page)}: cannot be written ({error.strerror})") from error
    _tell_count(tally, places)
    print(f"page: {names.encode(page.absolute())}")


def _page(named: str | None) -> Path:
    """Where the page goes. Raises UserError for a name of anything else than a page: no photo is
    overwritten because of a slip of the hand."""
    if not named:
        return PAGE
    if not named.lower().endswith(PAGE_ENDINGS):
        raise UserError(f"diff --html={named}: is no name of a page; one ends in .html")
    return Path(named).absolute()


def _tell_count(tally: "Tally", places: Sequence[Path], said: str = "") -> None:
    print(f"{said}{tally.sentence()}")
    if places and not tally:
        print("nothing is proposed for these paths; photos that are new here need a run first")


def _print_difference(
    items: Iterator["Item"], as_json: bool, summary: bool, places: Sequence[Path]
) -> None:
    from phototagger.cli import difference

    tally = difference.Tally()
    if as_json and summary:
        for item in items:
            tally.add(item)
        print(difference.json_tally(tally))
    elif as_json:
        for line in filter(None, map(difference.json_line, items)):
            print(line)
    else:
        lines = difference.summary_lines if summary else difference.text_lines
        line = None
        for line in lines(items, tally, difference.Painter(is_colourful())):
            print(line)
        if line is not None:
            print()
        _tell_count(tally, places)


# ----------------------------------------------------------------------------------------- apply


def apply(
    paths: Places = None,
    workdir: o.Workdir = Path(),
    dry_run: o.DryRun = False,
    only_approved: OnlyApproved = False,
    yes: Yes = False,
    backup: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for copies of photos that are written into."),
    ] = None,
    overwrite: Overwrite = False,
    replace_human: ReplaceHuman = False,
    both: Both = False,
    naming: Naming = None,
) -> None:
    """Write what is proposed beside the photos. Asks first; `undo` takes it back."""
    places, copies = absolute(paths), backup and backup.absolute()
    library, config = _library(workdir, naming)
    if config.metadata.mode == "embed" and not copies and not dry_run:
        raise UserError(
            "metadata.mode is embed: photos themselves would be written into; name a folder for "
            "copies of them with --backup DIR"
        )
    options = _options(
        library, config, places, copies, only_approved, overwrite, replace_human, both
    )
    speak_plainly()
    if dry_run:
        tally, refused = _survey(library, options)
        _tell_count(tally, places, "would write ")
        tell_refused(refused, None)
        if tally.failures:
            raise FailedError(f"{tally.failures:,} could not be written, see above")
        return
    if copies:
        _need_backup(copies, library)
    total = None if places else sum(read_shards().values())
    if not yes:
        need_terminal("apply", "photo-tagger diff shows what it would write")
        total = _ask_to_apply(library, options)
    _apply(library, options, total, workdir)


def _need_backup(folder: Path, library: "Library") -> None:
    """Make the folder for copies, so that a slip in its name is told before anything is written."""
    if library.machine.roots.rel_path(folder) is not None:
        return  # refused by apply itself; no folder is made among the photos
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = "is no folder" if folder.exists() else f"cannot be made ({error.strerror})"
        raise UserError(f"--backup {names.encode(folder)}: {cause}; name another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--backup {names.encode(folder)}: is not writable; name another folder")


def _ask_to_apply(library: "Library", options: "Options") -> int | None:
    """The number of photos looked at. Raises typer.Exit if there is nothing to do, FailedError
    if the answer is no."""
    from phototagger.changeset import unfinished

    tally, refused = _survey(library, options)
    roots = ", ".join(root.path for root in library.machine.roots.roots)
    _tell_count(tally, options.paths, "would write ")
    if not tally.writes and not unfinished(library.results):
        tell_refused(refused, None)
        raise typer.Exit(1 if tally.failures else 0)
    print(f"below {roots}")
    confirm("Write this?")
    if options.merge.replace_human:
        print(
            "--replace-human: keywords, titles and descriptions that people gave these\n"
            "photos are removed where photo-tagger has something to say."
        )
        confirm("Really replace what people wrote?")
    return tally.actions.total() + tally.refused.total()


def _apply(library: "Library", options: "Options", total: int | None, workdir: Path) -> None:
    from phototagger.changeset import FOLDER, JournalError
    from phototagger.cli.difference import Tally
    from phototagger.publish import apply

    tally, refused = Tally(), []

    def report(item: "Item") -> None:
        tally.add(item)
        _collect(item, refused)
        tick()

    with progress("writing", total) as tick:
        try:
            outcome = apply(library, options, report)
        except JournalError as error:
            print(f"written {tally.sentence()}")
            raise FailedError(str(error)) from error
        except KeyboardInterrupt:
            raise FailedError(
                "stopped; every file is as it was or whole, and the next apply or undo goes on"
            ) from None
    _tell_count(tally, options.paths, "written ")
    home = library.results / FOLDER / outcome.changeset if outcome.changeset else None
    tell_refused(refused, (home or library.results / "logs") / "refused.txt")
    if outcome.changeset:
        print(f"take it back: {_command('undo', outcome.changeset, workdir)}")
    if tally.failures:
        raise FailedError(f"{tally.failures:,} could not be written, see above")


def _survey(library: "Library", options: "Options") -> tuple["Tally", list["Refused"]]:
    """Count what would be written, and what not."""
    from phototagger.cli.difference import Tally
    from phototagger.publish import compare

    tally, refused = Tally(), []
    with progress("comparing", None) as tick:
        for item in ticking(compare(library, options), tick):
            tally.add(item)
            _collect(item, refused)
    return tally, refused


def _collect(item: "Item", refused: list["Refused"]) -> None:
    from phototagger.cli.difference import is_quiet
    from phototagger.publish import Refused

    if isinstance(item, Refused) and not is_quiet(item):
        refused.append(item)


# -------------------------------------------------------------------------------- what all share


def _library(workdir: Path, naming: str | None) -> tuple["Library", Config]:
    """Enter the work directory; what a run left there, and its configuration."""
    given = from_options({"metadata.naming": naming}, (), (), None)
    need_folder(workdir)
    enter(workdir)
    before = remembered()
    settings = given.over(before) if before else given
    config = read_config(settings, child_environment(settings))
    from phototagger.publish import Library

    return Library.load(), config


def need_folder(workdir: Path) -> None:
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: no such folder; name one that a run has filled")


def _options(
    library: "Library",
    config: Config,
    places: tuple[Path, ...],
    backup: Path | None,
    only_approved: bool,
    overwrite: bool,
    replace_human: bool,
    both: bool,
) -> "Options":
    from phototagger import merge
    from phototagger.publish import Options

    return Options(
        naming=config.metadata.naming,
        mode=config.metadata.mode,
        merge=merge.Options(overwrite=overwrite, replace_human=replace_human),
        both=both,
        backup=backup,
        iptc=config.metadata.iptc,
        only_approved=only_approved,
        paths=_photos(places, library.extensions),
    )


def _photos(places: Sequence[Path], extensions: Sequence[str]) -> tuple[Path, ...]:
    """The places, with sidecars replaced by the photos that they belong to.

    Raises UserError for one that belongs to no photo.
    """
    from phototagger.beside import SIDECAR, Folder

    found: list[Path] = []
    for place in places:
        if place.suffix.lower() != SIDECAR or place.is_dir():
            found.append(place)
            continue
        folder = Folder(place.parent, extensions)
        photos = [name for name in folder.photos if place in folder.existing(name)]
        if not photos:
            raise UserError(f"{names.encode(place)}: belongs to no photo here; name the photo")
        found += [place.parent / name for name in photos]
    return tuple(dict.fromkeys(found))


def absolute(paths: Sequence[Path] | None, gone: bool = False) -> tuple[Path, ...]:
    """The paths, absolute. Raises UserError for one that does not exist, unless it may be gone."""
    for path in paths or ():
        if not gone and not os.path.lexists(path):
            raise UserError(f"{names.encode(path)}: no such photo, sidecar or folder")
    return tuple(Path(os.path.abspath(path)) for path in paths or ())


def check_below_roots(places: Sequence[Path]) -> None:
    if not places:
        return
    from phototagger.machine import Machine

    roots = Machine.load().roots
    for place in places:
        if roots.rel_path(place) is None:
            folders = ", ".join(root.path for root in roots.roots)
            raise UserError(
                f"{names.encode(place)}: not below the photos of this work directory ({folders}); "
                "name another --workdir, or photos below these"
            )


def _command(*words: str | Path) -> str:
    *command, workdir = words
    where = [] if workdir == Path() else ["--workdir", names.encode(os.fspath(workdir))]
    return shlex.join(["photo-tagger", *map(str, command), *where])
