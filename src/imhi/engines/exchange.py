"""Many requests to one server: as many at once as it can bear, tried again, and nothing that was answered let go.

The event loop has a thread of its own, so that answers are taken in while the caller journals, and Ctrl-C reaches the
caller alone.  At any time no more rows are at work than `Limits.concurrency`, and no more answers wait for the caller
than three times that: memory does not grow with the rows.

How many requests are under way at once follows the server (additive increase, multiplicative decrease: Chiu and Jain,
"Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", 1989): half as many
after a sign of overload, one more for every window's worth of answers.  Waits before another try double, with full
jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015); where the server says how long to wait,
nothing is sent before.

What is paid for is kept.  An answer is handed over when it comes.  A failed row is handed over only when nothing is
under way, and nothing is sent until the caller comes back: a caller that stops at too many failures leaves no answer
behind.  Ctrl-C while the caller waits, and errors that end the run, first wait for what is under way.  Only an answer
that came too late (`Server.timeout`) or broken can be paid for twice, and what was under way when the process was
killed.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from imhi.engines.http_client import Fault, HttpClient, Server
from imhi.errors import UserError
from imhi.talk import say

__all__ = ["Exchange", "Limits", "Traffic"]

Key = TypeVar("Key")
Value = TypeVar("Value")

# A sign of life for the caller at least so often, in seconds.
PATIENCE = 1.0
# Waiting for what is under way, so that failed rows can be handed over, takes at most 1/20 of the time...
PAUSE_SHARE = 20
# ... and failed rows are held back no longer than this for it, in seconds.
LONGEST_HELD = 60.0
# A wait that the server asks for is told from here on, in seconds.
TOLD_WAIT = 10.0


@dataclass(frozen=True)
class Limits:
    """How hard to try: requests at once, tries beyond the first, and the bounds of waits between tries in seconds."""

    concurrency: int = 32
    max_retries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 60.0


@dataclass
class Traffic:
    """What went over the wire.

    Attributes
    ----------
    requests, answers : requests sent, and those that an answer came to.
    retries : further tries by the cause that made them necessary (`Fault.cause`).
    failures : rows given up, by cause.
    seconds_waited : before further tries, added up over rows.
    fewest_at_once : the narrowest that the window of requests became; None before the first request.
    """

    requests: int = 0
    answers: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    seconds_waited: float = 0.0
    fewest_at_once: int | None = None


class Exchange(Generic[Key, Value]):
    """Posts every request to ``server/path`` and hands over what becomes of each, in the order in which it comes.

    Parameters
    ----------
    requests : (key, payload) pairs, taken one by one as there is room for them, in the exchange's own thread.
    read : key and the answer's JSON → value; raises `Fault` where it is no answer.
    give_up : key, the last fault and the number of tries → value, for a row that gets no answer.
    failed : whether a value is a failure (of `give_up`, or an answer that is one).
    traffic : counts go here.
    """

    def __init__(
        self,
        server: Server,
        path: str,
        requests: Iterable[tuple[Key, Mapping[str, Any]]],
        *,
        read: Callable[[Key, Any], Value],
        give_up: Callable[[Key, Fault, int], Value],
        failed: Callable[[Value], bool],
        limits: Limits,
        traffic: Traffic,
    ):
        self._server = server
        self._path = path
        self._requests = iter(requests)
        self._read = read
        self._give_up = give_up
        self._failed = failed
        self._limits = limits
        self._traffic = traffic
        self._room = 2 * limits.concurrency
        # Shared between the two threads, under the condition's lock.
        self._filled = threading.Condition()
        self._ready: list[Value] = []
        self._crowded = False
        self._flushed = False
        self._listening = False
        self._over = False
        self._error: BaseException | None = None
        # The caller's own.
        self._handed_failures = False
        # The event loop's own.
        self._loop: asyncio.AbstractEventLoop
        self._whole: asyncio.Task[None] | None = None
        self._window = float(limits.concurrency)
        self._narrowed_at = float("-inf")
        self._under_way = 0
        self._not_before = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sleeping: set[asyncio.Future[None]] = set()
        self._held: list[Value] = []
        self._pausing = False
        self._paused_at = 0.0
        self._next_pause = float("-inf")
        self._stopping = False

    def groups(self, on_wait: Callable[[int], None] | None = None) -> Iterator[list[Value]]:
        """What came since the last group, whenever something has; `on_wait` is told how many requests are under way.

        Raises
        ------
        UserError
            At what would meet every row alike, once all that came before has been handed over.
        """
        thread = threading.Thread(target=self._run_thread, name="imhi-exchange", daemon=True)
        started = threading.Event()
        self._started = started
        thread.start()
        started.wait()
        try:
            yield from self._groups(on_wait)
        except KeyboardInterrupt:
            if self._under_way:
                say(f"interrupted: waiting for {self._under_way} requests under way (Ctrl-C again drops them)")
            self._tell(self._stop)
            yield from self._groups(on_wait)
            raise
        finally:
            self._tell(self._cancel)
            thread.join()

    def _groups(self, on_wait: Callable[[int], None] | None) -> Iterator[list[Value]]:
        while (group := self._take()) is not None:
            if on_wait is not None:
                on_wait(self._under_way)
            if group:
                yield group

    def _take(self) -> list[Value] | None:
        """What is ready, after a short wait [] if nothing is; None at the end.  Raises what ended the exchange."""
        if self._handed_failures:
            self._handed_failures = False
            self._tell(self._resume)
        with self._filled:
            if not self._ready and not self._over:
                self._filled.wait(PATIENCE)
            group, self._ready = self._ready, []
            self._handed_failures, self._flushed = self._flushed, False
            crowded, self._crowded = self._crowded, False
            over = self._over
        if crowded:
            self._tell(self._wake)
        if group or not over:
            return group
        if self._error is not None:
            raise self._error
        return None

    def _tell(self, what: Callable[[], None]) -> None:
        """Have the event loop do something, if it still runs."""
        with self._filled:
            if self._listening:
                self._loop.call_soon_threadsafe(what)

    # --- in the thread of the event loop ------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass  # the caller went away
        except BaseException as found:
            error = found
        with self._filled:
            self._error = self._error or error
            self._over = True
            self._filled.notify()
        self._started.set()

    async def _run(self) -> None:
        self._loop, self._whole = asyncio.get_running_loop(), asyncio.current_task()
        with self._filled:
            self._listening = True
        self._started.set()
        try:
            async with HttpClient(self._server) as client:
                workers = [asyncio.create_task(self._work(client)) for _ in range(self._limits.concurrency)]
                try:
                    await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                    # Where that is an error in one of them, what the others have under way still comes in.
                    self._stop()
                    await asyncio.wait(workers)
                    for worker in workers:
                        worker.result()
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.wait(workers)
        finally:
            with self._filled:
                self._listening = False
                self._ready += self._held

    async def _work(self, client: HttpClient) -> None:
        for key, payload in self._requests:
            if self._stopping:
                return
            await self._answer(client, key, payload)

    async def _answer(self, client: HttpClient, key: Key, payload: Mapping[str, Any]) -> None:
        for tries in range(1, self._limits.max_retries + 2):
            if not await self._enter():
                return
            begun = self._loop.time()
            self._traffic.requests += 1
            try:
                value = self._read(key, await client.post(self._path, payload))
            except Fault as fault:
                if fault.crowded:
                    self._narrow(begun)
                if fault.stops:
                    self._error = self._error or UserError(fault.said, code=1)
                    self._stop()
                    return
                if not fault.again or tries > self._limits.max_retries:
                    _count(self._traffic.failures, fault.cause)
                    self._deliver(self._give_up(key, fault, tries))
                    return
                wait = self._wait_before(tries, fault)
            else:
                self._traffic.answers += 1
                self._window = min(self._limits.concurrency, self._window + 1 / self._window)
                self._deliver(value)
                return
            finally:
                self._leave()
            await self._sleep(wait)

    def _wait_before(self, tries: int, fault: Fault) -> float:
        """Seconds before the next try of a row, by full jitter, after what the server asks for."""
        _count(self._traffic.retries, fault.cause)
        wait = random.uniform(0, min(self._limits.longest_wait, self._limits.first_wait * 2 ** (tries - 1)))
        if fault.wait:
            if fault.wait >= TOLD_WAIT and self._not_before <= self._loop.time():
                say(f"{self._server.address.host} asks to wait {fault.wait:.0f} s; nothing is sent until then")
            # The others would be turned away alike.
            self._not_before = max(self._not_before, self._loop.time() + fault.wait)
            wait += fault.wait
        self._traffic.seconds_waited += wait
        return wait

    async def _enter(self) -> bool:
        """Wait for a place among the requests under way; False where no more are sent."""
        while not self._stopping:
            if (pause := self._not_before - self._loop.time()) > 0:
                await self._sleep(pause)
            elif self._under_way < int(self._window) and not self._pausing and self._has_room():
                self._under_way += 1
                fewest = self._traffic.fewest_at_once or self._limits.concurrency
                self._traffic.fewest_at_once = min(fewest, int(self._window))
                return True
            else:
                place = self._loop.create_future()
                self._waiting.append(place)
                await place
        return False

    def _leave(self) -> None:
        self._under_way -= 1
        if self._pausing and not self._under_way:
            self._flush()
        self._wake()

    def _has_room(self) -> bool:
        with self._filled:
            self._crowded = len(self._ready) >= self._room
            return not self._crowded

    def _narrow(self, begun: float) -> None:
        """Half the window, once for all requests that were under way together."""
        if begun > self._narrowed_at:
            self._window = max(1.0, self._window / 2)
            self._narrowed_at = self._loop.time()

    def _deliver(self, value: Value) -> None:
        if self._failed(value):
            self._held.append(value)
        else:
            with self._filled:
                self._ready.append(value)
                self._filled.notify()
        if self._held and not self._pausing and self._loop.time() >= self._next_pause:
            self._pausing, self._paused_at = True, self._loop.time()

    def _flush(self) -> None:
        """Hand over the failed rows, now that nothing is under way."""
        now = self._loop.time()
        self._next_pause = now + min(PAUSE_SHARE * (now - self._paused_at), LONGEST_HELD)
        with self._filled:
            self._ready += self._held
            self._flushed = True
            self._filled.notify()
        self._held = []

    def _resume(self) -> None:
        self._pausing = False
        self._wake()

    def _wake(self) -> None:
        """Let as many go on as there are places; who finds his place taken waits again."""
        places = int(self._window) - self._under_way
        while self._waiting and places > 0 and not self._pausing:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                places -= 1

    async def _sleep(self, seconds: float) -> None:
        """So long, or until the exchange stops."""
        if self._stopping:
            return
        rest = self._loop.create_future()
        self._sleeping.add(rest)
        alarm = self._loop.call_later(seconds, _end, rest)
        try:
            await rest
        finally:
            alarm.cancel()
            self._sleeping.discard(rest)

    def _stop(self) -> None:
        """Send nothing more; what is under way still comes in."""
        self._stopping = True
        for one in [*self._waiting, *self._sleeping]:
            _end(one)
        self._waiting.clear()

    def _cancel(self) -> None:
        """End now."""
        if self._whole is not None:
            self._whole.cancel()


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
