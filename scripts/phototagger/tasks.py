"""Which model setup is asked for which field of a photo, and with which words.

The plan writes one `Task` per setup to `results/plan/describe.json`; the jobs read it from there.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phototagger import prompts, setups
from phototagger.config import Describe
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.prompts import FIELDS, Profile, Prompt
from phototagger.setups import ImageLimits, Setup

PATH = Path("results/plan/describe.json")
VERDICTS = Path("results/plan/preflight")  # on servers, of this run; removed when one begins


@dataclass(frozen=True)
class Task:
    """What one setup is asked about each photo."""

    setup: Setup
    profile: str
    prompts: Mapping[str, Prompt]  # by field, in the order of FIELDS
    language: str
    context: tuple[str, ...]
    overwrite: bool
    seed: int
    reject: tuple[str, ...]
    max_keywords: int
    lowercase: bool
    plural: str
    strict: bool
    vocabulary: str | None  # path of the pack; what is in it is the digest's business
    vocabulary_digest: str | None

    @property
    def prompt_digest(self) -> str:
        """Of the texts, schemas and decoding parameters of all fields; 64 hex digits."""
        return sha256_json({name: prompts.digest(prompt) for name, prompt in self.prompts.items()})

    @property
    def recipe(self) -> str:
        """Digest of all that shapes the answers; 64 hex digits."""
        shaping = asdict(self)
        for key in ("setup", "prompts", "vocabulary"):
            del shaping[key]
        return sha256_json([self.setup.slug, self.setup.digest, self.prompt_digest, shaping])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Task":
        """The inverse of `as_dict`, also when that went through JSON."""
        setup = {**data["setup"], "image": ImageLimits(**data["setup"]["image"])}
        texts = {name: Prompt(**prompt) for name, prompt in data["prompts"].items()}
        lists = {key: tuple(data[key]) for key in ("context", "reject")}
        return cls(**{**data, **lists, "setup": Setup(**setup), "prompts": texts})


Tasks = Mapping[str, Task]  # by the setup's slug, in the order of FIELDS


def plan_tasks(
    describe: Describe, servers: Servers, vocabulary: tuple[Path, str] | None = None
) -> dict[str, Task]:
    """The tasks of a configuration; none when nothing names a model.

    `vocabulary` is the resolved path of `describe.vocabulary` and the digest of its content.

    Raises UserError for unknown setups, roles and profiles, and for settings that contradict.
    """
    for url in servers.base_url:
        setups.check_url(url)
    chosen = choose_setups(describe, servers)
    if not chosen:
        return {}
    profile = prompts.load_profile(describe.profile)
    by_slug: dict[str, tuple[Setup, dict[str, Prompt]]] = {}
    for name, setup in chosen.items():
        _, texts = by_slug.setdefault(setup.slug, (setup, {}))
        texts[name] = _prompt(profile, name, describe)
    tasks = {
        slug: Task(
            setup,
            profile.name,
            texts,
            *(describe.language, describe.context, describe.overwrite, describe.seed),
            *(describe.reject, describe.max_keywords, describe.lowercase, describe.plural),
            describe.strict and vocabulary is not None,
            *((str(vocabulary[0]), vocabulary[1]) if vocabulary else (None, None)),
        )
        for slug, (setup, texts) in by_slug.items()
    }
    _check_order(tasks)
    return tasks


def choose_setups(describe: Describe, servers: Servers) -> dict[str, Setup]:
    """The setup of each field that is asked for, in the order of FIELDS.

    A field's own setup or role comes before `describe.setup`; without either, `servers.base_url`
    with a model is a setup made up for the occasion.
    """
    named = {"model": describe.model}
    named |= {f"{name}_model": getattr(describe, f"{name}_model") for name in FIELDS}
    chosen: dict[str, Setup] = {}
    for name in FIELDS:
        own, role = getattr(describe, f"{name}_setup"), getattr(describe, f"{name}_role")
        if own and role:
            raise UserError(f"describe.{name}_setup, describe.{name}_role: name one of the two")
        if name not in describe.fields:
            continue
        if own or role or describe.setup:
            chosen[name] = setups.select(role) if role else setups.load(own or describe.setup)
        elif servers.base_url:
            chosen[name] = _adhoc(describe, servers, named[f"{name}_model"] or describe.model)
    given = [f"describe.{key}" for key, value in named.items() if value]
    if given and not servers.base_url:
        raise UserError(f"{given[0]}: needs servers.base_url; or name a setup with describe.setup")
    if given and chosen and not any(setup.adhoc for setup in chosen.values()):
        raise UserError(f"{given[0]}: the setup says which model it is; leave one of the two out")
    return chosen


def needs(prompt: Prompt) -> set[str]:
    """The fields whose answers a field's question quotes."""
    return {name for name in FIELDS if name in prompt.variables and name != prompt.field}


def quoted(tasks: Tasks, slug: str) -> list[str]:
    """The other setups whose answers a setup's questions quote."""
    wanted = set().union(*(needs(prompt) for prompt in tasks[slug].prompts.values()))
    return [
        other for other, task in tasks.items() if other != slug and wanted & task.prompts.keys()
    ]


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON; 64 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _prompt(profile: Profile, name: str, describe: Describe) -> Prompt:
    """A field's prompt with what the configuration says otherwise."""
    prompt = profile.prompts[name]
    given: dict[str, float] = {}
    if describe.max_new_tokens is not None:
        given["max_tokens"] = describe.max_new_tokens
    for key in ("temperature", "top_p"):
        if (value := getattr(describe, key)) is not None:
            given[key] = float(value)  # 0 and 0.0 are one question
    return prompts.limit(replace(prompt, **given), describe.max_keywords)


def _adhoc(describe: Describe, servers: Servers, model: str | None) -> Setup:
    return setups.adhoc(describe.backend, servers.base_url[0], model or _only_model(servers))


def _only_model(servers: Servers) -> str:
    """The model that a server lists, if it is the only one."""
    from phototagger import probe
    from phototagger.chat import api_key_of

    url = servers.base_url[0]
    deadline = time.monotonic() + servers.busy_budget
    with probe.client(url, api_key_of(servers)) as http:
        seen = probe.look(http, url, None)
        while seen.busy and not seen.models and time.monotonic() < deadline:
            time.sleep(seen.retry_after or 1)
            seen = probe.look(http, url, None)
    if not seen.models:
        raise UserError(
            f"servers.base_url: it does not say which model it serves: {seen.reason}; start the "
            "server, or name the model with describe.model"
        )
    return probe.choose(seen.models, None, url)["id"]


def _check_order(tasks: Tasks) -> None:
    """Raise UserError if two setups would have to wait for each other."""
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = {
            slug for slug in tasks if slug not in done and done.issuperset(quoted(tasks, slug))
        }
        if not ready:
            waiting = ", ".join(sorted(tasks.keys() - done))
            raise UserError(
                f"describe: the prompts of profile {next(iter(tasks.values())).profile} make the "
                f"setups {waiting} wait for each other; use one setup for these fields"
            )
        done |= ready
