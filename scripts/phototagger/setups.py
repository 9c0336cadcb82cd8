"""Model setups: how a known vision-language model is started and called (`registry/entries`).

A registry is a folder with `entries/<slug>.json` and `index.json`, which keeps the SHA-256 of every
entry: entries are written once and never edited. Two are searched: `registry` of the work directory
(or another one that is named), then that of the clone. Keys: registry/setup.schema.json.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from phototagger import CLONE, commandline
from phototagger.errors import UserError, one_of
from phototagger.files import write_if_changed
from phototagger.flocks import wait_for_lock
from phototagger.models import default_models_dir

REGISTRY = CLONE / "registry"
OWN = Path("registry")  # in the work directory
SCHEMA = REGISTRY / "setup.schema.json"
SCHEMA_VERSION = "2.0"
BACKENDS = ("openai", "vllm", "lmdeploy", "sglang", "llama.cpp", "ollama")
STAGES = ("caption", "keywords", "description")
MAX_SLUG = 100  # characters
_ENV_OF_PLACE = ("OLLAMA_HOST", "CUDA_VISIBLE_DEVICES")
_SLUG = re.compile(r"(?!adhoc-)[a-z0-9][a-z0-9._-]*")
_PASSWORD = re.compile(r"//[^/\s]*@")
# Keys of a request that the tagger fills in (dialects.py): a value in extra_body would be sent
# instead of the one that answers are recorded with. Those of _OPTIONAL may be taken out with null.
_OPTIONAL = {"temperature", "top_p", "seed"}
_TAKEN = _OPTIONAL | {"model", "messages", "stream", "max_tokens", "max_completion_tokens"}
_TAKEN |= {"response_format", "guided_json", "format", "num_predict"}

Entry = Mapping[str, Any]

log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds to wait for another writer of a registry


@dataclass(frozen=True)
class ImageLimits:
    """The picture a model is shown."""

    max_edge: int = 1024  # pixels
    max_bytes: int | None = None  # of the encoded picture
    format: str = "jpeg"  # jpeg or png
    quality: int = 90


@dataclass(frozen=True)
class Setup:
    """What is known about a model and its server; the keys are described in the schema."""

    slug: str  # "adhoc-..." for a server that was named on the command line
    purpose: str  # tagging, or test: random weights
    backend: str  # vllm, lmdeploy, sglang, llama.cpp, ollama or openai
    model: str | None  # served name; None: the one that the server lists (ad hoc only)
    command: str | None  # the line that starts the server; None: somebody else starts it
    base_url: str  # ends in /v1
    health: str | None = None  # path from the server's root; None: /v1/models only
    start_timeout: float = 600  # seconds
    gpus: int = 0
    structured_output: str = "json_schema"  # json_schema, guided_json, json_object, format or none
    token_field: str = "max_tokens"  # or max_completion_tokens
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # thinking off and the like
    image: ImageLimits = ImageLimits()
    concurrency: int | None = None
    canary: bool = True  # whether it has to prove that it sees pictures
    roles: Mapping[str, int] = field(default_factory=dict)  # role -> priority, the highest wins
    status: str = "unverified"  # success, failed or unverified
    adhoc: bool = False
    digest: str = ""  # SHA-256 of all that shapes an answer, 64 hex digits
    entry: Mapping[str, Any] = field(default_factory=dict)  # as in the file; {} if ad hoc


# ------------------------------------------------------------------------------------- reading


def folders(own: Path | None = None) -> list[Path]:
    """The registries that are searched, in order; `own` stands in for the work directory's."""
    first = Path(own) if own else OWN
    return [first, REGISTRY] if first.resolve() != REGISTRY else [REGISTRY]


def load(slug: str, own: Path | None = None) -> Setup:
    """The setup of that name.

    Raises UserError for an unknown name (listing those that work for tagging), and for an entry
    that does not fit the schema, is not in the index or was altered since it was recorded.
    """
    known = dict(entry_files(own))
    if slug not in known:
        raise one_of("setup", slug, list(known))
    return _load(known[slug])


