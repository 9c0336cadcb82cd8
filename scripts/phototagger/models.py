"""CLIP models by name: their cards, where their weights lie, how they get there.

A *card* (`registry/clip/<name>.json`, or `<models>/cards/<name>.json` for a user's own model) says
what a model is. A model that is ready to use has a folder `<models>/<name>/` with `weights.json`:
SHA-256, size, file and origin of its weights, recorded when they were fetched, built or first seen.

This module starts fast and needs neither torch nor open_clip; nothing here is downloaded except by
`fetch`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phototagger import CLONE
from phototagger.errors import UserError, one_of
from phototagger.files import sha256_file, write_atomic

REGISTRY = CLONE / "registry" / "clip"
SCHEMA = CLONE / "registry" / "clip.schema.json"

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Thresholds:
    """Score from which a label is a keyword, per `score.measure`."""

    cosine: float
    probability: float


@dataclass(frozen=True)
class Card:
    """What is known about a model; the keys are described in `registry/clip.schema.json`."""

    name: str
    purpose: str
    description: str
    licence: str
    architecture: str | None
    pretrained: str | None
    quick_gelu: bool
    source: dict[str, Any]
    sha256: str | None
    embedding_dim: int
    image_size: int
    logit_scale: float
    thresholds: Thresholds


@dataclass(frozen=True)
class Weights:
    """What `weights.json` records about the weights of a model."""

    sha256: str
    bytes: int
    file: str  # in the model's folder, or the absolute path of a local checkpoint
    source: str
    revision: str | None


def default_models_dir(configured: str | Path | None = None) -> Path:
    """`clip.models_dir` if set, else $PHOTO_TAGGER_MODELS, else `models` in the clone; absolute."""
    chosen = configured or os.environ.get("PHOTO_TAGGER_MODELS") or CLONE / "models"
    return Path(chosen).expanduser().absolute()


def model_folder(models_dir: Path, name: str) -> Path:
    """The folder of one model."""
    return models_dir / name


# ---------------------------------------------------------------------------------------- cards


def _card_files(models_dir: Path | None) -> dict[str, Path]:
    """Card file of every known name; a user's own card wins over the registry's."""
    own = (models_dir or default_models_dir()) / "cards"
    return {path.stem: path for folder in (REGISTRY, own) for path in sorted(folder.glob("*.json"))}


def card(name: str, models_dir: Path | None = None) -> Card:
    """The card of a model.

    Raises UserError for an unknown name (listing the known ones) and for an unusable card.
    """
    files = _card_files(models_dir)
    if name not in files:
        raise one_of("clip.model", name, [c.name for c in list_models(models_dir)])
    return _read_card(files[name])


def _read_card(path: Path) -> Card:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a model card ({error}); correct or remove it") from error
    if path.parent != REGISTRY:
        _validate(path, data)
    return Card(**(data | {"thresholds": Thresholds(**data["thresholds"])}))


def _validate(path: Path, data: Any) -> None:
    """Check a user's own card; those of the registry are checked by the tests."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    for error in validator.iter_errors(data):
        where = ".".join(str(part) for part in error.absolute_path) or "the card"
        raise UserError(f"{path}: {where}: {error.message}; see {SCHEMA}")
    if data["name"] != path.stem:
        raise UserError(f"{path}: name is {data['name']!r}; it must equal the file's name")


def list_models(models_dir: Path | None = None) -> list[Card]:
    """All known models, sorted by name, those that are only for tests left out."""
    cards = [_read_card(path) for path in _card_files(models_dir).values()]
    return sorted((c for c in cards if c.purpose != "test"), key=lambda c: c.name)


# -------------------------------------------------------------------------------------- weights


def _how_to_get(model: Card) -> str:
    if model.purpose == "demo":
        return "photo-tagger models build-demo"
    return f"photo-tagger models fetch {model.name}"


def weights(name: str, models_dir: Path) -> Weights:
    """What was recorded about a model's weights.

    Raises UserError, naming the command that mends it, if the model is not there or its weights
    file is missing or has another size than recorded.
    """
    model = card(name, models_dir)
    try:
        text = (model_folder(models_dir, name) / "weights.json").read_text("utf-8")
        found = Weights(**json.loads(text))
    except FileNotFoundError:
        raise UserError(
            f"clip.model: {name} is not in {models_dir}; run: {_how_to_get(model)}"
        ) from None
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{models_dir / name / 'weights.json'}: unreadable ({error}); run: {_how_to_get(model)}"
        ) from error
    path = weights_path(found, name, models_dir)
    if not path.is_file() or path.stat().st_size != found.bytes:
        raise UserError(f"{path}: missing or changed since recorded; run: {_how_to_get(model)}")
    return found


