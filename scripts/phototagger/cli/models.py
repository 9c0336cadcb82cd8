"""`models`: which CLIP models there are, and how they get here."""

import os
from pathlib import Path
from typing import Annotated

import typer

from phototagger.cli.errors import FailedError
from phototagger.errors import UserError, one_of

app = typer.Typer(no_args_is_help=True, help="CLIP models: list, fetch, build, verify.")

ModelsDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Default: $PHOTO_TAGGER_MODELS, else models/ in the clone."),
]


@app.command("list")
def list_(models_dir: ModelsDir = None) -> None:
    """List the models that can be named in --clip-model, and whether their weights are here."""
    from rich.console import Console
    from rich.table import Table

    from phototagger import models as registry

    folder = registry.default_models_dir(models_dir)
    table = Table()
    for heading in ("model", "ready", "embedding", "input", "licence", "description"):
        table.add_column(heading, overflow="fold")
    for card in registry.list_models(folder):
        size = f"{card.image_size} px"
        ready = _ready(card.name, folder)
        table.add_row(
            card.name, ready, str(card.embedding_dim), size, card.licence, card.description
        )
    Console().print(table)
    print(f"weights in {folder}")


def _ready(name: str, folder: Path) -> str:
    from phototagger.models import weights

    try:
        weights(name, folder)
    except UserError:
        return "no"
    return "yes"


@app.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A name that `models list` shows.")
    ] = None,
    models_dir: ModelsDir = None,
    setup: Annotated[
        str | None,
        typer.Option(metavar="SLUG", help="Instead: what the server of this setup needs."),
    ] = None,
) -> None:
    """Fetch a model's weights from its hub (or build it) and record their SHA-256."""
    if (name is None) == (setup is None):
        raise UserError("models fetch: name a CLIP model, or a setup of the registry by --setup")
    if setup:
        _fetch_setup(setup, models_dir)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from phototagger import models as registry

    folder = _known(name, models_dir)
    with Progress(name, BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(name, total=None)
        try:
            weights = registry.fetch(
                name, folder, lambda done, total: bar.update(task, completed=done, total=total)
            )
        except UserError as error:
            raise FailedError(str(error)) from error
    print(f"{name}: {weights.bytes:,} bytes, sha256 {weights.sha256}")


def _fetch_setup(slug: str, models_dir: Path | None) -> None:
    from phototagger import setup_weights, setups
    from phototagger.models import default_models_dir

    env = {**os.environ, "PHOTO_TAGGER_MODELS": str(default_models_dir(models_dir))}
    try:
        folder, listed = setup_weights.fetch(setups.load(slug), env)
    except UserError as error:
        raise FailedError(str(error)) from error
    size = sum(size for size, _ in listed.values())
    print(f"{slug}: {len(listed)} files, {size:,} bytes, digests checked: {folder}")


@app.command("build-demo")
def build_demo(models_dir: ModelsDir = None) -> None:
    """Build the small offline model `demo-clip` from two installed packages."""
    from phototagger import models as registry

    folder = registry.default_models_dir(models_dir)
    try:
        weights = registry.build_demo(folder)
    except UserError as error:
        raise FailedError(str(error)) from error
    print(f"demo-clip: {weights.bytes:,} bytes, sha256 {weights.sha256}")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: all.")] = None,
    models_dir: ModelsDir = None,
) -> None:
    """Hash weights and compare them with what was recorded."""
    from phototagger import models as registry

    folder = registry.default_models_dir(models_dir)
    if name:
        _known(name, models_dir)
        chosen = [name]
    else:
        chosen = [c.name for c in registry.list_models(folder) if _ready(c.name, folder) == "yes"]
    for each in chosen:
        try:
            print(f"{each}: {registry.verify(each, folder).sha256}")
        except UserError as error:
            raise FailedError(str(error)) from error


def _known(name: str, models_dir: Path | None) -> Path:
    """The models folder, if `name` is known; raises UserError listing the names if not."""
    from phototagger import models as registry

    folder = registry.default_models_dir(models_dir)
    valid = [card.name for card in registry.list_models(folder)]
    if name not in valid:
        raise one_of("model", name, valid)
    return folder
