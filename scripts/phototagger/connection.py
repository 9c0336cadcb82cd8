"""A checked connection to a setup's server: started or found, proven to see, ready to be asked."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from phototagger import preflight
from phototagger.chat import ChatClient, Counts, Question, Reply, api_key_of
from phototagger.errors import UserError
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
    setup: Setup, servers: Servers, server_log: Path, verdicts: Path = VERDICTS
) -> AsyncIterator[Connected]:
    """Start or find the server of a setup, check it once per run, and keep it while in use.

    `server_log` is where a server that is started writes. Raises UserError.
    """
    key = api_key_of(servers)
    holding = serve(setup, servers, log=server_log)
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
