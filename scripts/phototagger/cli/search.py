"""`search` over the embeddings of a work directory, and the hidden `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from phototagger import names
from phototagger.cli import options as o
from phototagger.cli.errors import FailedError
from phototagger.cli.run import enter
from phototagger.errors import UserError


def search(
    query: Annotated[
        str | None, typer.Argument(metavar="[QUERY]", help='Words, as "red boat at sunset".')
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="Photos to show.")] = 20,
    like: Annotated[
        Path | None, typer.Option(metavar="PHOTO", help="Photos that look like this one.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the pictures.")
    ] = None,
    workdir: o.Workdir = Path(),
) -> None:
    """Find photos by words or by likeness, best first: score and rel_path."""
    if (query is None) == (like is None):
        raise UserError('search: give words, as in "red boat at sunset", or --like PHOTO')
    page = html.absolute() if html else None
    looked = like and str(like.absolute() if like.exists() else like)
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: no such folder; name one that a run has filled")
    enter(workdir)
    from phototagger.machine import PATH, Machine
    from phototagger.search import find, write_html

    results = Path("results")
    if not PATH.exists():
        raise UserError(f"{Path.cwd()}: no results here yet; run: photo-tagger run PHOTOS")
    machine = Machine.load()
    hits = find(results, machine, query=query, like=looked, k=count)
    for hit in hits:
        print(f"{hit.score:.4f}  {hit.rel_path}")
    if page:
        title = query or f"like {names.encode(like.name)}"
        write_html(hits, page, results=results, machine=machine, title=title)
        print(f"pictures: {page}")


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder that gets the demo photos.")],
) -> None:
    """Copy photos from installed packages and give them EXIF data."""
    from phototagger.demo import make_demo_photos

    try:
        count = make_demo_photos(folder)
    except UserError as error:
        raise FailedError(str(error)) from error
    print(f"{count} demo photos in {folder}")
