"""Asking model servers: chat completions over HTTP, many at a time, on one or several servers.

A question is asked until there is an answer, an answer that no repetition can improve, or nothing
left to hope for. What a failure means is decided in one place, `ChatClient._judge`:

- nobody listens, or the server is busy (409, 423, 424, 425, 429, 503): waited for, as long as
  there was an answer to any question within `servers.busy_budget` seconds;
- a dropped connection, a time-out, 408, any other 5xx, a 200 that is no answer: repeated up to
  `servers.retries` times per question;
- a question that the server does not take (400, 413, 422 ...): `Refused`, the others go on;
- what concerns every question (401, 404, quota used up, server dead): `UserError`, once and for
  all questions of the client.

Waits grow exponentially with full jitter; Retry-After (RFC 9110, 10.2.3) is honoured up to a limit.
"""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from phototagger import dialects, probe, server
from phototagger.endpoints import Endpoint, Pool
from phototagger.errors import TransientError, UserError
from phototagger.machine import Servers
from phototagger.server import Served
from phototagger.setups import Setup
from phototagger.timeleft import TimeLeft

CONNECT_TIMEOUT = 5.0  # seconds
KEEPALIVE = 4.0  # seconds; vLLM closes an idle connection after 5
CONCURRENCY = 8  # per endpoint, if neither the settings nor the setup say
BACKOFF, BACKOFF_MAX = 0.5, 30.0  # seconds before the first repetition at most; and before any
HOPELESS = 20  # refusals in a row after which the fault is not the questions'
BUSY = frozenset({409, 423, 424, 425, 429, 503})
EVERYBODY = frozenset({401, 402, 403, 404, 405, 407, 410})  # would be said to any question
REMEMBERED = 4096  # pictures whose server is remembered


class Refused(Exception):  # noqa: N818 (an outcome of one question, like a row)
    """One question has no answer: `kind` is a problem kind.

    `message` is one line for results: it names no host and counts nothing that another run would
    count otherwise. `detail` is for logs.
    """

    def __init__(self, kind: str, message: str, detail: str = ""):
        super().__init__(detail or message)
        self.kind = kind  # server_refused: it does not take it; server_failed: retries used up
        self.message = message
        self.detail = detail or message


@dataclass(frozen=True)
class Question:
    """One chat completion about one picture (or none)."""

    system: str
    user: str
    image: str | None  # data URL
    schema: Mapping[str, Any] | None  # of the answer; asked for in the setup's way
    max_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """What came back with HTTP 200 and a choice; nothing about it is judged yet."""

    text: str  # reasoning left out; may be empty
    finish_reason: str  # stop, length ...
    model: str  # as the server called it
    fingerprint: str | None  # system_fingerprint
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float  # of the request that succeeded
    attempts: int  # requests it took
    refusal: str | None = None


@dataclass
class Counts:
    """What a client did; requests = questions + sum of retries."""

    questions: int = 0  # for which a request was sent
    requests: int = 0  # tries to send one, also those that nobody accepted
    answered: int = 0
    refused: int = 0
    retries: Counter[str] = field(default_factory=Counter)  # by what made them necessary
    by_endpoint: Counter[str] = field(default_factory=Counter)  # requests by base URL


def in_flight(setup: Setup, servers: Servers) -> int:
    """Requests in flight per server, at most."""
    return servers.concurrency or setup.concurrency or CONCURRENCY


