"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Photos = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PHOTOS|TARGET",
        help="Folders of photos or single photos; then, if not everything is wanted, targets: "
        "a stage, a rule, or a file below results/. Without PHOTOS: those of the last run here, "
        "else photos.roots of the configuration.",
        show_default=False,
    ),
]
Workdir = Annotated[
    Path, typer.Option(help="Folder that gets results/ and cache/.", file_okay=False)
]
Recursive = Annotated[
    bool | None,
    typer.Option("--recursive/--no-recursive", help="Look into subfolders.", show_default=False),
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE|DIR", help="Label file, keyword list or label pack.")
]
ClipModel = Annotated[str | None, typer.Option(metavar="NAME", help="See `models list`.")]
Threshold = Annotated[
    float | None, typer.Option(help="A label scoring at least this becomes a keyword.")
]
Topk = Annotated[int | None, typer.Option(help="Best labels kept per photo.")]
MaxImages = Annotated[int | None, typer.Option(help="Only the first N photos, in path order.")]
Cores = Annotated[int | None, typer.Option(min=1, help="CPU cores to use; default all.")]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Configuration instead of config/config.yaml.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.yaml, as score.topk=7."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Same as a TARGET argument.")]
