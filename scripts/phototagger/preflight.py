"""Before the first photo: does the server have the model, does it answer, does it really see?

Every server that is used is checked, in this order: model list, a chat without a picture, the same
chat with one, the canary (canary.py), and whether structured output is enforced. What is busy is
waited for as in `chat`; all else is an error that says what to do.
"""

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phototagger import allocation, canary, probe
from phototagger.canary import Challenge
from phototagger.chat import ChatClient, Question, Refused, Reply
from phototagger.errors import TransientError, UserError
from phototagger.files import write_atomic
from phototagger.machine import Servers
from phototagger.problems import one_line
from phototagger.runfolder import run_dir, scope
from phototagger.server import Served
from phototagger.setups import Setup

PASSED, NOT_CHECKED = "passed", "not_checked"

# A server without eyes answers 500 each time: more patience than this would not help.
RETRIES = 2
_PAUSE = 0.5  # seconds between two looks at a busy server
MAX_TOKENS = 512  # enough for a model that says a little more than it was asked
# Modes in which a server is bound to the schema; the others ask for JSON, or for nothing.
ENFORCING = ("json_schema", "guided_json", "format")

_SYSTEM = "You answer questions about pictures, briefly."
_GREETING = "Say what you see in a few words, or READY if there is no picture."
_REMEDY = (
    "start it with a vision model (llama.cpp: --mmproj) or choose another setup; "
    "--skip-preflight only if you know better"
)


class BlindError(UserError):
    """The model answers without seeing pictures."""


@dataclass(frozen=True)
class Report:
    """What the checks found; of several servers the least that was found on any."""

    models: tuple[str, ...]  # what is listed
    text_ok: bool
    vision_ok: bool
    canary: str  # passed or not_checked
    structured_enforced: bool  # False also if the setup does not ask for it
    version: str | None
    picture_tokens: int | None = None  # prompt tokens of a picture, if the server reports tokens
    warnings: tuple[str, ...] = ()


def check(
    setup: Setup,
    served: Served,
    servers: Servers,
    *,
    api_key: str | None = None,
    seed: int | None = None,
) -> Report:
    """Check every server of `served`; takes nine short requests each.

    Must not be called from a running event loop (use a thread). `seed`: of the canary's pictures,
    random unless given. Raises UserError (BlindError if it does not see) with the cause and what
    to do.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(8))
    reports = []
    for url in served.base_urls:
        checks = _Checks(setup, replace(served, base_urls=(url,)), servers, api_key, seed)
        reports.append(asyncio.run(checks.run(checks.model_list())))
    warnings = dict.fromkeys(warning for report in reports for warning in report.warnings)
    return replace(
        reports[0],
        structured_enforced=all(report.structured_enforced for report in reports),
        warnings=tuple(warnings),
    )


def ensure(
    setup: Setup,
    served: Served,
    servers: Servers,
    folder: Path,
    *,
    api_key: str | None = None,
) -> Report:
    """`check`, once for all jobs of a run; `folder` keeps the verdicts of that run.

    The first job checks while the others wait. A bad verdict is raised again in every job, as
    UserError, without asking the server.
    """
    parts = [setup.digest, served.instance, served.model, *served.base_urls]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    kept = folder / f"{key}.json"
    with one_at_a_time(folder, key, servers):
        if (verdict := read(kept)) is None:
            verdict = _verdict(setup, served, servers, api_key)
            if not (verdict["transient"] and allocation.current()):  # it may pass on another node
                write_atomic(kept, json.dumps(verdict, indent=1) + "\n")
    raise_if_bad(verdict)
    report = verdict["report"]
    lists = {name: tuple(report[name]) for name in ("models", "warnings")}
    return Report(**{**report, **lists})


def _verdict(setup: Setup, served: Served, servers: Servers, api_key: str | None) -> dict[str, Any]:
    about = {"setup": setup.slug, "model": served.model}
    try:
        report = check(setup, served, servers, api_key=api_key)
    except UserError as error:
        return {**about, **bad(error), "report": None}
    return {**about, **bad(None), "report": asdict(report)}


def read(path: Path) -> dict[str, Any] | None:
    """A kept verdict; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def bad(error: UserError | None) -> dict[str, Any]:
    """What a verdict says about what was found wrong, if anything was."""
    transient = isinstance(error, TransientError)
    return {"error": None if error is None else str(error), "transient": transient}


def raise_if_bad(verdict: Mapping[str, Any]) -> None:
    """Raise what was found wrong, in whichever job that was."""
    if verdict["error"] is not None:
        raise (TransientError if verdict.get("transient") else UserError)(verdict["error"])


@contextmanager
def one_at_a_time(verdicts: Path, key: str, servers: Servers) -> Iterator[None]:
    """One job checks while the others wait for its verdict.

    On the nodes of a cluster, `verdicts` is on a file system whose locks nobody should wait for.
    There the lock is in the node's run folder, so that at worst each allocation checks for itself.
    The system releases it if this job is killed.
    """
    verdicts.mkdir(parents=True, exist_ok=True)
    path = verdicts / f"{key}.lock"
    if place := allocation.current():
        about = hashlib.sha256(str(verdicts.absolute()).encode()).hexdigest()[:16]
        path = run_dir(servers) / f"preflight-{about}@{scope(place)}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------- checks