def list_setups(test: bool = False, own: Path | None = None) -> list[Setup]:
    """All usable setups by slug; those for tests only if asked for. The others are logged."""
    setups, problems = survey(own)
    for problem in problems:
        log.warning("left out: %s", problem)
    return [setup for setup in setups if test or setup.purpose != "test"]


def survey(own: Path | None = None) -> tuple[list[Setup], list[str]]:
    """All usable setups by slug, and a line for each entry that `load` would refuse."""
    setups, problems = [], []
    for _, path in entry_files(own):
        try:
            setups.append(_load(path))
        except UserError as error:
            problems.append(str(error))
    return setups, list(dict.fromkeys(problems))  # a broken index is one problem, not one per entry


def select(role: str, own: Path | None = None) -> Setup:
    """The working setup (status success) with the highest priority for a role; ties by slug.

    Raises UserError if there is none, listing the roles for which there is one.
    """
    working = [setup for setup in list_setups(own=own) if setup.status == "success"]
    fitting = [setup for setup in working if role in setup.roles]
    if not fitting:
        roles = sorted({role for setup in working for role in setup.roles})
        raise UserError(
            f"role: no working setup is registered for {role!r}; "
            f"registered are: {', '.join(roles) or 'none'} (see photo-tagger registry list)"
        )
    return min(fitting, key=lambda setup: (-setup.roles[role], setup.slug))


def adhoc(backend: str, base_url: str, model: str | None) -> Setup:
    """A setup for a server that is named on the command line.

    Every backend understands `response_format: json_schema` at /v1, which is why none needs another
    default. Raises UserError for an unknown backend.
    """
    if backend not in BACKENDS:
        raise one_of("describe.backend", backend, list(BACKENDS))
    setup = Setup(
        slug=f"adhoc-{backend}{_suffix(model)}",
        purpose="tagging",
        backend=backend,
        model=model,
        command=None,
        base_url=base_url.rstrip("/"),
        adhoc=True,
    )
    shaping = {
        "model": {"served_model_name": model},
        "server": {"backend": backend, "command": None},
        "request": {
            "structured_output": setup.structured_output,
            "token_field": setup.token_field,
            "extra_body": {},
            "image": setup.image.__dict__,
        },
    }
    return replace(setup, digest=shaping_digest(shaping))


def check_url(url: str) -> None:
    """Raise UserError for what is not the base URL of a server."""
    if problem := _url_problem(url):
        raise UserError(f"servers.base_url (--base-url): {problem}")


def _url_problem(url: str) -> str | None:
    """What is wrong with a base URL, and how one is written; None if nothing is."""
    why = _why_no_url(url)
    if why is None:
        return None
    shown = _PASSWORD.sub("//", url).partition("?")[0]  # no password, no key
    shown = shown if shown.isprintable() else repr(shown)
    return f"{shown} {why}; write it as http://127.0.0.1:8000/v1"


def _why_no_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        return "is no URL"
    if "@" in parts.netloc:  # and it would be remembered
        return "had a name or password in it; that is for --api-key-env"
    if not url.isprintable():  # urlsplit drops line breaks
        return "is no URL"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        return "is no URL of a server"
    if parts.query or parts.fragment:
        return "goes on after its path"
    if not parts.path.strip("/"):
        return "has no path, mostly /v1"
    return None


def _suffix(model: str | None) -> str:
    """The model's name as a part of a file name; names that would fall together are told apart."""
    if not model:
        return ""
    plain = re.sub(r"[^a-z0-9._]+", "-", model.lower()).strip("-.")
    if plain != model:
        plain = f"{plain[:60]}-{hashlib.sha256(model.encode()).hexdigest()[:6]}".lstrip("-")
    return f"-{plain}"


def entry_path(folder: Path, slug: str) -> Path:
    """Where an entry lies in a registry."""
    return folder / "entries" / f"{slug}.json"


def check_slug(slug: str) -> None:
    """Raise UserError for what cannot be the name of an entry."""
    if len(slug) > MAX_SLUG or not _SLUG.fullmatch(slug):
        shown = slug if len(slug) <= MAX_SLUG else slug[:MAX_SLUG] + " ..."
        raise UserError(
            f"slug: {shown!r} cannot be one; write at most {MAX_SLUG} of a-z, 0-9, '.', '_' and "
            "'-', a letter or digit first and not adhoc-, as in qwen3-vl-8b_vllm"
        )


