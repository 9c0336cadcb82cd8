"""An OpenAI-compatible server that misbehaves as told, for what a real one cannot be made to do.

In a test's own event loop:      async with FaultServer(faults={"503": 0.05}) as server: ...
In a thread of a plain test:     with running(script=["429", "ok", "html"]) as server: ...
As a process of its own:         with process(latency=0.1, slots=8) as base_url: ...
By hand:                         python tests/servers/fault_server.py '{"latency": 0.1}'

A fault strikes by `script` (one name per chat request, in the order of arrival, then no more) or by
`faults` (probability by name). Chance is a function of the seed, the question and how often it
was asked, not of the order in which requests happen to arrive: two runs suffer the same faults.
`GET /stats` tells what the server has received; the keys are those of `Stats`.
"""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from aiohttp import web

REFUSALS = {
    "400": "This model's maximum context length is 4096 tokens",
    "401": "Incorrect API key provided",
    "403": "Access denied",
    "404": "The model `nobody` does not exist.",
    "408": "Request time-out",
    "409": "Another request is in progress",
    "413": "Payload too large",
    "422": "messages: field required",
    "423": "The GPU is leased to another model",
    "424": "The backend is not available",
    "425": "Too early",
    "429": "Rate limit reached",
    "500": "Internal Server Error",
    "503": "The engine is currently busy",
}
# What an answer says is about nobody's photo, in English, and differs from picture to picture.
WORDS = (
    "quiet,bright,narrow,foggy,golden,crowded,empty,snowy,green,old,modern,rainy,sunny,rocky",
    "harbour,street,valley,market,bridge,garden,castle,station,forest,beach,kitchen,meadow",
    "a fisherman,two children,a cyclist,an old woman,a red boat,three horses,a black dog",
    "in the morning,at dusk,under dark clouds,in warm light,during a storm,in autumn",
    "behind a fence,near the water,beside a wall,between tall trees,on a path,under a lantern",
)


@dataclass
class Stats:
    """What a server has received."""

    received: int = 0  # chat requests
    answered: int = 0  # good answers that were sent
    asked_again: int = 0  # requests for a question that had had a good answer
    questions: int = 0  # different ones
    in_flight: int = 0
    most_in_flight: int = 0
    disconnects: int = 0  # clients that did not wait for the answer
    faults: Counter = field(default_factory=Counter)  # by name


