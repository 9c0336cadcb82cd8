"""Which server the next request goes to, and how many it is trusted with.

Each endpoint has a window of requests in flight, which shrinks when the server is busy and grows
with every answer (AIMD with slow start, as in RFC 5681). An endpoint that is away is rested for a
while that doubles, then tried with one request.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

SHRINK = 0.75  # of what was in flight, when the server is busy
RESTS = (1, 2, 4, 8, 15, 30)  # seconds
PATIENCE = 0.02  # seconds that the writing of one request may hold up others
STREAK = 5  # failures in a row that may be chance
SMOOTHING = 0.1  # weight of the newest request in the measured speed


class Turnstile:
    """Lets requests be written one after the other.

    Answers that arrive together would otherwise make requests that are written in turns, a piece
    of each at a time, so that all of them leave when the last one does, and the server's slots are
    empty meanwhile. A connection that takes its time holds nobody up for longer than PATIENCE.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def enter(self) -> Callable[[], None]:
        """Wait for one's turn; call the result, as often as wanted, to end it."""
        await self._lock.acquire()
        mine = True

        def leave() -> None:
            nonlocal mine
            if mine:
                mine = False
                timer.cancel()
                self._lock.release()

        timer = asyncio.get_running_loop().call_later(PATIENCE, leave)
        return leave


class Endpoint:
    """One server, as one client sees it."""

    def __init__(self, base_url: str, ceiling: int, open_lane: Callable[[], Any]):
        self.base_url = base_url
        self.ceiling = ceiling  # requests in flight at most
        self.window = float(ceiling)
        self.in_flight = 0
        self.turnstile = Turnstile()
        self.rest_until = 0.0  # monotonic seconds
        self.failures = 0  # connections refused in a row
        self.seconds: float | None = None  # per request, smoothed
        self._threshold = float(ceiling)  # where slow start ends
        self._shrunk_at = 0.0
        self._overtook = 0.0  # when the latest of the answered requests was sent
        self._answered = False  # since the window shrank
        self._streak = 0  # requests in a row that failed
        self._open_lane = open_lane
        self._lanes: list[Any] = []  # idle ones
        self._all_lanes: list[Any] = []

    # A lane is an HTTP client with one connection: httpcore looks through its whole pool for every
    # request, so that one pool of 256 costs 18 ms of CPU per request and a lane costs 1 ms.

    def take_lane(self) -> Any:
        """The lane that was used last, since its connection is the least likely to be stale."""
        if self._lanes:
            return self._lanes.pop()
        self._all_lanes.append(lane := self._open_lane())
        return lane

    def give_lane(self, lane: Any) -> None:
        self._lanes.append(lane)

    async def close(self) -> None:
        for lane in self._all_lanes:
            await lane.aclose()

    def free(self, now: float) -> bool:
        if now < self.rest_until:
            return False
        return self.in_flight < (1 if self.failures else max(1, int(self.window)))

    def expected(self) -> tuple[float, float]:
        """Order of preference: seconds until one more request is answered, then how full it is."""
        load = (self.in_flight + 1) / self.window
        return (self.seconds or 0) * load, load

    def answered(self, seconds: float, sent_at: float) -> None:
        """A request was answered: trust the server with more."""
        self._overtook = max(self._overtook, sent_at)
        old = self.seconds
        self.seconds = seconds if old is None else old + SMOOTHING * (seconds - old)
        self.failures = self._streak = 0
        self._answered = True
        step = 1.0 if self.window < self._threshold else max(1, self.ceiling / 32) / self.window
        self.window = min(self.ceiling, self.window + step)

    def present(self) -> None:
        """It said something, whatever it was."""
        self.failures = 0

    def troubled(self, pause: float) -> None:
        """A request failed; when a whole window of them did in a row, send nothing for a while."""
        self._streak += 1
        if self._streak > max(STREAK, self.window):
            self.rest_until = max(self.rest_until, time.monotonic() + pause)

    def too_slow(self, sent_at: float) -> None:
        """No answer in time: a sign of overload, unless a request sent later has been answered."""
        if sent_at > self._overtook:
            self.overloaded(sent_at)

    def overloaded(self, sent_at: float) -> None:
        """Busy: shrink, once for all that was in flight when it shrank last."""
        if sent_at < self._shrunk_at:
            return
        self.window = max(1.0, min(self.window, self.in_flight) * SHRINK)
        if self._answered:  # in an outage the memory of what it could do is kept
            self._threshold = self.window
        self._shrunk_at, self._answered = time.monotonic(), False

    def away(self) -> None:
        """Nobody answers there: rest, longer each time."""
        now = time.monotonic()
        if now < self.rest_until:
            return  # another request of the same moment
        self.rest_until = now + RESTS[min(self.failures, len(RESTS) - 1)]
        self.failures += 1


class Pool:
    """Endpoints, and the questions that wait for one of them in the order in which they came."""

    def __init__(self, endpoints: Sequence[Endpoint]):
        self.endpoints = list(endpoints)
        self._waiting: deque[tuple[asyncio.Future, Endpoint | None, Endpoint | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(
        self, prefer: Endpoint | None = None, avoid: Endpoint | None = None
    ) -> Endpoint:
        """An endpoint with room for one more request; give it back with `release`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, prefer, avoid))
        self._dispatch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def release(self, endpoint: Endpoint) -> None:
        endpoint.in_flight -= 1
        self._dispatch()

    def fail(self, error: Callable[[], Exception]) -> None:
        """Nobody shall wait any longer: everybody gets an exception of its own."""
        while self._waiting:
            waiter, _, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error())

    def _dispatch(self) -> None:
        while self._waiting:
            waiter, prefer, avoid = self._waiting[0]
            if waiter.done():  # cancelled
                self._waiting.popleft()
                continue
            endpoint = self._choose(prefer, avoid)
            if endpoint is None:
                self._wake_later()
                return
            self._waiting.popleft()
            endpoint.in_flight += 1
            waiter.set_result(endpoint)

    def _choose(self, prefer: Endpoint | None, avoid: Endpoint | None) -> Endpoint | None:
        now = time.monotonic()
        free = [endpoint for endpoint in self.endpoints if endpoint.free(now)]
        if not free:
            return None
        if prefer in free and prefer is not avoid:
            return prefer
        others = [endpoint for endpoint in free if endpoint is not avoid]
        return min(others or free, key=Endpoint.expected)

    def _wake_later(self) -> None:
        """Look again when the next endpoint has rested; those in flight look when they end."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        rests = [e.rest_until - now for e in self.endpoints if e.rest_until > now]
        if rests:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(rests) + 0.001, self._dispatch)