def api_key_of(servers: Servers) -> str | None:
    """The API key in the environment variable that the settings name; None if they name none."""
    if servers.api_key_env is None:
        return None
    key = os.environ.get(servers.api_key_env, "").strip()
    if not key:
        raise UserError(
            "servers.api_key_env: no environment variable of that name is set; put the API key "
            "into one and name it there"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the API key in {servers.api_key_env} has characters that no key has")
    return key


class _TryAgain(Exception):  # noqa: N818
    """A request failed in a way that can pass."""

    def __init__(self, how: str, reason: str, message: str, wait: float = 0):
        super().__init__(message)
        self.how = how  # away, busy or failed
        self.reason = reason  # key of Counts.retries
        self.message = message
        self.wait = wait  # seconds that the server asked for


@dataclass
class _Progress:
    """What has happened to one question so far."""

    attempts: int = 0
    failures: int = 0
    busy: int = 0
    busy_since: float | None = None
    reason: str = ""  # of the last failure
    avoid: Endpoint | None = None


class ChatClient:
    """Asks one model on one or several servers.

    `async with ChatClient(...) as client:` and then `client.ask` from as many tasks as wanted; no
    more than `client.slots` requests are in flight at a time.
    """

    def __init__(
        self,
        setup: Setup,
        served: Served,
        servers: Servers,
        api_key: str | None = None,
        time_left: TimeLeft | None = None,
    ) -> None:
        self.counts = Counts()
        self._time_left = time_left or TimeLeft()
        self._setup, self._served, self._servers = setup, served, servers
        self._key = api_key
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._ceiling = in_flight(setup, servers)
        self._quiet_since: float | None = None  # first of the busy answers since the last good one
        self._refusals = 0  # in a row
        self._asking = 0
        self._fatal: Callable[[], UserError] | None = None  # why nobody is asked any more
        self._last: OrderedDict[int, Endpoint] = OrderedDict()  # by picture

    @property
    def slots(self) -> int:
        """Requests in flight at most, over all endpoints."""
        return self._ceiling * len(self._served.base_urls)

    async def __aenter__(self) -> "ChatClient":
        lane = _lanes(self._servers.timeout)
        self._pool = Pool(
            [Endpoint(url, self._ceiling, lambda u=url: lane(u)) for url in self._served.base_urls]
        )
        self._stopped = asyncio.Event()
        return self

    async def __aexit__(self, *_: object) -> None:
        for endpoint in self._pool.endpoints:
            await endpoint.close()

    async def ask(self, question: Question) -> Reply:
        """The answer to one question.

        Raises Refused if this question has none, UserError if no question will have one,
        TransientError if there is no time left for it.
        """
        if self._asking == 0:
            self._quiet_since = None  # nobody was waiting, so nothing was quiet
        self._asking += 1
        progress = _Progress()
        try:
            while True:
                try:
                    return await self._try(question, progress)
                except _TryAgain as error:
                    progress.reason = error.reason
                    await self._pause(self._judge(error, progress))
        finally:
            self._asking -= 1

    # ------------------------------------------------------------------------- one request

    async def _try(self, question: Question, progress: _Progress) -> Reply:
        self._check_stopped()
        picture = hash(question.image) if len(self._pool.endpoints) > 1 else None
        # All questions about a picture go to one server, which may have kept its prefix.
        prefer = self._last.get(picture) if picture is not None else None
        endpoint = await self._pool.acquire(prefer, progress.avoid)
        sent = time.monotonic()
        try:
            self._check_stopped()
            self._time_left.check()
            self._count(endpoint, progress)
            completion = await self._request(endpoint, question)
            seconds = time.monotonic() - sent
            endpoint.answered(seconds, sent)
        except Refused:
            endpoint.present()
            raise
        except _TryAgain as error:
            _tell(endpoint, error, sent)
            raise
        finally:
            self._pool.release(endpoint)
        self._remember(picture, endpoint)
        self._quiet_since, self._refusals = None, 0
        self.counts.answered += 1
        return Reply(
            text=completion.text,
            finish_reason=completion.finish_reason,
            model=completion.model or self._served.model,
            fingerprint=completion.fingerprint,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cached_tokens=completion.cached_tokens,
            seconds=seconds,
            attempts=progress.attempts,
            refusal=completion.refusal,
        )

    def _count(self, endpoint: Endpoint, progress: _Progress) -> None:
        if progress.attempts:
            self.counts.retries[progress.reason] += 1
        else:
            self.counts.questions += 1
        self.counts.requests += 1
        self.counts.by_endpoint[endpoint.base_url] += 1
        progress.attempts += 1
        progress.avoid = endpoint  # another one shall have the next try

    async def _request(self, endpoint: Endpoint, question: Question) -> dialects.Completion:
        """One request; raises _TryAgain, Refused or UserError."""
        import httpx

        url = dialects.url(self._setup, endpoint.base_url)
        where = _name(endpoint.base_url)
        written = await endpoint.turnstile.enter()

        async def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_body.complete":
                written()

        lane = endpoint.take_lane()
        try:
            body = json.dumps(dialects.payload(self._setup, self._served.model, question)).encode()
            # httpx limits the time between two bytes only.
            async with asyncio.timeout(CONNECT_TIMEOUT + self._servers.timeout):
                response = await lane.post(
                    url, content=body, headers=self._headers, extensions={"trace": trace}
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise self._stop(f"{where}: its TLS certificate is not valid: {error}") from None
            message = f"{where} cannot be reached: {error or type(error).__name__}"
            raise _TryAgain("away", "connect", message) from None
        except (TimeoutError, httpx.TimeoutException):
            message = f"{where} did not answer within {self._servers.timeout:g} s"
            raise _TryAgain("failed", "timeout", message) from None
        except httpx.DecodingError as error:
            raise _TryAgain("failed", "bad_body", f"{where}: {error}") from None
        except (httpx.TransportError, OSError) as error:
            message = f"{where} dropped the connection: {error or type(error).__name__}"
            raise _TryAgain("failed", "dropped", message) from None
        finally:
            written()
            endpoint.give_lane(lane)
        if response.status_code == 200:
            return self._read(where, response.content)
        raise self._failure(where, response.status_code, response.content, response.headers)

    def _read(self, where: str, content: bytes) -> dialects.Completion:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            said = dialects.explain(content)[0]
            message = f"{where} answered with something that is no JSON: {said}"
            raise _TryAgain("failed", "bad_body", self._safe(message)) from None
        if status := dialects.hidden_status(body):
            raise self._failure(where, status, content, {})
        try:
            return dialects.read(body)
        except dialects.UnreadableError as error:
            reason, message = error.args
            raise _TryAgain("failed", reason, f"{where}: {message}") from None

    def _failure(
        self, where: str, status: int, content: bytes, headers: Mapping[str, str]
    ) -> Exception:
        """What a status other than 200 means: _TryAgain, Refused or UserError."""
        said, code = dialects.explain(content)
        message = self._safe(f"{where} answered {status}: {said}" if said else f"{where}: {status}")
        wait = probe.retry_after(headers.get("retry-after")) or 0
        if status == 429 and wait == 0 and dialects.is_quota(said, code):
            return self._stop(f"{message}; the account has no quota left, so top it up or wait")
        if status in BUSY:
            return _TryAgain("busy", str(status), message, wait)
        if status == 408 or status >= 500:
            return _TryAgain("failed", str(status), message, wait)
        if status < 400:
            target = _name(headers.get("location", "")) or "another path"
            return self._stop(f"{message}; it redirects to {target}: use that as the base URL")
        # Moderation of some services says 403 to one picture.
        if status in EVERYBODY and not (status == 403 and self.counts.answered):
            return self._stop(f"{message}; {self._way_out(status)}")
        self._quiet_since = None  # it does answer
        return self._refuse("server_refused", message)

    def _way_out(self, status: int) -> str:
        if status == 402:
            return "the account has to be topped up"
        if status in (401, 403, 407):
            name = self._servers.api_key_env
            if name:
                return f"check the API key in the environment variable {name}"
            return "name the environment variable that holds the API key in servers.api_key_env"
        return (
            f"check that it serves the model {self._served.model!r}, and that its URL ends in /v1"
        )

    # ------------------------------------------------------------------------- what to do

    def _judge(self, error: _TryAgain, progress: _Progress) -> float:
        """Seconds after which to try again; raises if there is no sense in it."""
        if error.reason in ("connect", "dropped") and self._served.own:
            self._check_alive()
        if error.how == "failed":
            progress.failures += 1
            if progress.failures > self._servers.retries:
                tries = f" ({progress.attempts} requests)" if progress.attempts > 1 else ""
                raise self._refuse("server_failed", error.message, tries)
            if error.reason == "dropped" and progress.failures == 1:
                return 0  # most likely an idle connection that the server closed at that moment
            return _delay(error, progress.failures)
        budget, now = self._servers.busy_budget, time.monotonic()
        if self._quiet_since is None:
            self._quiet_since = now
        if now - self._quiet_since >= budget:
            raise self._stop(
                f"no answer within servers.busy_budget ({budget:g} s): {error.message}; "
                "start the server, or give it more time",
                TransientError,
            )
        if error.how == "away":
            return 0  # the endpoint rests, not the question
        progress.busy += 1
        progress.busy_since = progress.busy_since or now
        if now - progress.busy_since >= budget:  # while others were answered
            raise self._refuse("server_failed", error.message, f" for {budget:g} s")
        return _delay(error, progress.busy)

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless all is over."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return

    def _refuse(self, kind: str, message: str, also: str = "") -> Exception:
        """The exception for one question; for all, if it was the last straw."""
        self.counts.refused += 1
        self._refusals += 1
        hopeless = kind == "server_failed" or not self.counts.answered
        if self._refusals >= HOPELESS and hopeless:
            return self._stop(
                f"{self._refusals} questions in a row were not answered: {message}{also}; "
                f"{self._what_to_do(kind)}",
                TransientError if kind == "server_failed" else UserError,
            )
        said = message
        for endpoint in self._pool.endpoints:
            said = said.replace(_name(endpoint.base_url), "the server")
        return Refused(kind, said, message + also)

    def _what_to_do(self, kind: str) -> str:
        if kind == "server_refused":
            return "see what the server says about it in its log; its setup may not fit it"
        log = f" (log: {self._served.log})" if self._served.log else ""
        return f"look after the server{log}, or give it more time by servers.timeout"

    def _stop(self, message: str, kind: type[UserError] = UserError) -> UserError:
        """The error that ends this and every other question."""
        self._fatal = self._fatal or partial(kind, message)
        self._stopped.set()
        self._pool.fail(self._fatal)
        return self._fatal()

    def _check_stopped(self) -> None:
        if self._fatal:
            raise self._fatal()

    def _check_alive(self) -> None:
        try:
            server.check_alive(self._served)
        except UserError as error:
            raise self._stop(str(error), type(error)) from None

    def _remember(self, picture: int | None, endpoint: Endpoint) -> None:
        if picture is None:
            return
        self._last[picture] = endpoint
        self._last.move_to_end(picture)
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)

    def _safe(self, message: str) -> str:
        """A message without the API key, should the server have quoted it."""
        if self._key:
            message = message.replace(self._key, "***")
        return re.sub(r"(?i)(bearer|basic)\s+\S+", r"\1 ***", message)


def _tell(endpoint: Endpoint, error: _TryAgain, sent_at: float) -> None:
    """What a failure says about the server."""
    if error.how == "away":
        return endpoint.away()
    if error.reason not in ("dropped", "timeout"):
        endpoint.present()
    if error.how == "busy":
        endpoint.overloaded(sent_at)
    elif error.reason == "timeout":
        endpoint.too_slow(sent_at)
    return endpoint.troubled(error.wait or _jitter(3))


def _delay(error: _TryAgain, failures: int) -> float:
    """Seconds until a question is asked again."""
    return error.wait + _jitter(1) if error.wait else _jitter(failures)


def _jitter(failures: int) -> float:
    """Exponential backoff with full jitter, in seconds."""
    return random.uniform(0, min(BACKOFF_MAX, BACKOFF * 2 ** min(failures - 1, 16)))


def _name(base_url: str) -> str:
    """A server as it is called in messages: without path and credentials."""
    return urlsplit(base_url).netloc.rpartition("@")[2]


def _lanes(timeout: float) -> Any:
    """A function that opens an HTTP client with one connection to a base URL."""
    import ssl
    from functools import cache

    import httpx

    limits = httpx.Limits(
        max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE
    )
    times = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None)
    context = cache(ssl.create_default_context)

    def lane(base_url: str) -> httpx.AsyncClient:
        parts = urlsplit(base_url)
        here = parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
        return httpx.AsyncClient(
            verify=context() if parts.scheme == "https" else False,
            limits=limits,
            timeout=times,
            trust_env=not here,  # a proxy knows nothing of this machine's servers
        )

    return lane