def from_entry(entry: Entry) -> Setup:
    """An entry that satisfies the schema, as a Setup."""
    server, request, tagger = entry["server"], entry["request"], entry["tagger"]
    return Setup(
        slug=entry["slug"],
        purpose=entry["purpose"],
        backend=server["backend"],
        model=entry["model"]["served_model_name"],
        command=server["command"],
        base_url=tagger["base_url"],
        health=server["health"],
        start_timeout=server["start_timeout_s"],
        gpus=server["gpus"],
        structured_output=request["structured_output"],
        token_field=request["token_field"],
        extra_body=request["extra_body"],
        image=ImageLimits(**request["image"]),
        concurrency=request["concurrency"],
        canary=entry["canary"],
        roles=entry["roles"],
        status=entry["verification"]["status"],
        digest=shaping_digest(entry),
        entry=entry,
    )


def shaping_digest(entry: Entry) -> str:
    """SHA-256 (hex) of what shapes an answer: model, backend, the command's options, request.

    Left out is what may differ between two runs that answer alike: host, port, folder of the
    weights, number of requests in flight, and all that was found out or noted about the setup.
    """
    model, server = dict(entry["model"]), entry["server"]
    if model.get("repo_id"):
        model.pop("local_path", None)
    request = {k: v for k, v in entry["request"].items() if k != "concurrency"}
    shaping = {"model": model, "backend": server["backend"], "request": request}
    if server["command"]:
        command = commandline.parse(server["command"])
        addresses = commandline.HOST + commandline.PORT
        shaping["options"] = {k: v for k, v in command.options().items() if k not in addresses}
        shaping["env"] = {k: v for k, v in command.env.items() if k not in _ENV_OF_PLACE}
    text = json.dumps(shaping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def entry_files(own: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Slug and file of every entry, by slug; the first registry wins."""
    found: dict[str, Path] = {}
    for folder in folders(own):
        for path in _files(folder):
            found.setdefault(path.stem, path)
    yield from sorted(found.items())


def _files(folder: Path) -> list[Path]:
    """The entries of one registry, by name; hidden files are editors' and file systems' own."""
    return sorted(path for path in folder.glob("entries/*.json") if path.name[0] != ".")


def _load(path: Path) -> Setup:
    for problem in _entry_problems(path):
        raise UserError(problem)
    for problem in _digest_problems(path, read_index(path.parent.parent)):
        raise UserError(problem)
    return from_entry(_read_json(path))


def _read_json(path: Path) -> Any:
    """Raises UserError for what is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); mend or remove it") from error


# --------------------------------------------------------------------------------------- index


def index_element(entry: Entry, sha256: str) -> dict[str, Any]:
    """What the index says of an entry; `sha256` is that of the file's bytes."""
    return {
        "slug": entry["slug"],
        "model_repo": entry["model"]["repo_id"],
        "served_model_name": entry["model"]["served_model_name"],
        "backend": entry["server"]["backend"],
        "status": entry["verification"]["status"],
        "date_utc": entry["verification"]["date_utc"],
        "sha256": sha256,
    }


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """The elements of a registry's index by slug; {} without an index.

    Raises UserError for an index that is not a list of such elements.
    """
    path = folder / "index.json"
    if not path.exists():
        return {}
    elements = _read_json(path)
    if not isinstance(elements, list) or not all(
        isinstance(element, dict) and isinstance(element.get("slug"), str) for element in elements
    ):
        raise UserError(f"{path}: is not a list of elements with a slug; restore the committed one")
    return {element["slug"]: element for element in elements}


def write_entry(entry: Entry, folder: Path) -> Path:
    """Record an entry in a registry: its file, then its element of the index.

    Writers of one registry wait for each other, so that nothing is lost between two of them.
    Raises UserError if an entry of that name exists (entries are never edited) or if something
    about it is wrong, OSError if it cannot be written.
    """
    check_slug(entry["slug"])
    path = entry_path(folder, entry["slug"])
    for problem in content_problems(entry, path):
        raise UserError(problem)
    content = (json.dumps(entry, indent=2, ensure_ascii=False) + "\n").encode()
    with _locked(folder):
        check_free(entry["slug"], folder)
        index = read_index(folder)
        index[path.stem] = index_element(entry, hashlib.sha256(content).hexdigest())
        _create(path, content)
        try:
            _write_index(folder, index)
        except OSError:
            path.unlink()  # made here a moment ago: unlisted, it would be of no use
            raise
    return path


def check_free(slug: str, folder: Path) -> None:
    """Raise UserError if a registry has, or had, an entry of that name."""
    path = entry_path(folder, slug)
    if path.exists():
        raise _taken(path)
    if slug in read_index(folder):
        raise UserError(
            f"{path}: is missing, though {folder / 'index.json'} lists it; restore it, "
            f"or choose another name, as {slug}-2"
        )


def _taken(path: Path) -> UserError:
    return UserError(
        f"{path}: exists, and entries are never edited; choose another slug, as {path.stem}-2"
    )


def check_writable(folder: Path) -> None:
    """Raise UserError for a folder in which no entry can be recorded; writes nothing."""
    entries = folder / "entries"
    there = next(path for path in (entries, *entries.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there}: is no folder; name another one for your registry (--registry)")
    for path in (there, folder, folder / "index.json", folder / ".lock"):
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"{path}: cannot be written; allow it, or name another --registry")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes to a registry; the operating system frees it if one dies.

    Where there are no locks, or none that other computers see, no entry is lost (`_create` never
    replaces one), and `reindex` adds what is missing in the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        if not wait_for_lock(file.fileno(), _PATIENCE):
            log.warning(
                "%s: cannot be locked; should an entry be missing in its index, run: "
                "photo-tagger registry index",
                folder,
            )
        yield


def _create(path: Path, content: bytes) -> None:
    """Write a new file in one step; never an existing one, whoever else is writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise
            with path.open("xb") as file:  # a file system without hard links (exFAT)
                file.write(content)
    except FileExistsError:
        raise _taken(path) from None
    finally:
        temporary.unlink(missing_ok=True)


def reindex(folder: Path) -> list[str]:
    """Add entries that are not in the index yet; returns their slugs.

    Raises UserError, changing nothing, if a new entry is wrong or a recorded one was altered.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; name your registry with --registry")
    check_writable(folder)
    with _locked(folder):
        return _reindex(folder)


def _reindex(folder: Path) -> list[str]:
    index = read_index(folder)
    added = []
    for path in _files(folder):
        problems = list(_entry_problems(path))
        if path.stem in index:
            problems += _digest_problems(path, index)
        for problem in problems:
            raise UserError(problem)
        if path.stem not in index:
            index[path.stem] = index_element(_read_json(path), _sha256(path))
            added.append(path.stem)
    _write_index(folder, index)
    return added


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    text = json.dumps([index[slug] for slug in sorted(index)], indent=2, ensure_ascii=False) + "\n"
    write_if_changed(folder / "index.json", text)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------ checking


def validate(paths: bool = False, own: Path | None = None) -> list[str]:
    """Everything that is wrong with the registries, a line each; [] if nothing is.

    With `paths`, what the entries say lies on this machine has to be there as well.
    """
    problems = []
    for folder in folders(own):
        if folder.is_dir():
            problems += _folder_problems(folder, paths)
    return problems


def _folder_problems(folder: Path, paths: bool) -> Iterator[str]:
    index_path = folder / "index.json"
    try:
        index = read_index(folder)
        listed = [element["slug"] for element in _read_json(index_path)] if index else []
    except UserError as error:
        yield str(error)
        return
    files = {path.stem: path for path in _files(folder)}
    for path in files.values():
        wrong = list(_entry_problems(path))
        yield from wrong or _digest_problems(path, index)
        if not wrong:
            yield from _element_problems(_read_json(path), path, index, index_path)
        if not wrong and paths:
            yield from path_problems(_read_json(path), path)
    for slug in sorted(index.keys() - files.keys()):
        yield f"{index_path}: {slug}: its file entries/{slug}.json is missing; restore it"
    if listed != sorted(set(listed)):
        yield f"{index_path}: slugs are not sorted or stand twice; restore the committed one"


def _digest_problems(path: Path, index: Mapping[str, Any]) -> Iterator[str]:
    element = index.get(path.stem)
    index_path = path.parent.parent / "index.json"
    if element is None:
        yield f"{index_path}: {path.stem}: is not listed; run: photo-tagger registry index"
    elif element.get("sha256") != _sha256(path):
        yield (
            f"{path}: was altered after it was recorded (SHA-256 differs from index.json); "
            "restore it, and record a changed setup under another slug"
        )


def _element_problems(
    entry: Entry, path: Path, index: Mapping[str, Any], index_path: Path
) -> Iterator[str]:
    element = index.get(path.stem, {})
    wanted = index_element(entry, element.get("sha256", ""))
    if not element or wanted == element:
        return
    for key in sorted(wanted.keys() | element.keys()):
        if wanted.get(key) != element.get(key):
            yield (
                f"{index_path}: {path.stem}: {key} is {element.get(key)!r}, "
                f"the entry says {wanted.get(key)!r}; restore the committed one"
            )


def _entry_problems(path: Path) -> Iterable[str]:
    try:
        entry = _read_json(path)
    except UserError as error:
        return [str(error)]
    return content_problems(entry, path)


def content_problems(entry: Any, path: Path) -> list[str]:
    """What is wrong with an entry by itself: schema first, then whether its parts agree."""
    endless = [f"{path}: {key}: is not a finite number; write one" for key in _not_finite(entry)]
    return (
        endless
        or list(_schema_problems(entry, path))
        or [f"{path}: {problem}" for problem in _disagreements(entry, path.stem)]
    )


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Keys of numbers that JSON cannot hold, though Python reads (1e999) and writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key or "the entry"
    parts = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, list):
        parts = enumerate(value)
    for name, part in parts:
        yield from _not_finite(part, f"{key}.{name}".lstrip("."))


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))


