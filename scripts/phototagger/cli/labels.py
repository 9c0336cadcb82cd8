"""`labels`: what a label file means to photo-tagger."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Label files and packs.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def check(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="Label file, keyword list, pack, or a pack's name."),
    ],
) -> None:
    """Read a label file or pack as a run would, and say what is in it and what is doubtful."""
    from phototagger.labels import check_pack
    from phototagger.workflow import find_labels

    report = check_pack(find_labels(path))
    print(f"{report.name}: {report.labels:,} labels, digest {report.digest}")
    if len(report.groups) > 1:
        print("groups: " + ", ".join(f"{name} ({count})" for name, count in report.groups.items()))
    for name, members in report.synonym_groups.items():
        print(f"equivalent ({name}): {', '.join(members)}")
    if report.synonyms:
        print(f"synonyms written along: {report.synonyms:,}")
    if report.not_exported:
        print(f"not exported: {report.not_exported:,}")
    if report.duplicates:
        print(f"dropped as duplicates: {', '.join(report.duplicates)}")
    for warning in report.warnings:
        print(f"doubtful: {warning}")
