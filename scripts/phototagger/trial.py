"""A setup tried from end to end: start, preflight, then captions, keywords and descriptions.

The questions about the sample photos go through the pipeline's own code (asking.py), so that what
the registry calls a success is what a run will do. A trial that fails is a result as well: the
entry keeps its reason.
"""

import asyncio
import json
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phototagger import commandline, hostinfo, plan, preflight, setups
from phototagger.asking import Asker, Outcome, Row, percentiles
from phototagger.chat import ChatClient, api_key_of, in_flight
from phototagger.config import Config
from phototagger.connection import Connected
from phototagger.errors import UserError
from phototagger.machine import Machine, Servers
from phototagger.models import default_models_dir
from phototagger.pictures import Pictures
from phototagger.problems import PhotoProblem
from phototagger.prompts import FIELDS
from phototagger.replies import Replies
from phototagger.server import Served, serve, stop_idle
from phototagger.setup_weights import weight_files, weights_sha256
from phototagger.setups import Setup
from phototagger.tasks import Task, plan_tasks
from phototagger.thumbnails import ThumbCache, make_thumb, read_photo

# A stage works if it has an answer for so many of the photos: some answers are rejected everywhere.
ENOUGH = 0.9

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """What came of it. `failure` is None if all three stages work."""

    photos: int = 0
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))
    rejected: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in FIELDS}
    )  # kinds of problems
    latency: dict[str, tuple[float, float]] = field(default_factory=dict)  # p50, p95 in seconds
    mean_latency: float | None = None  # seconds of a request
    seconds: float | None = None  # from the first question to the last answer
    tokens: int = 0  # that the model wrote
    requests: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    concurrency: int | None = None
    start_seconds: float | None = None  # None if the server was up, or is somebody else's
    canary: str | None = None  # passed, failed, not_checked; None if it did not come so far
    version: str | None = None  # of the server program
    served_model: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)  # what /v1/models (and /props) said
    warnings: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def photos_per_s(self) -> float | None:
        return self._per_second(min(self.done.values()))

    @property
    def tokens_per_s(self) -> float | None:
        return self._per_second(self.tokens)

    def _per_second(self, count: int) -> float | None:
        return round(count / self.seconds, 3) if self.seconds and count else None

    def as_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["latency"] = {
            name: {"p50_s": pair[0], "p95_s": pair[1]} for name, pair in self.latency.items()
        }
        return values | {"photos_per_s": self.photos_per_s, "tokens_per_s": self.tokens_per_s}


# ---------------------------------------------------------------------------------------- trying


def run(setup: Setup, photos: Path, config: Config, server_log: Path, limit: int) -> Trial:
    """Try a setup on the first `limit` photos (path order) below a folder.

    Nothing is taken from the cache. What is wrong with the setup or its server is in `failure`;
    UserError is raised for what is wrong with the question: no photos, an unknown prompt profile.
    """
    task = _task(setup, config)
    trial = Trial()
    with tempfile.TemporaryDirectory(prefix="photo-tagger-trial-") as folder:
        # The recorded line is to be run as it stands, and its server to be gone afterwards.
        servers = replace(config.servers, port=None, idle=0)
        samples = _Samples(photos, config, servers, Path(folder), limit)
        trial.photos = len(samples.rows)
        try:
            _try(trial, task, samples, server_log)
            stop_idle(servers)  # else the next trial finds a server that is about to leave
        except UserError as error:
            trial.failure = " ".join(str(error).split())  # log lines stand behind line breaks
    return trial


def _try(trial: Trial, task: Task, samples: "_Samples", server_log: Path) -> None:
    setup, servers = task.setup, samples.machine.servers
    stop_idle(servers)  # what a run left behind may have the port, and would make the start short
    begun = time.monotonic()
    with serve(setup, servers, log=server_log) as served:
        if served.own:
            trial.start_seconds = round(time.monotonic() - begun, 3)
        trial.version, trial.served_model, trial.info = served.version, served.model, served.info
        _preflight(trial, setup, served, servers)
        trial.concurrency = in_flight(setup, servers)
        begun = time.monotonic()
        outcome = asyncio.run(_ask(task, served, samples, trial.concurrency))
        trial.seconds = round(time.monotonic() - begun, 3)
    _count(trial, outcome)
    trial.failure = _shortfall(trial)


