"""Chat completions on the wire: what a question is sent as, and what the answers mean.

The OpenAI form is spoken by all servers; they differ in how structured output is asked for and in
what an error looks like. Ollama's own form (`/api/chat`) is there for models whose options its
OpenAI form leaves out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phototagger.setups import Setup

if TYPE_CHECKING:
    from phototagger.chat import Question

SEEDS = 2**31  # llama.cpp keeps 32 bits of a seed, and takes 2^32 - 1 for "any"
MAX_MESSAGE = 200  # characters of an error that are shown
# Strict mode of OpenAI's service refuses or ignores these.
_LIMITS = {"minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "pattern", "format"}
_LIMITS |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_LIMITS |= {"minProperties", "maxProperties"}
_REASONING = re.compile(r"\s*<(think|thinking|thought|reasoning)>(.*?)(</\1>|\Z)", re.S)
_REASONING_END = re.compile(r".*</(?:think|thinking|thought|reasoning)>", re.S)
_TITLE = re.compile(r"<title>(.*?)</title>", re.S | re.I)
_TAG = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.S | re.I)
_TOLD = "\n\nAnswer with one JSON object and nothing else. It satisfies this JSON Schema:\n"


class UnreadableError(Exception):
    """A body of status 200 that is no answer; the two arguments are a reason and a message."""


@dataclass(frozen=True)
class Completion:
    """One answer as the server gave it, reasoning left out."""

    text: str
    finish_reason: str
    model: str | None
    fingerprint: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    refusal: str | None


# ------------------------------------------------------------------------------------- asking


def url(setup: Setup, base_url: str) -> str:
    """Where questions are posted; `base_url` ends in /v1."""
    base_url = base_url.rstrip("/")
    if setup.structured_output == "format":
        return base_url.removesuffix("/v1") + "/api/chat"
    return base_url + "/chat/completions"


def payload(setup: Setup, model: str, question: "Question") -> dict[str, Any]:
    """The body of the request in the setup's dialect.

    `setup.extra_body` is merged in last; a null there takes a field out (temperature, for models
    that refuse it).
    """
    if setup.structured_output == "format":
        return _merge(_native(model, question), setup.extra_body)
    body = {
        "model": model,
        "messages": _messages(setup, question),
        setup.token_field: question.max_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
        "seed": question.seed % SEEDS,
        "stream": False,
        **_structured(setup, question.schema),
    }
    return _merge(body, setup.extra_body)


def _messages(setup: Setup, question: "Question") -> list[dict[str, Any]]:
    """System text, then the picture before the question: so all questions share a prefix."""
    user: Any = question.user
    if question.schema is not None and setup.structured_output in ("json_object", "none"):
        user += _TOLD + json.dumps(question.schema)
    if question.image is not None:
        picture = {"type": "image_url", "image_url": {"url": question.image}}
        user = [picture, {"type": "text", "text": user}]
    system = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": user}]


def _structured(setup: Setup, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if schema is None:
        return {}
    if setup.structured_output == "json_schema":
        sent = strict(schema) if setup.backend == "openai" else schema
        wanted = {"name": "answer", "strict": True, "schema": sent}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}
    if setup.structured_output == "json_object":
        return {"response_format": {"type": "json_object", "schema": schema}}
    if setup.structured_output == "guided_json":
        return {"guided_json": schema}
    return {}


def _native(model: str, question: "Question") -> dict[str, Any]:
    """Ollama's own chat request (docs/api.md of ollama: generate a chat completion)."""
    user: dict[str, Any] = {"role": "user", "content": question.user}
    if question.image is not None:
        user["images"] = [question.image.split(",", 1)[-1]]
    system = [{"role": "system", "content": question.system}] if question.system else []
    return {
        "model": model,
        "messages": [*system, user],
        "stream": False,
        **({} if question.schema is None else {"format": question.schema}),
        "options": {
            "num_predict": question.max_tokens,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "seed": question.seed % SEEDS,
        },
    }


