"""A checked connection to a setup's server: started or found, proven to see, ready to be asked."""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from phototagger import preflight
from phototagger.chat import ChatClient, Counts, Question, Reply, api_key_of
from phototagger.errors import UserError
from phototagger.files import write_atomic
from phototagger.machine import Servers
from phototagger.server import Served, check_alive, serve
from phototagger.setups import Setup
from phototagger.tasks import VERDICTS

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connected:
    """A server and the client that asks it."""

    served: Served
    client: ChatClient

    @property
    def version(self) -> str | None:
        return self.served.version

    @property
    def counts(self) -> Counts:
        return self.client.counts

    async def ask(self, question: Question) -> Reply:
        """Raises chat.Refused; UserError, with the server's last words if it has died."""
        try:
            return await self.client.ask(question)
        except UserError:
            await asyncio.to_thread(check_alive, self.served)
            raise


@asynccontextmanager
async def connect(
    setup: Setup,
    servers: Servers,
    logs: Path,
    verdicts: Path = VERDICTS,
    others: Sequence[Setup] = (),
) -> AsyncIterator[Connected]:
    """Start or find the server of a setup, check it once per run, and keep it while in use.

    `logs` is the folder for what servers print that are started, `others` are the run's other
    setups: they are checked, too, before the first photo. Raises UserError.
    """
    key = api_key_of(servers)
    planned = (*others, setup) if servers.preflight else (setup,)
    await _in_thread(partial(_check_once, planned, servers, logs, verdicts))
    holding = serve(setup, servers, log=log_of(setup, logs))
    served = await _in_thread(holding.__enter__)  # minutes, for a large model
    try:
        if servers.preflight:
            ensure = partial(preflight.ensure, setup, served, servers, verdicts, api_key=key)
            for warning in (await _in_thread(ensure)).warnings:
                log.warning("%s: %s", setup.slug, warning)
        async with ChatClient(setup, served, servers, api_key=key) as client:
            yield Connected(served, client)
    finally:
        holding.__exit__(None, None, None)


def log_of(setup: Setup, logs: Path) -> Path:
    """Where the server of a setup writes on this machine."""
    return logs / f"{setup.slug}-{os.uname().nodename}.log"


def _check_once(setups: Sequence[Setup], servers: Servers, logs: Path, verdicts: Path) -> None:
    """Have the first job of a run start (or find) and check every server that is going to be asked.

    What it found out is kept, so that the other jobs neither wait for a server that does not start,
    nor spend hours on one model to learn that another is blind.
    """
    parts = sorted([setup.slug, setup.digest] for setup in setups)
    key = hashlib.sha256(json.dumps([parts, servers.base_url]).encode()).hexdigest()
    verdicts.mkdir(parents=True, exist_ok=True)
    kept = verdicts / f"all-{key}.json"
    with (verdicts / f"all-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            verdict = _check_all(setups, servers, logs, verdicts)
            write_atomic(kept, json.dumps({"error": verdict}) + "\n")
    if error := json.loads(kept.read_bytes())["error"]:
        raise UserError(error)


def _check_all(setups: Sequence[Setup], servers: Servers, logs: Path, verdicts: Path) -> str | None:
    """What is wrong with the first server that cannot be used, or None."""
    try:
        for setup in setups:  # the one that is wanted comes last, and stays up
            with serve(setup, servers, log=log_of(setup, logs)) as served:
                if servers.preflight:
                    key = api_key_of(servers)
                    preflight.ensure(setup, served, servers, verdicts, api_key=key)
    except UserError as error:
        return str(error)
    return None


async def _in_thread(work: Callable[[], T]) -> T:
    """Run what blocks in a daemon thread: a job that is told to stop need not wait for its end.

    (asyncio.to_thread would be waited for. What is left of a server is its supervisor's business.)
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        try:
            outcome = work(), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future
