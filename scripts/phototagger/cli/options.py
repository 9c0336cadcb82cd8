"""Options that several commands share.

An option that stands for a key of config.yaml is a line of CONFIGURED; `configured` gives them all
to a command. What values are valid says the configuration's schema, not the option.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from phototagger.errors import UserError, one_of
from phototagger.prompts import FIELDS

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
Cores = Annotated[int | None, typer.Option(min=1, help="CPU cores to use; default all.")]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|DIR",
        help="Where jobs run: a Snakemake profile, by its folder or a name in profiles/; "
        "`default` is this machine.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Configuration instead of config/config.yaml.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.yaml, as score.topk=7."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Same as a TARGET argument.")]


def parse_endings(text: str) -> list[str]:
    """`jpg,.PNG` as [".jpg", ".png"]."""
    endings = [word.strip().lower().removeprefix(".") for word in text.split(",")]
    if wrong := [word for word in endings if not (word.isascii() and word.isalnum())]:
        raise UserError(f"--image-exts: {wrong[0]!r} is no file name ending; write jpg,png")
    return [f".{ending}" for ending in dict.fromkeys(endings)]


def parse_fields(text: str) -> list[str]:
    """`keywords,caption` as a list in the order in which they are asked for."""
    given = {word.strip() for word in text.split(",")}
    for word in sorted(given - {*FIELDS}):
        raise one_of("--fields", word, list(FIELDS))
    return [field for field in FIELDS if field in given]


def parse_list(text: str) -> list[str]:
    """`keywords,caption` as a list; nothing is the empty list. What is valid says the schema."""
    return list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))


@dataclass(frozen=True)
class Configured:
    """An option for a key of config.yaml."""

    panel: str  # heading in the help
    key: str  # section.name
    kind: type  # of the value; list: may be repeated
    name: str  # `--yes/--no` for both
    metavar: str | None  # None: after the type
    help: str

    @property
    def parameter(self) -> str:
        return self.key.replace(".", "_")

    def declaration(self) -> inspect.Parameter:
        """As a keyword parameter of a Typer command; None = not given."""
        option = typer.Option(
            self.name,
            help=self.help,
            metavar=self.metavar,
            parser=_PARSERS.get(self.key),
            rich_help_panel=self.panel,
            show_default=False,
        )
        kind = list[str] if self.kind is list else self.kind
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, option],
        )


_PARSERS = {
    "photos.extensions": parse_endings,
    "describe.fields": parse_fields,
    "tagged.fields": parse_list,
    "tagged.by": parse_list,
}
_ROWS = {
    "Photos": [
        ("photos.recursive", bool, "--recursive/--no-recursive", None, "Look into subfolders."),
        ("photos.extensions", str, "--image-exts", "jpg,png", "Only files of these endings."),
        ("photos.max_images", int, "--max-images", "N", "Only the first N, in path order."),
    ],
    "Labels (CLIP)": [
        ("labels.path", str, "--labels", "FILE|DIR", "Label file, keyword list or label pack."),
        ("clip.model", str, "--clip-model", "NAME", "See `models list`."),
        ("score.threshold", float, "--threshold", "X", "A label scoring this much is a keyword."),
        ("score.topk", int, "--topk", "N", "Best labels kept per photo."),
    ],
    "Captions, keywords and descriptions": [
        ("describe.setup", str, "--setup", "SLUG", "Model setup; see `registry list`."),
        ("describe.caption_setup", str, "--caption-setup", "SLUG", "Another setup for captions."),
        ("describe.keywords_setup", str, "--keyword-setup", "SLUG", "... for keywords."),
        ("describe.description_setup", str, "--description-setup", "SLUG", "... for descriptions."),
        ("describe.caption_role", str, "--caption-role", "ROLE",
         "For captions: the best setup for a role."),
        ("describe.keywords_role", str, "--keyword-role", "ROLE", "... for keywords."),
        ("describe.description_role", str, "--description-role", "ROLE", "... for descriptions."),
        ("describe.fields", str, "--fields", "LIST",
         "What to ask for: caption,keywords,description."),
        ("describe.profile", str, "--prompt-profile", "NAME", "See `prompts list`."),
        ("describe.language", str, "--language", "CODE", "Language of the answers: en, de ..."),
        ("describe.overwrite", bool, "--overwrite/--no-overwrite", None,
         "Ask for what the photo's own metadata has, too."),
        ("describe.max_keywords", int, "--max-keywords", "N", "Keywords per photo at most."),
        ("describe.vocabulary", str, "--vocabulary", "FILE|DIR", "Labels to map keywords to."),
        ("describe.strict", bool, "--strict/--no-strict", None,
         "No keyword outside the vocabulary."),
        ("describe.max_new_tokens", int, "--max-new-tokens", "N", "Tokens per answer at most."),
        ("describe.temperature", float, "--temperature", "X", "0 for the most likely words."),
        ("describe.top_p", float, "--top-p", "X", "Share of probability to draw words from."),
        ("describe.seed", int, "--seed", "N", "Each photo's own seed is derived from it."),
    ],
    "Model servers": [
        ("servers.base_url", list, "--base-url", "URL",
         "A running server, as http://127.0.0.1:8000/v1; may be repeated."),
        ("describe.backend", str, "--backend", "KIND",
         "Without a setup: its kind (vllm, ollama ...)."),
        ("describe.model", str, "--model", "NAME", "Without a setup: its model."),
        ("describe.caption_model", str, "--caption-model", "NAME", "Another model for captions."),
        ("describe.keywords_model", str, "--keyword-model", "NAME", "... for keywords."),
        ("describe.description_model", str, "--description-model", "NAME", "... for descriptions."),
        ("servers.api_key_env", str, "--api-key-env", "VARIABLE",
         "Environment variable with the API key."),
        ("servers.concurrency", int, "--concurrency", "N", "Requests in flight per server."),
        ("servers.timeout", float, "--timeout", "SECONDS", "For one answer."),
        ("servers.preflight", bool, "--preflight/--skip-preflight", None,
         "First check that the model really sees pictures."),
    ],
    "Metadata": [
        ("metadata.enabled", bool, "--meta/--no-meta", None, "Propose XMP sidecars, or none."),
        ("metadata.naming", str, "--naming", "ext|stem|both",
         "Names of new sidecars: IMG.CR3.xmp, IMG.xmp (raw files only), or both."),
        ("metadata.mode", str, "--metadata-mode", "sidecar|embed",
         "Where `apply` writes: beside the photos, or into JPEG and TIFF files."),
        ("tagged.fields", str, "--skip-tagged", "LIST",
         "Leave photos alone that have all of these: keywords,caption ..."),
        ("tagged.by", str, "--tagged-by", "LIST",
         "Whose values count for that: person,photo-tagger."),
    ],
}  # fmt: skip
CONFIGURED = tuple(Configured(panel, *row) for panel, rows in _ROWS.items() for row in rows)


def option_name(key: str) -> str:
    """The option for a key of config.yaml, as `--keyword-setup`; `--set KEY` if it has none."""
    names = (option.name for option in CONFIGURED if option.key == key)
    return next(names, f"--set {key}").partition("/")[0]


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of CONFIGURED.

    It gets their values as `options`, by key of config.yaml; None for those that were not given.
    """

    def with_options(**values: Any) -> None:
        options = {option.key: values.pop(option.parameter) for option in CONFIGURED}
        command(**values, options=options)

    signature = inspect.signature(command)
    own = [each for name, each in signature.parameters.items() if name != "options"]
    declared = [option.declaration() for option in CONFIGURED]
    with_options.__signature__ = signature.replace(parameters=[*own, *declared])
    with_options.__annotations__ = {}  # what Typer reads is in the signature
    return with_options


class Grouped(TyperCommand):
    """A command whose help has its options under headings, without Rich's boxes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                argument = parameter.param_type_name == "argument"
                panel = "Arguments" if argument else parameter.rich_help_panel or "Options"
                groups.setdefault(panel, []).append(record)
        for panel, records in groups.items():
            with formatter.section(panel):
                formatter.write_dl(records)
