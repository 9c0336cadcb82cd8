"""Do the settings for captions, keywords and descriptions make sense? Asked before any start."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from phototagger.cli.options import option_name
from phototagger.config import Config, flatten, merge
from phototagger.errors import UserError
from phototagger.prompts import FIELDS

NAMING = ("setup", "role", "model")  # ways to name what answers one field
ADHOC = ("backend", "model", *(f"{field}_model" for field in FIELDS))  # without a setup

Layer = Mapping[str, Any]  # nested as in config.yaml, some of the keys


def outrank(layer: Layer) -> dict[str, Any]:
    """The command line's layer, with null for what a lower layer may say instead of it.

    A setup, a role and a model exclude each other, so that naming one takes back the others.
    Raises UserError if the layer contradicts itself.
    """
    given = {key for key, value in layer.get("describe", {}).items() if value is not None}
    adhoc = [key for key in ADHOC if key in given]
    if adhoc and "setup" in given:
        raise _contradiction(f"describe.{adhoc[0]}", "describe.setup")
    unsaid: set[str] = set()
    for field in FIELDS:
        ways = [f"{field}_{way}" for way in NAMING]
        named = [way for way in ways if way in given]
        if len(named) > 1:
            raise _contradiction(*(f"describe.{way}" for way in named[:2]))
        if named:
            unsaid |= {*ways} - {*named}
    if "setup" in given:
        unsaid |= {"model", *(f"{field}_model" for field in FIELDS)}
    elif adhoc:
        unsaid.add("setup")
    return merge({"describe": dict.fromkeys(sorted(unsaid))}, layer) if unsaid else dict(layer)


def is_on(config: Config) -> bool:
    """Whether a model is asked for anything."""
    return bool(config.servers.base_url) or any(_named(config))


def check(config: Config, layer: Layer) -> None:
    """Raise UserError, one line, for settings that cannot work.

    `layer` is what came from the command line, now or remembered: an option that would do nothing
    is an error, a key of the configuration file is not.
    """
    from phototagger import setups

    for url in config.servers.base_url:
        setups.check_url(url)
    _check_contradictions(config)
    _check_adhoc(config, layer)
    if not is_on(config):
        _check_no_option_is_idle(layer)
        return
    _check_fields(config, layer)
    _check_setups(config)
    _check_words(config)


def check_key(name: str | None, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError unless the variable is set that is to hold the API key.

    The message does not repeat the name: it could be the key itself.
    """
    if name is None or environment.get(name):
        return
    raise UserError(
        "servers.api_key_env (--api-key-env): no variable of that name is set; give the name of an "
        "environment variable that holds the key, as in OPENAI_API_KEY, and export it first"
    )


def nobody_asked(what: str) -> UserError:
    return UserError(
        f"{what}: no model is asked for anything; name one with --setup (see photo-tagger registry "
        "list), with a role (--caption-role ...), or with --base-url"
    )


def _named(config: Config) -> Iterator[str | None]:
    """Every setup and role that is named."""
    yield config.describe.setup
    for field in FIELDS:
        yield getattr(config.describe, f"{field}_setup")
        yield getattr(config.describe, f"{field}_role")


def _contradiction(one: str, other: str) -> UserError:
    return UserError(
        f"{one} ({option_name(one)}) and {other} ({option_name(other)}) exclude each other; "
        "keep one of them"
    )


def _check_contradictions(config: Config) -> None:
    values = vars(config.describe)
    for field in FIELDS:
        named = [f"describe.{field}_{way}" for way in NAMING if values[f"{field}_{way}"]]
        if len(named) > 1:
            raise _contradiction(*named[:2])
    for key in ADHOC:
        if key != "backend" and values[key] and config.describe.setup:
            raise _contradiction(f"describe.{key}", "describe.setup")


def _check_adhoc(config: Config, layer: Layer) -> None:
    """A model without a setup needs a server's URL."""
    if config.servers.base_url or config.describe.setup:
        return
    values = vars(config.describe)
    if "backend" not in layer.get("describe", {}):  # it has a default
        values = values | {"backend": None}
    for key in ADHOC:
        if values[key]:
            raise UserError(
                f"describe.{key} ({option_name(f'describe.{key}')}): which server? Name it with "
                "--base-url, or a setup that says how to start one with --setup"
            )


def _check_no_option_is_idle(layer: Layer) -> None:
    for key, value in flatten(layer):
        if key.partition(".")[0] in ("describe", "servers") and value is not None:
            raise nobody_asked(f"{key} ({option_name(key)})")


def _check_fields(config: Config, layer: Layer) -> None:
    """Somebody answers: every field that was named on the command line, else at least one."""
    values = vars(config.describe)
    if config.describe.setup or config.servers.base_url:
        return
    asked = config.describe.fields
    silent = [name for name in asked if not values[f"{name}_setup"] and not values[f"{name}_role"]]
    if silent and ("fields" in layer.get("describe", {}) or len(silent) == len(asked)):
        option = option_name(f"describe.{silent[0]}_setup")
        raise UserError(
            f"describe.fields (--fields): no setup is named for {' and '.join(silent)}; name one "
            f"with {option} or --setup"
        )


def _check_setups(config: Config) -> None:
    from phototagger import setups

    values = vars(config.describe)
    for slug in dict.fromkeys([values["setup"], *(values[f"{f}_setup"] for f in FIELDS)]):
        if slug:
            setups.load(slug)
    for role in dict.fromkeys(values[f"{field}_role"] for field in FIELDS):
        if role:
            setups.select(role)


def _check_words(config: Config) -> None:
    """Prompt profile, language and vocabulary are there."""
    from phototagger import labels, prompts
    from phototagger.workflow import find_labels

    describe = config.describe
    prompts.load_profile(describe.profile)
    prompts.language_name(describe.language)
    if describe.vocabulary:
        labels.load_pack(find_labels(describe.vocabulary, "describe.vocabulary"))
    elif describe.strict:
        raise UserError(
            "describe.strict (--strict): there is no vocabulary; name one with --vocabulary"
        )