def _preflight(trial: Trial, setup: Setup, served: Served, servers: Servers) -> None:
    try:
        report = preflight.check(setup, served, servers, api_key=api_key_of(servers))
    except preflight.BlindError:
        trial.canary = "failed"
        raise
    trial.canary, trial.warnings = report.canary, report.warnings


async def _ask(task: Task, served: Served, samples: "_Samples", at_once: int) -> Outcome:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Connected]:
        servers = samples.machine.servers
        async with ChatClient(task.setup, served, servers, api_key_of(servers)) as client:
            yield Connected(served, client)

    pictures = samples.pictures(task.setup)
    asker = Asker(
        task,
        Replies(samples.machine.cache / "describe"),
        pictures,
        connect,
        image_recipe=pictures.recipe,
        workers=at_once,
    )
    async with asker:
        return await asker.ask(samples.rows, {})


def _count(trial: Trial, outcome: Outcome) -> None:
    trial.requests, trial.retries = outcome.requests, dict(sorted(outcome.retries.items()))
    answers = [answer for photo in outcome.answers for answer in photo]
    for name in FIELDS:
        found = [answer for answer in answers if answer.field == name]
        trial.done[name] = sum(answer.status == "done" for answer in found)
        trial.rejected[name] = Counter(a.kind for a in found if a.status == "failed")
        seconds = [answer.seconds for answer in found if answer.seconds is not None]
        if seconds:
            trial.latency[name] = percentiles(seconds)
    trial.tokens = sum(answer.completion_tokens or 0 for answer in answers)
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    if seconds and trial.requests:
        trial.mean_latency = round(sum(seconds) / trial.requests, 4)


def _shortfall(trial: Trial) -> str | None:
    """Why it is no success, None if it is one."""
    missing = [
        f"{name} of {trial.done[name]} of {trial.photos} photos ({kinds})"
        for name in FIELDS
        if trial.done[name] < ENOUGH * trial.photos
        for kinds in [_kinds(trial.rejected[name])]
    ]
    return f"usable answers are missing: {'; '.join(missing)}" if missing else None


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none asked"


def _task(setup: Setup, config: Config) -> Task:
    """What a run with this setup for everything would ask, photos that have a caption included."""
    nobody = {
        key: None for key in vars(config.describe) if key.endswith(("setup", "role", "model"))
    }
    # The setup may not be registered yet: the plan is made for its server, then it takes its place.
    describe = replace(config.describe, **nobody, overwrite=True, vocabulary=None, fields=FIELDS)
    describe = replace(describe, model=setup.model)
    if setup.purpose == "test":  # random weights: what they say is nonsense in any case
        describe = replace(describe, reject=())
    (task,) = plan_tasks(describe, replace(config.servers, base_url=(setup.base_url,))).values()
    return replace(task, setup=setup)


class _Samples:
    """The photos of a trial, as rows of a thumbs table with a cache of its own."""

    def __init__(self, photos: Path, config: Config, servers: Servers, cache: Path, limit: int):
        self._thumbs = config.thumbs
        roots = plan.resolve_roots([photos], Path.cwd())
        labels, models = Path(config.labels.path), Path(config.clip.models_dir or "models")
        self.machine = Machine(roots, cache, models, labels, "cpu", None, servers)
        options = plan.ScanOptions(config.photos.extensions, config.photos.recursive)
        self.rows: list[Row] = []
        for photo in plan.scan(roots, options):
            if len(self.rows) >= limit:
                break
            try:
                self.rows.append(self._row(photo.rel_path))
            except PhotoProblem as found:
                log.warning("%s: left out: %s", photo.rel_path, found.problem.message)
        if not self.rows:
            raise UserError(f"{photos}: no photo there can be read; name another with --photos")

    def _row(self, rel_path: str) -> dict[str, Any]:
        thumbs, path = self._thumbs, self.machine.roots.locate(rel_path)
        data, _ = read_photo(path, thumbs.max_bytes)
        size, quality = thumbs.size, thumbs.quality
        made = make_thumb(data, size=size, quality=quality, max_pixels=thumbs.max_pixels, path=path)
        kept = ThumbCache(self.machine.cache, size, quality)
        kept.put(made)
        thumb = kept.name(made.fields["sha256"])
        return {"rel_path": rel_path, **made.fields, "thumb": thumb, "status": "ok"}

    def pictures(self, setup: Setup) -> Pictures:
        size, quality = self._thumbs.size, self._thumbs.quality
        return Pictures(setup.image, self.machine, size=size, quality=quality)


