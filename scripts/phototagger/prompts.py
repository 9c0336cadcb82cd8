"""Prompt profiles: what a model is asked for each field of a photo (`config/prompts/*.yaml`).

A profile has a system message, a question and limits for each field. Both texts are Jinja
templates, rendered in a sandbox from strings only: a template can reach no object of this program.
The system message is the same for all photos and, unless a field has its own, for all fields: with
the picture it is one prefix that model servers keep for the questions that follow.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from phototagger import CLONE
from phototagger.errors import UserError, one_of

FIELDS = ("caption", "keywords", "description")  # in the order in which they are asked for
SCHEMA = CLONE / "config/schema/prompts.schema.json"
LANGUAGES = CLONE / "config/words/languages.txt"

_CONSTANT = ("language",)  # the same for every question of a run
_LIMITS = ("max_chars", "max_keywords")
_CONTEXT = ("keywords_given", "folder", "date", "place")  # None or [] unless configured
_LISTS = ("keywords", "keywords_given")

_NOTES = re.compile(r"\{\{-?\s*notes\s*-?\}\}")  # put in as text, before anything is rendered
_MOST_KEYWORDS = 100
_USUAL_KEYWORDS = 15  # default of describe.max_keywords
_KEYWORD_CHARS = 64  # what IPTC's Keywords field holds
_CONTEXT_CHARS = 1000  # of one value that goes into a template


@dataclass(frozen=True)
class Prompt:
    """One field of a profile."""

    field: str
    system: str  # a Jinja template of what is the same for all photos
    user: str  # a Jinja template, rendered in a sandbox
    schema: Mapping[str, Any]  # JSON Schema of the answer, an object with the field as a property
    max_tokens: int
    temperature: float
    top_p: float
    max_chars: int | None = None  # of a caption or description
    max_keywords: int | None = None
    max_words: int | None = None  # of one keyword

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that its templates use: what an answer depends on besides the picture."""
        return _variables(self.system) | _variables(self.user)


@dataclass(frozen=True)
class Profile:
    name: str
    description: str
    prompts: Mapping[str, Prompt]  # by field


def list_profiles() -> list[Profile]:
    """Every profile by name; those of the work directory hide the program's of the same name.

    Raises UserError for one that is not as documented.
    """
    return [_read(path, name) for name, path in sorted(_files().items())]


def load_profile(name: str) -> Profile:
    """The profile of that name, or the one in that file if the name ends in .yaml.

    Raises UserError, naming file, field, cause and way out, if it is unknown or not as documented.
    """
    if name.endswith(".yaml"):
        return _read(Path(name), Path(name).stem)
    files = _files()
    if name not in files:
        raise one_of("describe.profile", name, list(files))
    return _read(files[name], name)


def limit(prompt: Prompt, max_keywords: int) -> Prompt:
    """The prompt for at most so many keywords, or fewer where the profile says so.

    The schema of the answer gets the same bound: a server that enforces it stops there.
    """
    if prompt.field != "keywords":
        return prompt
    count = min(max_keywords, prompt.max_keywords or max_keywords)
    properties = prompt.schema["properties"]
    bounded = {**properties["keywords"], "maxItems": count}
    schema = {**prompt.schema, "properties": {**properties, "keywords": bounded}}
    return replace(prompt, max_keywords=count, schema=schema)


def render(prompt: Prompt, context: Mapping[str, Any]) -> tuple[str, str]:
    """System message and question for one photo.

    `context` may have: language (ISO 639-1 code; English if missing), max_keywords, max_chars (the
    prompt's own if missing), keywords_given, folder, date, place, caption, keywords; what is
    missing is None (an empty list for the two lists). Raises UserError if a template fails.
    """
    values = _values(prompt, context)
    constant = {name: values[name] for name in _CONSTANT}
    where = f"prompt for {prompt.field}"
    return (
        _render(prompt.system, constant, f"{where}: system"),
        _render(prompt.user, values, f"{where}: user"),
    )