def _schema_problems(entry: Any, path: Path) -> Iterator[str]:
    errors = sorted(_validator().iter_errors(entry), key=lambda error: list(map(str, error.path)))
    for error in errors:
        where = ".".join(map(str, error.absolute_path)) or "the entry"
        if error.validator == "additionalProperties":
            unknown = sorted(set(error.instance) - set(error.schema["properties"]))
            valid = ", ".join(sorted(error.schema["properties"]))
            yield f"{path}: {where}: unknown key {unknown[0]!r}; valid are: {valid}"
            continue
        told = error.schema.get("description") if isinstance(error.schema, dict) else None
        message = _PASSWORD.sub("//", error.message)
        message = message if len(message) < 200 else message[:200] + " ..."
        yield f"{path}: {where}: {message}; {told or 'see registry/setup.schema.json'}"


def _disagreements(entry: Entry, stem: str) -> Iterator[str]:
    """Values that say different things about the same."""
    model, server, tagger = entry["model"], entry["server"], entry["tagger"]
    served = model["served_model_name"]
    if entry["slug"] != stem:
        yield f"slug: is {entry['slug']!r}; it must equal the file's name {stem!r}: rename one"
    for stage in STAGES:
        if tagger["models"][stage] != served:
            yield (
                f"tagger.models.{stage}: is {tagger['models'][stage]!r}, "
                f"model.served_model_name is {served!r}; make them equal"
            )
    yield from _count_problems(entry["verification"])
    yield from _body_problems(entry["request"]["extra_body"])
    if wrong := _url_problem(tagger["base_url"]):
        yield f"tagger.base_url: {wrong}"
        return
    if server["command"] is None:
        return
    try:
        command = commandline.parse(server["command"])
    except UserError as error:
        yield f"server.{error}"
        return
    if secrets := command.secrets():  # first: what disagrees is shown with its value
        yield (
            f"server.command: has a secret in {', '.join(secrets)}; "
            "keep it in the environment and write $NAME_OF_THE_VARIABLE"
        )
        return
    yield from _address_problems(command, server, tagger)
    named = command.served_name()
    if named != served and not (named is None and server["backend"] == "ollama"):
        yield (
            f"model.served_model_name: is {served!r}, the command serves it as {named!r}; "
            "make them equal"
        )
    yield from _flag_problems(command, server["flags"])