# ----------------------------------------------------------------------------------------- entry


@dataclass(frozen=True)
class Wanted:
    """What a person says about a new setup; the rest of the entry is found out."""

    slug: str
    backend: str
    command: str | None
    model: str | None = None  # served name; None: as the command says
    base_url: str | None = None  # None: from the command's host and port
    repo_id: str | None = None
    revision: str | None = None
    format: str | None = None
    quantization: str | None = None
    health: str | None = None
    start_timeout: float = 600
    gpus: int = 0
    chat_template: str | None = None
    structured_output: str = "json_schema"
    token_field: str = "max_tokens"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    max_edge: int = 1024
    image_format: str = "jpeg"
    concurrency: int | None = None
    roles: Mapping[str, int] = field(default_factory=dict)
    purpose: str = "tagging"
    canary: bool = True
    notes: str = ""


def draft(wanted: Wanted) -> dict[str, Any]:
    """An entry that nobody has tried yet. Raises UserError for what does not fit together."""
    command = commandline.parse(wanted.command) if wanted.command else None
    model = wanted.model or (command and command.served_name())
    if not model:
        raise UserError("--model: the command does not say under which name it serves; name it")
    host, port = (command.host(), command.port()) if command else (None, None)
    if command and (host is None or port is None):
        missing = "address (--host)" if host is None else "port (--port)"
        raise UserError(
            f"--command: does not say its {missing}; add it, so that the entry says where it is"
        )
    if not command and not wanted.base_url:
        raise UserError("--command or --base-url: say how it is started, or where it runs")
    if wanted.base_url:
        setups.check_url(wanted.base_url)
    weights = _weights(wanted.command)
    entry = {
        "schema_version": setups.SCHEMA_VERSION,
        "migrated_from": None,
        "slug": wanted.slug,
        "purpose": wanted.purpose,
        "canary": wanted.canary,
        "model": {
            "repo_id": wanted.repo_id,
            "revision": wanted.revision,
            "weights_sha256": weights.sha256,
            "local_path": weights.shown,
            "served_model_name": model,
            "format": wanted.format or weights.format,
            "quantization": wanted.quantization,
            "vision": True,
        },
        "server": {
            "backend": wanted.backend,
            "command": wanted.command,
            "host": host,
            "port": port,
            "health": wanted.health,
            "start_timeout_s": wanted.start_timeout,
            "gpus": wanted.gpus,
            "flags": setups.command_flags(command) if command else {},
            "chat_template": wanted.chat_template,
        },
        "request": {
            "structured_output": wanted.structured_output,
            "token_field": wanted.token_field,
            "extra_body": dict(wanted.extra_body),
            "image": {
                "max_edge": wanted.max_edge,
                "max_bytes": None,
                "format": wanted.image_format,
                "quality": 90,
            },
            "concurrency": wanted.concurrency,
        },
        "tagger": {
            "command": None,
            "base_url": wanted.base_url or _local_url(str(host), port),
            "models": dict.fromkeys(FIELDS, model),
            "max_new_tokens": None,
            "temperature": None,
            "top_p": None,
        },
        "roles": dict(wanted.roles),
    }
    return {**entry, **_untried(), "notes": wanted.notes}