def digest(prompt: Prompt) -> str:
    """64 hex digits over everything that shapes an answer: texts, schema, limits, sampling."""
    content = json.dumps(asdict(prompt), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def languages() -> Mapping[str, str]:
    """ISO 639-1 code -> English name of the languages that answers can be asked for."""
    lines = LANGUAGES.read_text("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {code: name.strip() for code, name in pairs}


def language_name(code: str) -> str:
    """English name of a language; raises UserError for a code that is not in the list."""
    if code not in languages():
        raise one_of("describe.language", code, list(languages()))
    return languages()[code]


# ------------------------------------------------------------------------------------- reading


def _files() -> dict[str, Path]:
    """Name -> file; the work directory's come last and win."""
    folders = (CLONE / "config/prompts", Path("config/prompts"))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _read(path: Path, name: str) -> Profile:
    content = _load_yaml(path)
    _validate(content, path)
    prompts = {}
    for field in FIELDS:
        if "system" not in {**content, **content[field]}:
            raise UserError(f"{path}: no 'system'; write one at the top level or for {field}")
        own = {"system": content.get("system"), **content[field]}
        own["user"] = _NOTES.sub(lambda _: content.get("notes", "").strip(), own["user"])
        prompts[field] = _prompt(field, own)
        _check(prompts[field], path)
    return Profile(name, " ".join(content["purpose"].split()), prompts)


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad character"
        hint = "mend that line; a text with braces, colons or quotes goes below a '|'"
        raise UserError(f"{path}{line}: not valid YAML ({problem}); {hint}") from error


@cache
def _schema() -> dict[str, Any]:
    return json.loads(SCHEMA.read_text("utf-8"))


def _validate(content: Any, path: Path) -> None:
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(_schema()).iter_errors(content)
    error = min(errors, key=lambda e: (len(e.absolute_path), e.message), default=None)
    if error is None:
        return
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties":
        valid = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in valid)
        raise one_of(f"{path}: {where}: key", unknown, valid)
    message = " ".join(error.message.split())
    if len(message) > 200:
        message = f"...{message[-200:]}"  # the value comes first, what is wrong with it last
    raise UserError(f"{path}: {where}: {message}; see docs/prompts.md")


def _prompt(field: str, content: Mapping[str, Any]) -> Prompt:
    schema = content.get("schema") or _answer_schema(field, content.get("max_chars"))
    return Prompt(
        field=field,
        system=content["system"],
        user=content["user"],
        schema=schema,
        max_tokens=content["max_tokens"],
        temperature=float(content.get("temperature", 0.2)),
        top_p=float(content.get("top_p", 0.9)),
        max_chars=content.get("max_chars"),
        max_keywords=content.get("max_keywords"),
        max_words=content.get("max_words", 4) if field == "keywords" else None,
    )


def _answer_schema(field: str, max_chars: int | None) -> dict[str, Any]:
    """An object with the field alone.

    A text may be half as long again as wanted: a server that enforces the schema cuts at the bound
    in mid-word, whereas a text that is only too long can be cut after a sentence.
    """
    if field == "keywords":
        item = {"type": "string", "minLength": 1, "maxLength": _KEYWORD_CHARS}
        value = {"type": "array", "items": item, "minItems": 1, "maxItems": _MOST_KEYWORDS}
    else:
        value = {"type": "string", "minLength": 1, "maxLength": (max_chars or 1000) * 3 // 2}
    return {
        "type": "object",
        "properties": {field: value},
        "required": [field],
        "additionalProperties": False,
    }


# ------------------------------------------------------------------------------------- checks


def _check(prompt: Prompt, path: Path) -> None:
    where = f"{path}: {prompt.field}"
    _check_schema(prompt, f"{where}.schema")
    earlier = FIELDS[: FIELDS.index(prompt.field)]
    _check_template(prompt.system, _CONSTANT, f"{where}.system")
    _check_template(prompt.user, (*_CONSTANT, *_LIMITS, *_CONTEXT, *earlier), f"{where}.user")
    full: dict[str, Any] = dict.fromkeys((*_CONTEXT, *FIELDS), "text")
    full |= {name: ["one", "two"] for name in _LISTS}
    for context in ({"max_keywords": 15}, {"max_keywords": 15, **full}):
        values = _values(prompt, context)
        constant = {name: values[name] for name in _CONSTANT}
        _render(prompt.system, constant, f"{where}.system")
        _render(prompt.user, values, f"{where}.user")


def _check_schema(prompt: Prompt, where: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(prompt.schema)
    except SchemaError as error:
        message = " ".join(error.message.split())
        raise UserError(f"{where}: no JSON Schema ({message}); mend it or leave it out") from error
    kind = "array" if prompt.field == "keywords" else "string"
    value = prompt.schema.get("properties", {}).get(prompt.field, {})
    required = prompt.field in prompt.schema.get("required", [])
    if value.get("type") != kind or not required:
        raise UserError(
            f"{where}: must be an object with a required property {prompt.field!r} of type {kind}; "
            "mend it or leave it out"
        )


def _check_template(source: str, valid: Iterable[str], where: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        used = _variables(source)
    except TemplateSyntaxError as error:
        message = " ".join(str(error.message).split())
        raise UserError(
            f"{where}: line {error.lineno} of the template: {message}; variables are written "
            "{{ caption }}, a literal {{ as {{ '{{' }}"
        ) from error
    valid = set(valid)
    for name in sorted(used - valid):
        if name in FIELDS and where.endswith("user"):
            order = ", ".join(FIELDS)
            raise UserError(
                f"{where}: {name!r} is not known yet; fields are asked for in the order {order}"
            )
        if name in (*_LIMITS, *_CONTEXT, *FIELDS) and where.endswith("system"):
            raise UserError(
                f"{where}: {name!r} differs between questions; use it in the user template"
            )
        raise one_of(f"{where}: variable", name, list(valid))
    _check_braces(source, where)


def _check_braces(source: str, where: str) -> None:
    """Single braces are no mistake to Jinja: the model would read them as they stand."""
    known = (*_CONSTANT, *_LIMITS, *_CONTEXT, *FIELDS)
    text = source.replace("{{", "").replace("}}", "")
    for name in known:
        if f"{{{name}}}" in text:
            raise UserError(f"{where}: {{{name}}} is not replaced; write {{{{ {name} }}}}")


# ------------------------------------------------------------------------------------ templates


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.globals.clear()  # no range, lipsum, cycler ...: texts need none of them
    return environment


@cache
def _template(source: str) -> Any:
    return _environment().from_string(source)


@cache
def _variables(source: str) -> frozenset[str]:
    from jinja2 import meta

    environment = _environment()
    environment.from_string(source)  # unknown filters are found when compiling, not when parsing
    return frozenset(meta.find_undeclared_variables(environment.parse(source)))


def _values(prompt: Prompt, context: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates of a prompt may see, as strings and lists of strings."""
    earlier = FIELDS[: FIELDS.index(prompt.field)]
    values = {name: context.get(name) for name in (*_CONTEXT, *earlier)}
    plain: dict[str, Any] = {
        name: [_plain(item) for item in value or ()] if name in _LISTS else _plain(value)
        for name, value in values.items()
    }
    if "keywords" in plain and values["keywords"] is None:
        plain["keywords"] = None
    max_chars = context.get("max_chars") or prompt.max_chars
    counts = [count for count in (context.get("max_keywords"), prompt.max_keywords) if count]
    max_keywords = min(counts, default=_USUAL_KEYWORDS)
    plain["language"] = language_name(context.get("language") or "en")
    plain["max_chars"] = str(max_chars) if max_chars else None
    plain["max_keywords"] = str(max_keywords)
    return plain


def _plain(value: Any) -> str | None:
    """On one line and not too long: a folder's name must not look like a part of the prompt."""
    if value is None:
        return None
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text[:_CONTEXT_CHARS]


def _render(source: str, values: Mapping[str, Any], where: str) -> str:
    try:
        text = _template(source).render(values).strip()
    except Exception as error:  # a template can fail with whatever its filters raise
        message = " ".join(str(error).split())
        raise UserError(f"{where}: {message}; mend the template, see docs/prompts.md") from error
    if not text:
        raise UserError(f"{where}: the text is empty for some photos; write what to ask")
    return text
