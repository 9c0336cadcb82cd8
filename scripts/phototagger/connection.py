"""A checked connection to a setup's server: started or found, proven to see, ready to be asked."""

import asyncio
import contextlib
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

from phototagger import allocation, preflight
from phototagger.chat import ChatClient, Counts, Question, Reply, api_key_of
from phototagger.errors import UserError
from phototagger.files import write_atomic
from phototagger.machine import Servers
from phototagger.runfolder import scope
from phototagger.server import GRACE, Served, check_alive, serve
from phototagger.setups import Setup
from phototagger.tasks import VERDICTS
from phototagger.timeleft import TimeLeft

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
    time_left: TimeLeft | None = None,
) -> AsyncIterator[Connected]:
    """Start or find the server of a setup, check it once per run, and keep it while in use.

    `logs` is the folder for what servers print that are started, `others` are the run's other
    setups: they are checked, too, before the first photo; not in an allocation, which may have
    been given for this setup only. Raises UserError.
    """
    key, cancelled = api_key_of(servers), threading.Event()
    if allocation.current() is None:
        planned = (*others, setup) if servers.preflight else (setup,)
        await _in_thread(partial(_check_once, planned, servers, logs, verdicts))
    holding = serve(setup, servers, log=log_of(setup, logs), cancelled=cancelled)
    served = await _in_thread(holding.__enter__, cancelled)  # minutes, for a large model
    try:
        if servers.preflight:
            ensure = partial(preflight.ensure, setup, served, servers, verdicts, api_key=key)
            for warning in (await _in_thread(ensure)).warnings:
                log.warning("%s: %s", setup.slug, warning)
        async with ChatClient(setup, served, servers, key, time_left) as client:
            yield Connected(served, client)
    finally:
        holding.__exit__(None, None, None)


def log_of(setup: Setup, logs: Path) -> Path:
    """Where the server of a setup writes on this machine, or in this allocation."""
    place = allocation.current()
    return logs / f"{setup.slug}-{scope(place) if place else os.uname().nodename}.log"


def _check_once(setups: Sequence[Setup], servers: Servers, logs: Path, verdicts: Path) -> None:
    """Have the first job of a run start (or find) and check every server that is going to be asked.

    What it found out is kept, so that the other jobs neither wait for a server that does not start,
    nor spend hours on one model to learn that another is blind.
    """
    parts = sorted([setup.slug, setup.digest] for setup in setups)
    key = hashlib.sha256(json.dumps([parts, servers.base_url]).encode()).hexdigest()
    kept = verdicts / f"all-{key}.json"
    with preflight.one_at_a_time(verdicts, f"all-{key}", servers):
        if (verdict := preflight.read(kept)) is None:
            verdict = preflight.bad(_check_all(setups, servers, logs, verdicts))
            write_atomic(kept, json.dumps(verdict) + "\n")
    preflight.raise_if_bad(verdict)


def _check_all(
    setups: Sequence[Setup], servers: Servers, logs: Path, verdicts: Path
) -> UserError | None:
    """What is wrong with the first server that cannot be used, or None."""
    try:
        for setup in setups:  # the one that is wanted comes last, and stays up
            with serve(setup, servers, log=log_of(setup, logs)) as served:
                if servers.preflight:
                    key = api_key_of(servers)
                    preflight.ensure(setup, served, servers, verdicts, api_key=key)
    except UserError as error:
        return error
    return None


async def _in_thread(work: Callable[[], T], cancelled: threading.Event | None = None) -> T:
    """Run what blocks in a daemon thread: a job that is told to stop need not wait for its end.

    (asyncio.to_thread would be waited for. What is left of a server is its supervisor's business;
    in an allocation, which may be over in seconds, `cancelled` has the thread stop it at once.)
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

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        return await future
    except asyncio.CancelledError:
        if cancelled and allocation.current():
            cancelled.set()
            thread.join(GRACE)
        raise