@dataclass
class FaultServer:
    """The server; every option may be changed while it runs."""

    faults: Mapping[str, float] = field(default_factory=dict)
    script: Sequence[str] = ()
    seed: int = 0
    burst: tuple[int, int] | None = None  # of every n requests, the first k find a 503
    latency: float = 0  # seconds per answer, once a slot is free
    slots: int | None = None  # answers worked on at a time
    overflow: str = "queue"  # or "503": what happens to requests beyond the slots
    retry_after: str | None = None  # header of the busy answers; "date": two seconds on, as a date
    hang: float = 3600  # seconds of the fault "hang"
    length_below: int = 0  # answers are cut off if max_tokens is less
    models: Sequence[str] = ("tiny-vlm",)
    any_model: bool = False  # answer 200 whatever model is asked for
    api_key: str | None = None
    blind: bool = False  # pictures are ignored, as a text-only model behind a proxy does
    structured: bool = True  # answers obey the schema
    answer: Callable[[dict[str, Any]], str] | None = None  # the content, given the request's body
    keep: bool = False  # bodies in `bodies`
    keepalive: float = 75  # seconds; vLLM has 5
    die_after: int | None = None  # chat requests, after which the server vanishes
    host: str = "127.0.0.1"
    port: int = 0
    stats: Stats = field(default_factory=Stats)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    # -------------------------------------------------------------------------------- life

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    async def __aenter__(self) -> "FaultServer":
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/api/chat", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/options", self._options)
        self._busy, self._waiting = 0, asyncio.Condition()
        self._asked: Counter[bytes] = Counter()
        self._answered: set[bytes] = set()
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=0.1,
            keepalive_timeout=self.keepalive,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def die(self) -> None:
        """Vanish: stop listening and cut every connection."""
        server = self._runner.server
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(server.connections if server else ()):
            if connection.transport:
                connection.transport.abort()

    # ---------------------------------------------------------------------------- requests

    async def _models(self, request: web.Request) -> web.Response:
        if not self._allowed(request):
            return _error(401, REFUSALS["401"])
        models = [{"id": name, "object": "model", "owned_by": "tests"} for name in self.models]
        return web.json_response({"object": "list", "data": models})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(asdict(self.stats))

    async def _options(self, request: web.Request) -> web.Response:
        """Change options of a server that runs as a process."""
        for name, value in (await request.json()).items():
            setattr(self, name, value)
        return web.json_response({})

    def _allowed(self, request: web.Request) -> bool:
        wanted = f"Bearer {self.api_key}"
        return self.api_key is None or request.headers.get("Authorization") == wanted

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        question = hashlib.sha256(raw).digest()[:12]
        stats = self.stats
        stats.received += 1
        stats.asked_again += question in self._answered
        stats.questions += question not in self._asked
        self._asked[question] += 1
        if self.keep:
            self.bodies.append(body)
        if self.die_after is not None and stats.received > self.die_after:
            await self.die()
        fault = self._fault(question)
        if fault != "ok":
            stats.faults[fault] += 1
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        try:
            response = await self._respond(request, body, fault)
        except (asyncio.CancelledError, ConnectionResetError):
            stats.disconnects += 1
            raise
        finally:
            stats.in_flight -= 1
        if fault == "ok" and response.status == 200:
            stats.answered += 1
            self._answered.add(question)
        return response

    def _fault(self, question: bytes) -> str:
        """What happens to this request."""
        number = self.stats.received - 1
        if number < len(self.script):
            return self.script[number] or "ok"
        if self.burst and number % self.burst[0] < self.burst[1]:
            return "503"
        if not self.faults:
            return "ok"
        text = b"%d %d " % (self.seed, self._asked[question])
        draw = int.from_bytes(hashlib.sha256(text + question).digest()[:8]) / 2**64
        for name, probability in self.faults.items():
            if draw < probability:
                return name
            draw -= probability
        return "ok"

    async def _respond(
        self, request: web.Request, body: dict[str, Any], fault: str
    ) -> web.StreamResponse:
        if not self._allowed(request):
            return _error(401, REFUSALS["401"])
        if body.get("model") not in self.models and not self.any_model:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if fault in self._special:
            return await self._special[fault](self, request)
        if fault.isdigit():
            return self._refuse(int(fault))
        if self.slots is None:
            await asyncio.sleep(self.latency)
        elif self.overflow == "503" and self._busy >= self.slots:
            self.stats.faults["overflow"] += 1
            return self._refuse(503)
        else:
            async with self._slot():
                await asyncio.sleep(self.latency)
        return web.json_response(self._completion(request, body, fault))

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with self._waiting:
            await self._waiting.wait_for(lambda: self._busy < self.slots)
            self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            async with self._waiting:
                self._waiting.notify()

    def _refuse(self, status: int) -> web.Response:
        headers = {}
        if status in (423, 429, 503) and self.retry_after is not None:
            later = formatdate(time.time() + 2, usegmt=True)
            headers["Retry-After"] = later if self.retry_after == "date" else self.retry_after
        return _error(status, REFUSALS.get(str(status), "No"), headers=headers)

    # ------------------------------------------------------------------------------ faults

    async def _hang(self, _: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.hang)
        return _error(504, "too late")

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        raise ConnectionResetError

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        """More bytes promised than sent."""
        response = web.StreamResponse(headers={"Content-Length": "5000"})
        await response.prepare(request)
        await response.write(b'{"choices": [{"mess')
        if request.transport:
            request.transport.close()
        return response

    async def _half(self, _: web.Request) -> web.StreamResponse:
        text = '{"id": "x", "choices": [{"message": {"role": "assistant", "cont'
        return web.Response(text=text, content_type="application/json")

    async def _html(self, _: web.Request) -> web.StreamResponse:
        return web.Response(text=_PAGE, content_type="text/html")

    async def _html_502(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text=_PAGE, content_type="text/html")

    async def _plain_500(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text="Internal Server Error")

    async def _string_400(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "image input is not understood"}, status=400)

    async def _detail_422(self, _: web.Request) -> web.StreamResponse:
        detail = [{"loc": ["body", "top_k"], "msg": "extra fields not permitted", "input": "x"}]
        return web.json_response({"detail": detail}, status=422)

    async def _quota(self, _: web.Request) -> web.StreamResponse:
        message = "You exceeded your current quota, please check your plan and billing details."
        return _error(429, message, code="insufficient_quota")

    async def _error_200(self, _: web.Request) -> web.StreamResponse:
        """A gateway's way: the status of the server behind it in the body."""
        return web.json_response({"error": {"message": "Provider returned error", "code": 502}})

    _special: Mapping[str, Callable[..., Awaitable[web.StreamResponse]]] = field(
        default_factory=lambda: {
            "hang": FaultServer._hang,
            "reset": FaultServer._reset,
            "cut": FaultServer._cut,
            "half": FaultServer._half,
            "html": FaultServer._html,
            "502 html": FaultServer._html_502,
            "500 plain": FaultServer._plain_500,
            "400 string": FaultServer._string_400,
            "422 detail": FaultServer._detail_422,
            "quota": FaultServer._quota,
            "200 error": FaultServer._error_200,
        },
        repr=False,
    )

    # ----------------------------------------------------------------------------- answers

    def _completion(self, request: web.Request, body: dict[str, Any], fault: str) -> dict[str, Any]:
        """A chat completion in the dialect of the route, with the fault if it is one of answers."""
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        limit = limit or body.get("options", {}).get("num_predict") or 1 << 30
        message, finish = self._message(body), "stop"
        content = message["content"]
        if fault == "length" or limit < self.length_below:
            message["content"], finish = content[: len(content) // 2], "length"
        elif fault == "abort":
            message["content"], finish = content[:3], "abort"
        elif fault == "null":
            message["content"] = None
        elif fault == "schema":
            message["content"] = '{"something": "else"}'
        elif fault == "think":
            message["content"] = f'<think>\nLet me see: {{"a": 1}}\n</think>\n\n{content}'
        elif fault == "reasoning":
            message |= {"reasoning": "Let me see", "reasoning_content": "Let me see"}
        elif fault == "only reasoning":
            message |= {"content": None, "reasoning": "Let me see", "reasoning_content": "Let me"}
            finish = "length"
        elif fault == "refusal":
            message |= {"content": None, "refusal": "I'm sorry, I can't help with that."}
        prompt, pictures = _parts(body)
        tokens = len(prompt) // 4 + (0 if self.blind else 64 * len(pictures))
        used = len(message["content"] or "") // 4 + 1
        if request.path == "/api/chat":
            return {
                "model": body["model"],
                "message": message,
                "done": True,
                "done_reason": finish,
                "prompt_eval_count": tokens,
                "eval_count": used,
            }
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "system_fingerprint": "fault-server",
            "choices": [] if fault == "empty_choices" else [choice],
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": used,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }

    def _message(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, pictures = _parts(body)
        seen = "".join(pictures) if pictures and not self.blind else prompt
        if self.answer:
            return {"role": "assistant", "content": self.answer(body)}
        digest = hashlib.sha256(f"{seen} {body.get('seed')}".encode()).digest()
        schema = _schema(body)
        if schema is None or not self.structured:
            return {"role": "assistant", "content": sentence(digest)}
        return {"role": "assistant", "content": json.dumps(_instance(schema, digest))}


_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


def _error(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    error = {"message": message, "type": "error", "param": None, "code": code or status}
    return web.json_response({"error": error}, status=status, headers=headers)


def _parts(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The text and the pictures of all messages."""
    texts, pictures = [], []
    for message in body["messages"]:
        content = message["content"]
        pictures += message.get("images", [])
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                pictures.append(part["image_url"]["url"])
    return "\n".join(texts), pictures


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of the answer in whatever dialect it is told."""
    wanted = body.get("response_format") or {}
    if "json_schema" in wanted:
        return wanted["json_schema"]["schema"]
    return wanted.get("schema") or body.get("guided_json") or body.get("format")


def sentence(digest: bytes) -> str:
    """A sentence that belongs to a digest; there are 51,000."""
    adjective, place, who, when, where = (
        words.split(",")[digest[i] % len(words.split(","))] for i, words in enumerate(WORDS)
    )
    return f"{who.capitalize()} {where} of a {adjective} {place} {when}."


def _instance(schema: Mapping[str, Any], digest: bytes) -> Any:
    """Something that satisfies the schema."""
    if "enum" in schema:
        return schema["enum"][digest[0] % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "string")
    if kind == "object":
        return {
            name: _instance(part, hashlib.sha256(digest + name.encode()).digest())
            for name, part in schema.get("properties", {}).items()
        }
    if kind == "array":
        count = min(schema.get("maxItems", 5), max(schema.get("minItems", 0), 5))
        if schema.get("items", {"type": "string"}).get("type") != "string":
            return [_instance(schema["items"], digest[i:]) for i in range(count)]
        words = [w.split()[-1] for line in WORDS[:3] for w in line.split(",")]
        start = digest[0] % len(words)
        return [words[(start + 5 * i) % len(words)] for i in range(count)]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    if kind == "boolean":
        return True
    return sentence(digest)[: schema.get("maxLength", 10**6)]


# -------------------------------------------------------------------------- ways to run one


@contextmanager
def running(**options: Any) -> Iterator[FaultServer]:
    """A server in a thread of this process."""
    server, loop, ready = FaultServer(**options), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(10), "the fault server did not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def process(**options: Any) -> Iterator[str]:
    """A server as a process of its own; yields its base URL."""
    command = [sys.executable, str(Path(__file__)), json.dumps(options)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        yield child.stdout.readline().split()[-1]
    finally:
        child.terminate()
        child.wait(10)


async def _serve_forever(options: dict[str, Any]) -> None:
    async with FaultServer(**options) as server:
        print("listening on", server.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs="?", default="{}", help="fields of FaultServer, as JSON")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_serve_forever({"port": arguments.port} | json.loads(arguments.options)))
