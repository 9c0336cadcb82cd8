"""`registry`: model setups, what is known of them, and whether what is written of them holds."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phototagger.cli.registry_add import add, bench
from phototagger.prompts import FIELDS

if TYPE_CHECKING:
    from phototagger.setups import Setup

app = typer.Typer(
    no_args_is_help=True,
    help="Model setups: list, show, validate, select, command, add, bench, index.",
)

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="A name that `registry list` shows.")]
Registry = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="DIR",
        help="Your registry; default: registry/ in the current folder. The program's own comes "
        "after it.",
        show_default=False,
        exists=True,
        file_okay=False,
    ),
]
Role = Annotated[str | None, typer.Option(metavar="R", help="Only setups for this role.")]


@app.command("list")
def list_(
    role: Role = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Those for tests (random weights), too.")
    ] = False,
    registry: Registry = None,
) -> None:
    """List the setups that can be named in --setup, those with the highest priority first."""
    from phototagger import setups as known

    setups, problems = known.survey(registry)
    for problem in problems:
        print(f"left out: {' '.join(problem.split())}", file=sys.stderr)
    setups = [setup for setup in setups if everything or setup.purpose != "test"]
    roles = sorted({each for setup in setups for each in setup.roles})
    if role is not None:
        setups = [setup for setup in setups if role in setup.roles]
    setups.sort(key=lambda setup: (-_priority(setup, role), setup.slug))
    if as_json:
        print(json.dumps([_summary(setup) for setup in setups], indent=2, ensure_ascii=False))
        return
    if role is not None and not setups:
        print(f"no setup has the role {role!r}; there are: {', '.join(roles) or 'none'}")
        return
    _print_table(setups)


def _priority(setup: "Setup", role: str | None) -> int:
    return setup.roles[role] if role else max(setup.roles.values(), default=-1)


def _summary(setup: "Setup") -> dict:
    verification = setup.entry["verification"]
    return {
        "slug": setup.slug,
        "status": setup.status,
        "purpose": setup.purpose,
        "backend": setup.backend,
        "model": setup.model,
        "model_repo": setup.entry["model"]["repo_id"],
        "quantization": setup.entry["model"]["quantization"],
        "gpus": setup.gpus,
        "base_url": setup.base_url,
        "roles": dict(setup.roles),
        "date_utc": verification["date_utc"],
        "images_processed": verification["images_processed"],
        "digest": setup.digest,
    }


def _print_table(setups: "list[Setup]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("setup", "backend"):
        table.add_column(heading, no_wrap=True)
    for heading in ("status", "roles"):
        table.add_column(heading)
    for setup in setups:
        table.add_row(setup.slug, setup.backend, _status(setup), _roles(setup.roles))
    Console().print(table)
    print("success: captions, keywords and descriptions came back; unverified: never run")


def _roles(roles: Mapping[str, int]) -> str:
    """Roles with their priorities; `all 90` if the fields share one and there is no other."""
    if set(roles) == set(FIELDS) and len(set(roles.values())) == 1:
        return f"all {roles[FIELDS[0]]}"
    return ", ".join(f"{role} {priority}" for role, priority in roles.items())


def _status(setup: "Setup") -> str:
    date = setup.entry["verification"]["date_utc"]
    return f"{setup.status} {date[:10]}" if date else setup.status


@app.command()
def show(slug: Slug, registry: Registry = None) -> None:
    """Print all that is known of a setup, as it stands in its file."""
    from phototagger import setups

    print(json.dumps(setups.load(slug, registry).entry, indent=2, ensure_ascii=False))


@app.command()
def validate(
    paths: Annotated[
        bool, typer.Option("--paths", help="Files that they name have to be on this machine.")
    ] = False,
    registry: Registry = None,
) -> None:
    """Check every entry and the index; one line for each thing that is wrong, exit status 1."""
    from phototagger import setups

    problems = setups.validate(paths, registry)
    for problem in problems:
        print(" ".join(problem.split("\n")), file=sys.stderr)
    if problems:
        raise typer.Exit(1)
    count = sum(1 for _ in setups.entry_files(registry))
    print(f"{count} setups: entries, digests and index are in order")


@app.command()
def select(
    role: Annotated[str, typer.Option(metavar="R", help="caption, keywords, description ...")],
    registry: Registry = None,
) -> None:
    """Print the working setup with the highest priority for a role."""
    from phototagger import setups

    print(setups.select(role, registry).slug)


@app.command()
def command(slug: Slug, registry: Registry = None) -> None:
    """Print the line that starts a setup's server, exactly as it was recorded."""
    from phototagger import setups
    from phototagger.errors import UserError

    setup = setups.load(slug, registry)
    if setup.command is None:
        raise UserError(f"{slug}: has no command; somebody else runs it at {setup.base_url}")
    print(setup.command)


@app.command()
def index(registry: Registry = None) -> None:
    """Add entries that were written by hand to index.json; recorded ones never change."""
    from phototagger import setups
    from phototagger.cli.errors import FailedError
    from phototagger.errors import UserError

    folder = setups.folders(registry)[0]
    try:
        added = setups.reindex(folder)
    except (OSError, UserError) as error:
        raise FailedError(str(error)) from error
    print(f"{folder / 'index.json'}: {', '.join(added) or 'nothing'} added")


app.command("add")(add)
app.command("bench")(bench)
