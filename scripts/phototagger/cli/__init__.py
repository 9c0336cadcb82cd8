"""The command line. Heavy modules are imported inside the commands, so that `--help` is quick."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from phototagger import __version__
from phototagger.cli import (
    labels,
    models,
    prompts,
    publishing,
    registry,
    run,
    search,
    status,
    undoing,
    why,
)
from phototagger.cli.errors import FailedError
from phototagger.cli.options import Grouped
from phototagger.errors import UserError
from phototagger.files import explain

app = typer.Typer(
    name="photo-tagger",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Folders of photos in; thumbnails, labels, records, tables and sidecars out. "
    "Options after -- go to Snakemake.",
)
SNAKEMAKE_COMMANDS = frozenset({"run", "status", *run.STAGES})


def _version(asked: bool) -> None:
    if asked:
        print(f"photo-tagger {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which version.")
    ] = False,
) -> None:
    pass


app.command("run", cls=Grouped, help="Tag photos: everything, or just the TARGETs.")(
    run.run_command(None)
)
for _stage, (_help, _) in run.STAGES.items():
    app.command(_stage, cls=Grouped, help=_help)(run.run_command(_stage))
app.command("status")(status.status)
app.command("why")(why.why)
app.command("diff", cls=publishing.WithPage)(publishing.diff)
app.command("apply")(publishing.apply)
app.command("undo")(undoing.undo)
app.command("search")(search.search)
app.command("demo", hidden=True)(search.demo)
app.add_typer(labels.app, name="labels")
app.add_typer(models.app, name="models")
app.add_typer(prompts.app, name="prompts")
app.add_typer(registry.app, name="registry")
app.command("list-registry", help="Same as `registry list`.")(registry.list_)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; always ends in SystemExit: 0 done, 1 failed, 2 usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    extras: list[str] = []
    # For the others, what follows -- are names with a leading dash, as everywhere.
    if "--" in given and SNAKEMAKE_COMMANDS.intersection(given[:1]):
        cut = given.index("--")
        given, extras = given[:cut], given[cut + 1 :]
    try:
        app(args=given, obj=extras, prog_name="photo-tagger")
    except FailedError as error:
        _complain(error, 1)
    except UserError as error:
        _complain(error, 2)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a disk that is full, or a file server that is gone
        if told := explain(error):
            _complain(told, 1)
        raise


def _complain(error: UserError, code: int) -> None:
    sys.stdout.flush()
    text = " ".join(str(error).split("\n"))
    print(f"photo-tagger: {text.encode(errors='backslashreplace').decode()}", file=sys.stderr)
    raise SystemExit(code)
