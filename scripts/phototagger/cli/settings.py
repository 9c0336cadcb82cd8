"""The command line's layer of the configuration, and what a work directory remembers of it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phototagger import CLONE, buckets, names
from phototagger.cli import describing
from phototagger.config import Config, load, merge, parse_set, validate
from phototagger.errors import UserError
from phototagger.files import write_atomic

COMMAND = Path(
    "results/plan/command.json"
)  # settings of the last run, relative to the work directory
OVERRIDES = Path("results/plan/overrides.json")  # the same for the Snakefile
SNAKEFILE = CLONE / "Snakefile"

# What a person calls a stage, and the target that is all of it.
TARGETS = {
    "thumbs": "thumbs_all",
    "embed": "embed_all",
    "score": "score_all",
    "describe": "describe_all",
    "sidecars": "sidecars_all",
    "medoids": "results/folder_medoids.csv",
    "export": "results/tags.csv",
}
# Keys whose value is a path, or else a name that is known.
PATHS = (("labels", "path"), ("describe", "vocabulary"), ("describe", "profile"))

# Targets for which no model server is asked.
WITHOUT_SERVER = {TARGETS["thumbs"], TARGETS["embed"], TARGETS["score"]}


@dataclass
class Settings:
    """What was given on the command line; all paths absolute."""

    config: dict[str, Any] = field(default_factory=dict)  # nested, as in config.yaml
    roots: list[str] | None = None  # encoded (see `names`); None = as configured
    config_file: str | None = None
    profile: str | None = None  # see `profiles.canonical`; None = this machine

    def over(self, lower: "Settings") -> "Settings":
        """These settings on top of remembered ones."""
        return Settings(
            merge(lower.config, self.config),
            self.roots if self.roots is not None else lower.roots,
            self.config_file or lower.config_file,
            self.profile or lower.profile,
        )

    def environment(self, overrides: Path) -> dict[str, str]:
        """The environment in which Snakemake finds these settings; writes `overrides`."""
        content = {"config": self.config, "roots": self.roots}
        write_atomic(overrides, json.dumps(content, indent=1) + "\n")
        environment = dict(os.environ)
        environment["PHOTO_TAGGER_OVERRIDES"] = str(overrides.absolute())
        if self.config_file:
            environment["PHOTO_TAGGER_CONFIG"] = self.config_file
        return environment


def from_options(
    options: Mapping[str, Any],
    assignments: Sequence[str],
    photos: Sequence[str],
    config_file: Path | None,
) -> Settings:
    """Settings from options by dotted key (None = not given), then KEY=VALUE assignments.

    Relative paths are relative to the current folder.
    """
    config: dict[str, Any] = {}
    for key, value in options.items():
        if value is not None:
            section, name = key.split(".")
            config = merge(config, {section: {name: value}})
    for assignment in assignments:
        config = merge(config, parse_set(assignment))
    validate(config, "command line")
    config = describing.outrank(config)
    describing.check_key(config.get("servers", {}).get("api_key_env"))
    for section, name in PATHS:
        value = config.get(section, {}).get(name)
        if value and Path(value).exists() and (name != "profile" or value.endswith(".yaml")):
            config[section][name] = str(Path(value).absolute())
    if config_file and not config_file.is_file():
        raise UserError(f"{config_file}: no such file; name a YAML file with --config-file")
    roots = [
        names.encode(photo if buckets.is_bucket(photo) else os.path.abspath(photo))
        for photo in photos
    ]
    return Settings(config, roots or None, str(config_file.absolute()) if config_file else None)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments as photos (paths that exist) and targets (files below results/, rules, stages).

    Raises UserError for one that is neither.
    """
    photos, targets = [], []
    for argument in arguments:
        if argument.startswith("results/"):
            targets.append(argument)
        elif buckets.is_bucket(argument) or Path(argument).exists():
            photos.append(argument)
        elif argument in TARGETS or argument in rules():
            targets.append(TARGETS.get(argument, argument))
        else:
            raise UserError(
                f"{names.encode(argument)}: no such folder or photo, and no target; targets are "
                f"{', '.join(sorted({*TARGETS, *rules()}))} and files below results/"
            )
    return photos, targets


def rules() -> list[str]:
    """Rules that can be a target: those without a wildcard."""
    try:
        text = SNAKEFILE.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{SNAKEFILE}: cannot be read ({error}); reinstall photo-tagger") from error
    found = re.findall(r"^(?:rule|checkpoint)\s+(\w+)\s*:(.*?)(?=^\S|\Z)", text, re.M | re.S)
    return [name for name, body in found if "{wildcards.shard}" not in body]


def remembered() -> Settings | None:
    """The settings of the last run in the current (= work) directory."""
    try:
        content = json.loads(COMMAND.read_text("utf-8"))
        return Settings(
            content["config"], content["roots"], content["config_file"], content.get("profile")
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{COMMAND}: is not what a run left there ({error}); name PHOTOS again"
        ) from error


def remember(settings: Settings) -> None:
    content = {
        "config": settings.config,
        "roots": settings.roots,
        "config_file": settings.config_file,
        "profile": settings.profile,
    }
    write_atomic(COMMAND, json.dumps(content, indent=1) + "\n")


def read_config(settings: Settings, environment: Mapping[str, str]) -> Config:
    """The whole configuration as a run would have it; raises UserError as `config.load`."""
    from phototagger import workflow

    return load(workflow.config_file(environment), environment, settings.config)


def preflight(settings: Settings, environment: Mapping[str, str]) -> None:
    """Raise UserError for what is wrong with the settings, before anything is started.

    Covers the configuration, the CLIP model and its weights, the labels, missing roots, and who is
    asked for captions, keywords and descriptions.
    """
    from phototagger import labels, models, workflow
    from phototagger.plan import resolve_roots

    config = read_config(settings, environment)
    describing.check(config, settings.config)
    roots = [names.decode(root) for root in settings.roots or ()] or config.photos.roots
    resolve_roots(roots, Path.cwd())
    labels.load_pack(workflow.find_labels(config.labels.path))
    models.weights_digest(config.clip.model, models.default_models_dir(config.clip.models_dir))


def preflight_servers(
    config: Config, environment: Mapping[str, str], targets: Sequence[str]
) -> None:
    """Raise UserError for what a run to these targets lacks to ask a model server.

    Apart from `preflight`, because to look (`status`) needs no API key.
    """
    if describing.is_on(config):
        if not targets or set(targets) - WITHOUT_SERVER:
            describing.check_key(config.servers.api_key_env, environment)
    elif TARGETS["describe"] in targets:
        raise describing.nobody_asked("describe")
