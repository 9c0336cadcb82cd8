"""The configuration: defaults < file < environment < command line, checked against its schema.

The schema (config/schema/config.schema.json) is the one list of keys, their meaning and defaults.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from phototagger import CLONE
from phototagger.errors import UserError, one_of
from phototagger.machine import Servers

SCHEMA = CLONE / "config/schema/config.schema.json"
ENVIRONMENT = "PHOTO_TAGGER__"


@dataclass(frozen=True)
class Photos:
    roots: tuple[str, ...]
    recursive: bool
    extensions: tuple[str, ...]
    exclude: tuple[str, ...]
    max_images: int | None


@dataclass(frozen=True)
class Plan:
    shard_size: int


@dataclass(frozen=True)
class Thumbs:
    size: int
    quality: int
    max_pixels: int
    max_bytes: int


@dataclass(frozen=True)
class Clip:
    model: str
    device: str
    batch_size: int | None
    models_dir: str | None
    gpu_model: str | None


@dataclass(frozen=True)
class Labels:
    path: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    topk: int
    measure: str
    threshold: float | None


@dataclass(frozen=True)
class Describe:
    setup: str | None
    caption_setup: str | None
    keywords_setup: str | None
    description_setup: str | None
    caption_role: str | None
    keywords_role: str | None
    description_role: str | None
    backend: str
    model: str | None
    caption_model: str | None
    keywords_model: str | None
    description_model: str | None
    fields: tuple[str, ...]
    profile: str
    language: str
    context: tuple[str, ...]
    overwrite: bool
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int
    max_keywords: int
    lowercase: bool
    plural: str
    vocabulary: str | None
    strict: bool
    reject: tuple[str, ...]


@dataclass(frozen=True)
class Medoids:
    tag_aware: bool
    min_size: int


@dataclass(frozen=True)
class Tagged:
    fields: tuple[str, ...]
    by: tuple[str, ...]


@dataclass(frozen=True)
class Metadata:
    enabled: bool
    mode: str
    naming: str
    fields: Mapping[str, bool]
    carry_over: tuple[str, ...]
    iptc: str


@dataclass(frozen=True)
class Report:
    max_photos: int
    per_folder: int


@dataclass(frozen=True)
class Config:
    """The whole configuration, validated; meanings of the keys are in the schema."""

    photos: Photos
    plan: Plan
    cache: str
    scratch: str | None
    thumbs: Thumbs
    clip: Clip
    labels: Labels
    score: Score
    describe: Describe
    servers: Servers
    medoids: Medoids
    tagged: Tagged
    metadata: Metadata
    report: Report

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


SECTIONS = {
    "photos": Photos,
    "plan": Plan,
    "thumbs": Thumbs,
    "clip": Clip,
    "labels": Labels,
    "score": Score,
    "describe": Describe,
    "servers": Servers,
    "medoids": Medoids,
    "tagged": Tagged,
    "metadata": Metadata,
    "report": Report,
}


def load(file: Path | None, env: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """Merge the four layers.

    Raises UserError naming the layer and the key, and listing what is valid.
    """
    merged = defaults(schema())
    layers = [
        (str(file), read_file(file) if file else {}),
        ("environment", read_environment(env)),
        ("command line", dict(overrides)),
    ]
    for source, layer in layers:
        validate(layer, source)
        merged = merge(merged, layer)
    values = {
        name: SECTIONS[name](**_frozen(value)) if name in SECTIONS else value
        for name, value in merged.items()
    }
    return Config(**values)


def parse_set(assignment: str) -> dict[str, Any]:
    """`score.topk=7` as `{"score": {"topk": 7}}`; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment}: write KEY=VALUE, as in score.topk=7")
    return _nested(key.split("."), _yaml(value, f"--set {key}"))


@cache
def schema() -> dict[str, Any]:
    return json.loads(SCHEMA.read_text("utf-8"))


def defaults(part: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every key of an object schema."""
    return {
        key: defaults(sub) if "properties" in sub else sub["default"]
        for key, sub in part["properties"].items()
    }


def read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a YAML file") from error
    content = _yaml(text, str(path)) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a mapping of keys to values; see config/config.yaml")
    return content


def read_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """`PHOTO_TAGGER__SECTION__KEY=value` as a nested mapping; values are read as YAML."""
    layer: dict[str, Any] = {}
    for name, value in sorted(env.items()):
        if name.startswith(ENVIRONMENT):
            keys = name.removeprefix(ENVIRONMENT).lower().split("__")
            layer = merge(layer, _nested(keys, _yaml(value, name)))
    return layer


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, section by section; lists are replaced, not joined."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value
    return merged


def validate(layer: Mapping[str, Any], source: str) -> None:
    """Raise UserError for the first key that is unknown or has a wrong value."""
    from jsonschema import Draft202012Validator

    for error in sorted(Draft202012Validator(schema()).iter_errors(layer), key=_depth):
        where = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties":
            unknown = next(k for k in error.instance if k not in error.schema["properties"])
            raise one_of(
                f"{source}: {where or 'top level'}: key", unknown, list(error.schema["properties"])
            )
        raise UserError(f"{source}: {where}: {error.message}{_hint(where)}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _depth(error: Any) -> tuple[int, str]:
    return len(error.absolute_path), error.message


def _hint(where: str) -> str:
    part: Any = schema()
    for key in where.split("."):
        part = part.get("properties", {}).get(key, {})
    return f" ({part['description']})" if "description" in part else ""


def _frozen(section: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise UserError(f"{source}: is not valid YAML: {line}") from error
