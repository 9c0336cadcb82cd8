"""`registry add` and `registry bench`: a setup is tried from end to end, on real photos."""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phototagger.cli.errors import FailedError
from phototagger.errors import UserError, one_of

if TYPE_CHECKING:
    from phototagger.config import Config
    from phototagger.trial import Trial

LOGS = Path("results/logs/servers")

Photos = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Sample photos; default: those of the demo.", show_default=False
    ),
]
Limit = Annotated[
    int, typer.Option("--max-images", min=1, help="Sample photos at most, in path order.")
]
Profile = Annotated[str | None, typer.Option("--prompt-profile", help="Prompt profile.")]
KeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", help="Environment variable with the API key.")
]
Registry = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="DIR",
        help="Your registry; default: registry/ in the current folder.",
        show_default=False,
        file_okay=False,
    ),
]


def _option(help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, show_default=False, **more)


def add(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the new setup.")],
    like: Annotated[
        str | None, _option("Take all from this setup: to try it again.", metavar="SLUG")
    ] = None,
    command: Annotated[
        str | None, _option("The line that starts the server, as one argument.", metavar="LINE")
    ] = None,
    backend: Annotated[
        str | None, _option("vllm, lmdeploy, sglang, llama.cpp, ollama or openai.")
    ] = None,
    model: Annotated[
        str | None, _option("Name under which it is served; default: as the command says.")
    ] = None,
    base_url: Annotated[
        str | None, _option("Where it is asked; default: the command's host and port.")
    ] = None,
    repo: Annotated[str | None, _option("Where the weights come from: owner/name.")] = None,
    revision: Annotated[str | None, _option("Commit of that repository.")] = None,
    weights_format: Annotated[str | None, _option("awq, fp8, gguf ...", "--format")] = None,
    quantization: Annotated[str | None, _option("awq_marlin, q4_k_m ...")] = None,
    health: Annotated[str | None, _option("Path that answers 200 when it is ready.")] = None,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds it may take.")] = 600,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs it occupies.")] = 0,
    chat_template: Annotated[str | None, _option("File, if it is not the model's own.")] = None,
    structured_output: Annotated[
        str, typer.Option(help="json_schema, guided_json, json_object, format or none.")
    ] = "json_schema",
    token_field: Annotated[
        str, typer.Option(help="max_tokens or max_completion_tokens.")
    ] = "max_tokens",
    extra_body: Annotated[
        str | None, _option("JSON object sent along: thinking off and the like.", metavar="JSON")
    ] = None,
    max_edge: Annotated[int, typer.Option(help="Longer side of the pictures, pixels.")] = 1024,
    image_format: Annotated[str, typer.Option(help="jpeg or png.")] = "jpeg",
    concurrency: Annotated[int | None, _option("Requests in flight.", min=1)] = None,
    role: Annotated[
        list[str] | None, _option("What it can be chosen for, repeatable.", metavar="NAME=PRIORITY")
    ] = None,
    for_tests: Annotated[
        bool,
        typer.Option("--for-tests", help="Random weights: not for tagging, not made to see."),
    ] = False,
    notes: Annotated[str | None, _option("What the next person should know.")] = None,
    photos: Photos = None,
    limit: Limit = 20,
    profile: Profile = None,
    api_key_env: KeyEnv = None,
    registry: Registry = None,
) -> None:
    """Try a setup on sample photos, and record what came of it: a success, or why it failed.

    The server is started with the command, checked, asked for captions, keywords and descriptions,
    and stopped. Entries are never edited: a setup that exists is tried again under a new name.
    """
    from phototagger import hostinfo, setups, trial

    setups.check_slug(slug)
    folder = setups.folders(registry)[0]
    for each in setups.folders(registry):
        setups.check_free(slug, each)
    setups.check_writable(folder)
    commit = hostinfo.git_commit()
    if commit is None:
        raise UserError(
            "registry add: an entry names the commit that was tried; run it from a git clone of "
            "photo-tagger (registry bench measures without recording)"
        )
    if like:
        if command or backend:
            raise UserError("--like takes command and backend from that setup; leave these out")
        entry = trial.again(setups.load(like, registry).entry, slug)
    else:
        wanted = trial.Wanted(
            slug,
            _backend(backend),
            command,
            *(model, base_url, repo, revision, weights_format, quantization),
            *(health, start_timeout, gpus, chat_template, structured_output, token_field),
            extra_body=_json_object(extra_body),
            max_edge=max_edge,
            image_format=image_format,
            concurrency=concurrency,
            roles=_roles(role or ()),
            purpose="test" if for_tests else "tagging",
            canary=not for_tests,
        )
        entry = trial.draft(wanted)
    if notes is not None:
        entry["notes"] = notes
    line = shlex.join(["photo-tagger", *sys.argv[1:]])
    complete = entry | {"tagger": entry["tagger"] | {"command": line}}
    for problem in setups.content_problems(complete, setups.entry_path(folder, slug)):
        raise UserError(problem)
    config = _config(profile, concurrency, api_key_env)
    setup = setups.from_entry(entry)
    with _samples(photos) as samples:
        result = trial.run(setup, samples, config, _log(slug), limit)
    _print_table(slug, result)
    outcome = f"failed ({result.failure})" if result.failure else "success"
    try:
        path = setups.write_entry(trial.verified(entry, result, config, commit, line), folder)
    except (OSError, UserError) as error:
        raise FailedError(f"{slug}: {outcome}, but not recorded: {error}") from error
    if result.failure:
        raise FailedError(f"{slug}: failed, recorded in {path}: {result.failure}")
    print(f"{slug}: success, recorded in {path}")