class _Checks:
    """The checks of one server."""

    def __init__(
        self, setup: Setup, served: Served, servers: Servers, api_key: str | None, seed: int
    ):
        self.setup, self.served, self.api_key = setup, served, api_key
        self.must_see = setup.canary or setup.purpose != "test"
        self.servers = replace(servers, retries=min(servers.retries, RETRIES))
        self.where = f"{setup.slug}: {served.model} at {served.base_urls[0]}"
        self.challenges = canary.challenges(seed, min(canary.EDGE, setup.image.max_edge))
        self.words = random.Random(seed)

    async def run(self, models: tuple[str, ...]) -> Report:
        async with ChatClient(self.setup, self.served, self.servers, self.api_key) as client:
            self.client = client
            plain = await self._text()
            seen = await self._vision()
            tokens = _difference(plain, seen)
            evidence = _evidence(plain, seen)
            if tokens is not None and tokens <= 0 and not self.must_see:
                raise self._blind(f"the picture changes nothing ({evidence})")
            passed = await self._canary(evidence) if self.must_see else NOT_CHECKED
            enforced, warnings = await self._structured()
        return Report(models, True, True, passed, enforced, self.served.version, tokens, warnings)

    def model_list(self) -> tuple[str, ...]:
        """The listed names. A name is no proof of identity, but a missing one is a mistake."""
        url = self.served.base_urls[0]
        until = time.monotonic() + self.servers.busy_budget
        with probe.client(url, self.api_key) as http:
            while True:
                seen = probe.look(http, url, None)
                if seen.models:
                    probe.choose(seen.models, self.served.model, f"{self.setup.slug}: {url}")
                    return tuple(model["id"] for model in seen.models)
                pause = max(_PAUSE, seen.retry_after or 0)
                if seen.final or time.monotonic() + pause > until:
                    waited = "" if seen.final else "; waited for servers.busy_budget"
                    kind = UserError if seen.final else TransientError
                    raise kind(f"{self.where}: {seen.reason}{waited}")
                time.sleep(pause)

    async def _text(self) -> Reply:
        try:
            reply = await self._ask(_GREETING)
        except Refused as error:
            raise UserError(
                f"{self.where}: does not answer a chat without a picture ({_said(error)}); "
                "see the server's log"
            ) from error
        self._require_words(reply)
        return reply

    async def _vision(self) -> Reply:
        try:
            reply = await self._ask(_GREETING, self.challenges[0])
        except Refused as error:
            raise self._blind(f"does not take a picture ({_said(error)})") from error
        self._require_words(reply)
        return reply

    def _require_words(self, reply: Reply) -> None:
        # Only a model of random weights may have nothing to say.
        if self.must_see and not reply.text.strip():
            raise UserError(
                f"{self.where}: answers with an empty text (finish_reason {reply.finish_reason!r}, "
                f"{reply.completion_tokens} tokens); if the model thinks first, switch that off "
                "(request.extra_body of the setup), otherwise check its chat template"
            )

    async def _canary(self, evidence: str) -> str:
        answers = [(challenge, await self._answer(challenge)) for challenge in self.challenges]
        right = [challenge.kind for challenge, text in answers if challenge.right(text)]
        if canary.passes(right):
            return PASSED
        wrong = "; ".join(
            f"{challenge.kind} {challenge.answer}: {_shown(text)}"
            for challenge, text in answers
            if not challenge.right(text)
        )
        raise self._blind(
            f"answers without looking: {len(right)} of {len(answers)} questions about simple "
            f"pictures right ({wrong}; {evidence})"
        )

    async def _answer(self, challenge: Challenge) -> str:
        try:
            return (await self._ask(challenge.question, challenge)).text
        except Refused as error:
            raise self._blind(f"does not take a picture ({_said(error)})") from error

    async def _structured(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the server is bound by a schema: the only word allowed is a made-up one."""
        mode = self.setup.structured_output
        if mode not in ENFORCING:
            return False, ()
        word = "".join(self.words.choice(letters) for letters in ["bdfgklmnprst", "aeiou"] * 4)
        schema = {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": [word]}},
            "required": ["word"],
            "additionalProperties": False,
        }
        try:
            reply = await self._ask("Name an animal, as JSON with the key word.", schema=schema)
        except Refused as error:
            raise UserError(
                f"{self.where}: refuses to answer by a schema ({_said(error)}); choose a setup "
                f"whose request.structured_output is not {mode} (json_object or none)"
            ) from error
        if _says(reply.text, word):
            return True, ()
        return False, (
            f"{self.where}: structured output ({mode}) is not enforced; answers that do not keep "
            "to the form will be asked for again",
        )

    async def _ask(
        self, text: str, challenge: Challenge | None = None, *, schema: dict[str, Any] | None = None
    ) -> Reply:
        question = Question(
            system=_SYSTEM,
            user=text,
            image=self._data_url(challenge) if challenge else None,
            schema=schema,
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            top_p=1.0,
            seed=0,
        )
        return await self.client.ask(question)

    def _data_url(self, challenge: Challenge) -> str:
        limits = self.setup.image
        data = base64.b64encode(canary.encode(challenge.image, limits.format, limits.quality))
        return f"data:image/{limits.format};base64,{data.decode()}"

    def _blind(self, what: str) -> BlindError:
        return BlindError(f"{self.where}: {what}; {_REMEDY}")


def _said(error: Refused) -> str:
    return one_line(str(error))


def _shown(text: str) -> str:
    return repr(one_line(text)[:40])


def _says(text: str, word: str) -> bool:
    try:
        return json.loads(text) == {"word": word}
    except ValueError:
        return False


def _difference(plain: Reply, seen: Reply) -> int | None:
    if plain.prompt_tokens is None or seen.prompt_tokens is None:
        return None
    return seen.prompt_tokens - plain.prompt_tokens


def _evidence(plain: Reply, seen: Reply) -> str:
    if _difference(plain, seen) is None:
        return "the server reports no prompt tokens"
    return f"prompt tokens without the picture {plain.prompt_tokens}, with it {seen.prompt_tokens}"