def weights_path(recorded: Weights, name: str, models_dir: Path) -> Path:
    """The weights file: in the model's folder, or the local checkpoint where it lies."""
    return model_folder(models_dir, name) / recorded.file


def weights_digest(name: str, models_dir: Path) -> str:
    """Digest (64 hexadecimal digits) of all that shapes a model's embeddings.

    Covers the recorded SHA-256 of the weights and what the card says about running them, so that a
    corrected card makes embeddings stale, too. Reads two small files; `verify` hashes the weights.

    Raises UserError as `weights` does.
    """
    model = card(name, models_dir)
    shaping = (weights(name, models_dir).sha256, model.architecture, model.quick_gelu)
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()


def verify(name: str, models_dir: Path) -> Weights:
    """Hash the weights and compare with what was recorded and with the card.

    Raises UserError if they differ.
    """
    recorded = weights(name, models_dir)
    model, path = card(name, models_dir), weights_path(recorded, name, models_dir)
    digest = sha256_file(path)
    if digest != recorded.sha256:
        raise UserError(
            f"{path}: SHA-256 is {digest}, recorded was {recorded.sha256}; "
            f"remove {model_folder(models_dir, name)} and run: {_how_to_get(model)}"
        )
    _check_digest(model, path, digest)
    return recorded


def _check_digest(model: Card, path: Path, digest: str) -> None:
    if model.sha256 and digest != model.sha256:
        raise UserError(
            f"{path}: SHA-256 is {digest}, the card of {model.name} says {model.sha256}; "
            "these are not the model's weights and are not used"
        )


def record(name: str, models_dir: Path, recorded: Weights) -> Weights:
    """Write `weights.json`, which makes the model usable."""
    path = model_folder(models_dir, name) / "weights.json"
    write_atomic(path, json.dumps(recorded.__dict__, indent=2) + "\n")
    return recorded


# ------------------------------------------------------------------------------ getting a model


def build_demo(models_dir: Path) -> Weights:
    """Build `demo-clip` from the installed weight packages, offline; see `demo_clip`."""
    from phototagger import demo_clip

    return demo_clip.build(models_dir)


def fetch(name: str, models_dir: Path, progress: Progress | None = None) -> Weights:
    """Make a model ready: fetch it from its hub, build it, or record a local checkpoint.

    The digest is compared with the card's (and the hub's own) before the model can be used.
    `progress` is called with bytes so far and in all.

    Raises UserError if the hub cannot be reached, the file is not there or a digest differs.
    """
    model = card(name, models_dir)
    kind = model.source["kind"]
    if kind == "build":
        from phototagger import demo_clip

        return demo_clip.build(models_dir, name)
    if kind == "file":
        return _record_checkpoint(model, models_dir)
    return _fetch_from_hub(model, models_dir, progress)


def _record_checkpoint(model: Card, models_dir: Path) -> Weights:
    path = (models_dir / Path(model.source["checkpoint"]).expanduser()).absolute()
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; correct source.checkpoint of {model.name}")
    digest = sha256_file(path)
    _check_digest(model, path, digest)
    size = path.stat().st_size
    return record(model.name, models_dir, Weights(digest, size, str(path), "local file", None))


def _fetch_from_hub(model: Card, models_dir: Path, progress: Progress | None) -> Weights:
    """Download into the model's folder; an interrupted download is continued by the next one."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repo, file, wanted = (model.source[key] for key in ("repo", "file", "revision"))
    folder = model_folder(models_dir, model.name)
    try:
        told = get_hf_file_metadata(hf_hub_url(repo, file, revision=wanted))
        revision = told.commit_hash or wanted
        path = Path(
            hf_hub_download(
                repo,
                file,
                revision=revision,
                local_dir=folder,
                tqdm_class=_reporting_bar(progress),
            )
        )
    except Exception as error:  # the hub client raises many kinds; all of them mean the same here
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"{model.name}: {repo} cannot be fetched from the hub ({reason}); "
            "check the network (and HF_HUB_OFFLINE), or fetch it on another machine "
            f"and copy its folder {folder}"
        ) from error
    digest = sha256_file(path)
    try:
        _check_digest(model, path, digest)
        if told.etag and len(told.etag) == 64 and told.etag != digest:
            raise UserError(f"{path}: SHA-256 is {digest}, the hub says {told.etag}; try again")
    except UserError:
        path.unlink(missing_ok=True)
        raise
    found = Weights(digest, path.stat().st_size, file, f"hub:{repo}", revision)
    return record(model.name, models_dir, found)


def _reporting_bar(progress: Progress | None) -> type | None:
    """The hub client's progress bar, drawing nothing and reporting to `progress` instead."""
    if progress is None:
        return None
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"disable": False, "file": _Nowhere()}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            progress(int(self.n), int(self.total or 0))
            return shown

    return Bar


class _Nowhere:
    """A stream that nobody reads."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