def _count_problems(verification: Entry) -> Iterator[str]:
    photos = verification["images_processed"]
    for stage, count in verification["stages"].items():
        if count > photos:
            yield (
                f"verification.stages.{stage}: is {count}, verification.images_processed is "
                f"{photos}; record what really came back"
            )


def _body_problems(body: Entry) -> Iterator[str]:
    options = body.get("options")  # Ollama's own API
    nested = {f"options.{k}": v for k, v in options.items()} if isinstance(options, dict) else {}
    for key, value in {**body, **nested}.items():
        name = key.removeprefix("options.")
        if name in _TAKEN and not (name in _OPTIONAL and value is None):
            yield (
                f"request.extra_body.{key}: is set by the tagger itself; remove it "
                "(tokens, temperature and top_p: settings of `describe` or the prompt profile)"
            )


def command_flags(command: commandline.Command) -> dict[str, Any]:
    """What `server.flags` of an entry says: options other than address, model and served name."""
    elsewhere = (*commandline.HOST, *commandline.PORT, *commandline.SERVED, "model", "model-path")
    return {k: v for k, v in command.options().items() if k not in elsewhere}


def _address_problems(command: commandline.Command, server: Entry, tagger: Entry) -> Iterator[str]:
    url = urlsplit(tagger["base_url"])
    port, host = command.port(), command.host()
    if server["port"] != port:
        yield f"server.port: is {server['port']}, the command says {port}; make them equal"
    if server["host"] != host:
        yield f"server.host: is {server['host']!r}, the command says {host!r}; make them equal"
    if url.port != port:
        yield f"tagger.base_url: has port {url.port}, the command says {port}; make them equal"
    if not _reaches(url.hostname, host):
        yield (
            f"tagger.base_url: {url.hostname} is not where the server listens "
            f"(the command says {host}); make them agree"
        )


