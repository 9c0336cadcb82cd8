"""Looking at a model server before it is asked anything: is it ready, what does it serve?

Servers differ (vLLM, SGLang, LMDeploy, llama.cpp, Ollama and hosted ones): not all have a health
path, some answer it before a model is loaded, and only some tell their version.
"""

import email.utils
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from phototagger.errors import UserError

if TYPE_CHECKING:
    import httpx

BUSY = frozenset((408, 409, 423, 424, 425, 429, 500, 502, 503, 504))  # can pass
Model = Mapping[str, Any]  # an item of /v1/models

RETRY_AFTER_MAX = 60.0  # seconds

_TIMEOUT = 10.0  # seconds; SGLang's /health generates a token
# Where a server tells its version, by what it calls itself in /v1/models (`owned_by`) or its setup.
_VERSIONS = {
    "vllm": ("/version", "version"),
    "llamacpp": ("/props", "build_info"),
    "llama.cpp": ("/props", "build_info"),
    "ollama": ("/api/version", "version"),
    "library": ("/api/version", "version"),  # Ollama
    "sglang": ("/get_server_info", "version"),
}
_TOLD = ("id", "root", "max_model_len", "meta", "owned_by", "capabilities")


@dataclass(frozen=True)
class Look:
    """What one look found: models, or why there are none (yet)."""

    models: Sequence[Model] | None = None
    reason: str = ""
    busy: bool = False  # it is there, and asks to be waited for
    retry_after: float | None = None  # seconds
    final: bool = False  # waiting would not help


@contextmanager
def client(base_url: str, key: str | None = None) -> Iterator["httpx.Client"]:
    """An HTTP client for looks; a proxy is used only for servers on other machines."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    outside = not is_loopback(urlsplit(base_url).hostname or "")
    with httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=outside) as http:
        yield http


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine talking to itself."""
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def root_of(base_url: str) -> str:
    """Scheme, host and port of a base URL."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}"


def look(http: "httpx.Client", base_url: str, health: str | None, *, own: bool = False) -> Look:
    """Ask for health (if there is a path for it) and for the models.

    In front of somebody else's server there may be a proxy that knows no health path, which does
    not matter; our `own` has to answer it.
    """
    if health:
        answer = _get(http, root_of(base_url) + health)
        if isinstance(answer, Look):
            return answer
        if answer.status_code in BUSY or (own and answer.status_code != 200):
            return _not_ready(answer)
    answer = _get(http, f"{base_url.rstrip('/')}/models")
    if isinstance(answer, Look):
        return answer
    if answer.status_code in BUSY:
        return _not_ready(answer)
    if answer.status_code in (401, 403):
        reason = f"it refuses the API key (HTTP {answer.status_code}); set servers.api_key_env"
        return Look(reason=f"{reason} to the variable that holds one", final=True)
    return _models(answer)


def _get(http: "httpx.Client", url: str) -> "httpx.Response | Look":
    import httpx

    try:
        return http.get(url)
    except httpx.TimeoutException:
        return Look(reason=f"{url} does not answer")
    except httpx.RemoteProtocolError as error:
        return Look(reason=f"{url} does not speak HTTP ({error})")
    except httpx.InvalidURL as error:
        return Look(reason=f"{url}: {error}", final=True)
    except httpx.HTTPError as error:
        return Look(reason=f"{url}: {error}")


def _not_ready(answer: "httpx.Response") -> Look:
    reason = f"{answer.request.url} answers HTTP {answer.status_code}"
    wait = retry_after(answer.headers.get("retry-after"))
    return Look(reason=reason, busy=answer.status_code in BUSY, retry_after=wait)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date, RFC 9110, 10.2.3).

    At most RETRY_AFTER_MAX; None if it says nothing sensible.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_MAX)


def _models(answer: "httpx.Response") -> Look:
    try:
        listed = answer.json()["data"] if answer.status_code == 200 else None
        models = [model for model in listed if isinstance(model["id"], str)]
    except (ValueError, KeyError, TypeError):
        reason = f"{answer.request.url} answers HTTP {answer.status_code} without a list of models"
        return Look(reason=f"{reason}; is it an OpenAI-compatible server?", final=True)
    if not models:
        return Look(reason=f"{answer.request.url} lists no model")
    return Look(models=models)


def choose(
    models: Sequence[Mapping[str, Any]], wanted: str | None, where: str
) -> Mapping[str, Any]:
    """The wanted model of those that a server lists, or the only one if none is wanted.

    Raises UserError naming what is there.
    """
    there = ", ".join(sorted(model["id"] for model in models))
    if wanted is None:
        if len(models) == 1:
            return models[0]
        raise UserError(f"{where} serves several models: {there}; name one (describe.model)")
    for name in (wanted, f"{wanted}:latest"):  # Ollama lists a name without tag with this one
        for model in models:
            if model["id"] == name:
                return model
    raise UserError(
        f"{where} serves {there}, not {wanted}; "
        "name a model that it serves, or the server that serves this one"
    )


def describe(
    http: "httpx.Client", base_url: str, model: Model, backend: str
) -> tuple[str | None, dict[str, Any]]:
    """Version of the server program, as far as it tells, and what it says about itself."""
    told: dict[str, Any] = {"model": {key: model[key] for key in _TOLD if key in model}}
    path, key = _VERSIONS.get(model.get("owned_by"), _VERSIONS.get(backend, ("", "")))
    if not path:
        return None, told
    answer = _get(http, root_of(base_url) + path)
    try:
        data = answer.json()
        version = str(data[key])
    except (AttributeError, ValueError, KeyError, TypeError):
        return None, told
    if path == "/props":
        names = ("build_info", "model_path", "modalities", "total_slots")
        told["props"] = {name: data[name] for name in names if name in data}
    return version, told