def bench(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="A name that `registry list` shows.")],
    photos: Photos = None,
    limit: Limit = 20,
    concurrency: Annotated[int | None, _option("Requests in flight.", min=1)] = None,
    profile: Profile = None,
    api_key_env: KeyEnv = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    registry: Registry = None,
) -> None:
    """Measure a setup on sample photos as `registry add` does, recording nothing."""
    from phototagger import setups, trial

    setup = setups.load(slug, registry)
    config = _config(profile, concurrency, api_key_env)
    with _samples(photos) as samples:
        result = trial.run(setup, samples, config, _log(slug), limit)
    if as_json:
        print(json.dumps({"setup": slug, **result.as_dict()}, indent=2, ensure_ascii=False))
    else:
        _print_table(slug, result)
    if result.failure:
        raise FailedError(f"{slug}: {result.failure}")


# ---------------------------------------------------------------------------------------- input


def _backend(given: str | None) -> str:
    from phototagger.setups import BACKENDS

    if given is None:
        raise UserError(f"--backend: name the kind of server: {', '.join(sorted(BACKENDS))}")
    if given not in BACKENDS:
        raise one_of("--backend", given, list(BACKENDS))
    return given


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--extra-body: is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError("--extra-body: is not a JSON object; write {} around its keys")
    return value


def _roles(given: Sequence[str]) -> dict[str, int]:
    roles = {}
    for each in given:
        name, _, priority = each.partition("=")
        if not name or not priority.isdecimal():
            raise UserError(f"--role {each}: write NAME=PRIORITY, as caption=80")
        roles[name] = int(priority)
    return roles


def _config(profile: str | None, concurrency: int | None, api_key_env: str | None) -> "Config":
    """The configuration of the current folder, with what was given here on top."""
    from phototagger import workflow
    from phototagger.cli.describing import check_key
    from phototagger.config import load

    given = {
        "describe": {"profile": profile},
        "servers": {"concurrency": concurrency, "api_key_env": api_key_env},
    }
    layer = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in given.items()
    }
    config = load(workflow.config_file(os.environ), os.environ, layer)
    check_key(config.servers.api_key_env)
    # Whatever this folder's runs use, the setup is asked where it says itself.
    return replace(config, servers=replace(config.servers, base_url=()))


def _log(slug: str) -> Path:
    return LOGS / f"{slug}-trial.log"


@contextmanager
def _samples(photos: Path | None) -> Iterator[Path]:
    """The folder of sample photos; the demo's are made for the occasion."""
    if photos is not None:
        yield photos
        return
    from phototagger.demo import make_demo_photos

    with tempfile.TemporaryDirectory(prefix="photo-tagger-samples-") as folder:
        make_demo_photos(Path(folder))
        yield Path(folder)


# --------------------------------------------------------------------------------------- output


def _print_table(slug: str, trial: "Trial") -> None:
    from rich.console import Console
    from rich.table import Table

    if trial.requests:
        table = Table(title=slug)
        for heading in ("stage", "answers", "rejected", "p50 s", "p95 s"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for name, done in trial.done.items():
            pair = [f"{value:.3f}" for value in trial.latency.get(name, ())] or ["-", "-"]
            table.add_row(name, f"{done}/{trial.photos}", str(trial.rejected[name].total()), *pair)
        Console().print(table)
    facts = {
        "server": trial.version,
        "started in": _with_unit(trial.start_seconds, "s"),
        "canary": trial.canary,
        "requests": trial.requests or None,
        "in flight": trial.concurrency,
        "photos/s": trial.photos_per_s,
        "tokens/s": trial.tokens_per_s,
    }
    print("; ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    for warning in trial.warnings:
        print(f"doubtful: {warning}")


def _with_unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"