def _reaches(asked: str | None, bound: str | None) -> bool:
    """Whether a server bound to one address can be asked at the other on the same machine."""
    loopback = ("localhost", "127.0.0.1", "::1")
    return asked == bound or (asked in loopback and bound in (*loopback, "0.0.0.0", "::"))


def _flag_problems(command: commandline.Command, flags: Entry) -> Iterator[str]:
    said = command_flags(command)
    for name in sorted(said.keys() | flags.keys()):
        if name not in flags:
            yield f"server.flags: lacks {name}, which the command has ({said[name]!r}); add it"
        elif name not in said:
            yield f"server.flags.{name}: the command has no --{name}; remove it or add the option"
        elif said[name] != flags[name] or isinstance(said[name], bool) != isinstance(
            flags[name], bool
        ):
            yield (
                f"server.flags.{name}: is {flags[name]!r}, the command says {said[name]!r}; "
                "make them equal"
            )


# ----------------------------------------------------------------------------------- local paths


def variables(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a recorded line may refer to: the environment, and where the models are."""
    env = os.environ if env is None else env
    return {**env, "PHOTO_TAGGER_MODELS": str(default_models_dir())}


def path_problems(entry: Entry, path: Path) -> Iterator[str]:
    """Files that an entry refers to and that are not on this machine."""
    known = variables()
    missing: set[Path] = set()
    for key, word in _path_words(entry):
        local = Template(word).safe_substitute(known)
        if local.startswith("~/"):
            local = known.get("HOME", "~") + local[1:]
        place = Path(local)
        if place.exists() or missing & {place, *place.parents}:
            continue
        missing.add(place)
        yield f"{path}: {key}: {local} does not exist; put it there, or record another setup"


def _path_words(entry: Entry) -> Iterator[tuple[str, str]]:
    """Keys and the paths they hold."""
    server = entry["server"]
    if entry["model"]["local_path"]:
        yield "model.local_path", entry["model"]["local_path"]
    if server["chat_template"]:
        yield "server.chat_template", server["chat_template"]
    if server["command"]:
        for word in commandline.parse(server["command"]).argv:
            value = word.partition("=")[2] if word.startswith("--") else word
            if value.startswith(("/", "~/", "./", "../", "$")) and "/" in value:
                yield "server.command", value