def again(entry: Mapping[str, Any], slug: str) -> dict[str, Any]:
    """The same setup under a new slug, to be tried once more on this machine.

    Raises UserError for an entry whose command cannot be understood.
    """
    copy = json.loads(json.dumps(entry))
    weights = _weights(copy["server"]["command"])
    if weights.sha256:
        copy["model"]["weights_sha256"] = weights.sha256
    copy["tagger"]["command"] = None
    return copy | {"slug": slug, "migrated_from": None} | _untried()


def verified(
    entry: Mapping[str, Any], trial: Trial, config: Config, commit: str, tagger_command: str
) -> dict[str, Any]:
    """The entry with what its trial showed; `tagger_command` is the line that ran it."""
    stages = {
        n: dict(zip(("p50_s", "p95_s"), pair, strict=True)) for n, pair in trial.latency.items()
    }
    describe = config.describe
    given = {
        "command": tagger_command and _portable(tagger_command),
        "max_new_tokens": describe.max_new_tokens,
        "temperature": describe.temperature,
        "top_p": describe.top_p,
    }
    return {
        **entry,
        "tagger": {**entry["tagger"], **given},
        "verification": {
            "status": "failed" if trial.failure else "success",
            "failure_reason": trial.failure and _portable(trial.failure.partition("; the last")[0]),
            "date_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "git_commit": commit,
            "images_processed": trial.photos if trial.requests else 0,
            "stages": dict(trial.done),
            "canary": trial.canary,
            "environment": hostinfo.environment(trial.version),
            "server_info": _portable(dict(trial.info)) or None,
        },
        "performance": {
            "avg_latency_s": trial.mean_latency,
            "stages": stages if len(stages) == len(FIELDS) else None,
            "tokens_per_s": trial.tokens_per_s,
            "photos_per_s": trial.photos_per_s,
            "concurrency": trial.concurrency,
            "start_s": trial.start_seconds,
        },
    }


def _untried() -> dict[str, Any]:
    return {
        "verification": {
            "status": "unverified",
            "failure_reason": None,
            "date_utc": None,
            "git_commit": None,
            "images_processed": 0,
            "stages": dict.fromkeys(FIELDS, 0),
            "canary": None,
            "environment": None,
        },
        "performance": {
            "avg_latency_s": None,
            "stages": None,
            "tokens_per_s": None,
            "photos_per_s": None,
            "concurrency": None,
        },
    }


def _local_url(host: str, port: int | None) -> str:
    """Where a server that binds to `host` is asked from the same machine."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


# --------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class _Weights:
    """The local files of a model that a command names."""

    shown: str | None = None  # the first as the command writes it
    sha256: str | None = None
    format: str = "safetensors"


def _weights(line: str | None) -> _Weights:
    if line is None:
        return _Weights()
    written = commandline.parse(line).argv
    files: list[Path] = []
    shown = None
    for word, expanded in zip(
        written, commandline.parse(line, setups.variables()).argv, strict=True
    ):
        found = weight_files(expanded)
        if found and shown is None:
            shown = _value(word)
        files += [path for path in found if path not in files]
    if not files:
        return _Weights(format="gguf" if _is_ollama(written) else "safetensors")
    return _Weights(shown, weights_sha256(files), files[0].suffix.removeprefix("."))


def _value(word: str) -> str:
    """The value of `--option=value`, else the word."""
    return re.sub(r"^--?[\w-]+=", "", word)


def _is_ollama(argv: Sequence[str]) -> bool:
    return bool(argv) and Path(argv[0]).name == "ollama"


def _portable(value: Any) -> Any:
    """What a server said about itself, with this machine's folders called as commands call them."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, str):
        return value
    names = {default_models_dir(): "$PHOTO_TAGGER_MODELS", Path.cwd(): ".", Path.home(): "~"}
    for folder, name in names.items():
        value = re.sub(rf"(?<![\w.]){re.escape(str(folder))}(?=/|\W|$)", lambda _, n=name: n, value)
    return value