def strict(schema: Any) -> Any:
    """A schema in the subset that OpenAI's strict mode takes: no limits, everything required.

    The answer is validated against the whole schema afterwards.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: strict(part) for key, part in schema.items() if key not in _LIMITS}
    if isinstance(names := schema.get("properties"), Mapping):
        kept["properties"] = {name: strict(part) for name, part in names.items()}
        kept |= {"required": list(names), "additionalProperties": False}
    return kept


def _merge(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in extra.items():
        if value is None:
            body.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(body.get(key), dict):
            body[key] = _merge(body[key], value)
        else:
            body[key] = value
    return body


# ------------------------------------------------------------------------------------ answers


def read(body: Any) -> Completion:
    """The answer in the body of a 200 of either form; raises UnreadableError."""
    if not isinstance(body, dict):
        raise UnreadableError("bad_body", "an answer that is no JSON object")
    if "choices" not in body and isinstance(body.get("message"), dict):
        return _read_native(body)
    choices = body.get("choices")
    if not isinstance(choices, list):
        raise UnreadableError("bad_body", "an answer without choices")
    if not choices:
        raise UnreadableError("empty_choices", "an answer with no choice in it")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise UnreadableError("bad_body", "an answer without a message")
    usage = _dict(body.get("usage"))
    refusal = message.get("refusal")
    return Completion(
        text=without_reasoning(_text(message.get("content"))),
        finish_reason=_finish(choice.get("finish_reason")),
        model=_string(body.get("model")),
        fingerprint=_string(body.get("system_fingerprint")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
        refusal=_string(refusal) or None,
    )


def _read_native(body: Mapping[str, Any]) -> Completion:
    return Completion(
        text=without_reasoning(_text(body["message"].get("content"))),
        finish_reason=_finish(body.get("done_reason")),
        model=_string(body.get("model")),
        fingerprint=None,
        prompt_tokens=_count(body.get("prompt_eval_count")),
        completion_tokens=_count(body.get("eval_count")),
        cached_tokens=None,
        refusal=None,
    )


def _finish(reason: Any) -> str:
    """`stop` if the server does not say; vLLM says "abort" when it is shut down in mid-answer."""
    if reason in ("abort", "load", "unload"):
        raise UnreadableError("abort", "the server broke off its answer")
    return _string(reason) or "stop"


def without_reasoning(text: str) -> str:
    """The text after a reasoning model's thoughts; empty if it did not get beyond them."""
    if match := _REASONING.match(text):
        return text[match.end() :].strip()
    # Some templates put the opening tag into the prompt.
    return _REASONING_END.sub("", text, count=1).strip()


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(_string(_dict(part).get("text")) or "" for part in content)
    return _string(content) or ""


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str | None:
    """Text without what JSON can say and UTF-8 cannot (half a surrogate pair)."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return value if number and value >= 0 else None


# ------------------------------------------------------------------------------------- errors


def explain(content: bytes) -> tuple[str, str]:
    """What the body of an error says, as one line, and its code in lower case (or nothing).

    Servers answer with `{"error": {"message", "type", "code"}}`, `{"error": "text"}`,
    `{"detail": "text" or list}`, plain text, or the HTML page of a proxy.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # also bytes that are no text
        return _line(_page(content.decode("utf-8", "replace"))), ""
    if not isinstance(body, dict):
        return _line(body if isinstance(body, str) else json.dumps(body)), ""
    error = body.get("error") or body.get("detail") or body.get("message") or body
    if isinstance(error, list):
        error = "; ".join(_string(_dict(part).get("msg")) or str(part) for part in error)
    if not isinstance(error, dict):
        return _line(str(error)), ""
    message = error.get("message") or error.get("detail") or json.dumps(error)
    codes = (error.get("code"), error.get("type"))
    return _line(str(message)), " ".join(str(code).lower() for code in codes if code)


def hidden_status(body: Any) -> int | None:
    """The status of an error that came with 200, as some gateways send it."""
    if not isinstance(body, dict) or not body.get("error") or body.get("choices"):
        return None
    code = _dict(body["error"]).get("code")
    code = int(code) if isinstance(code, str) and code.isdecimal() else code
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def is_quota(message: str, code: str) -> bool:
    """Whether a 429 means that money or a plan is used up, so that waiting does not help."""
    used_up = ("insufficient_quota", "billing", "credit_", "payment")
    said = ("credit balance", "insufficient credit", "insufficient balance", "out of credits")
    return any(word in code for word in used_up) or any(word in message.lower() for word in said)


def _page(text: str) -> str:
    """The words of an HTML page, or plain text as it is."""
    if "<" not in text:
        return text
    title = _TITLE.search(text)
    return title[1] if title else _TAG.sub(" ", text)


def _line(text: str) -> str:
    """One line of readable characters, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:5000]).split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"
