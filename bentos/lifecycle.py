"""How a worker process begins and ends: what it may take on, when it is ready, how it drains, whom it outlives.

BentoML's supervisor passes SIGTERM and Ctrl-C on to its workers as SIGTERM and waits a day for them; it keeps the port
open meanwhile, so a worker that drains goes on accepting, and refuses. Where the supervisor is killed, nobody tells the
workers, and they would hold the port for ever.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from starlette.requests import ClientDisconnect

from bentos.access import App, Receive, Scope, Send
from bentos.metrics import metrics
from bentos.reply import Reply, fault

log = logging.getLogger("gauntlet.service")

SUPERVISOR: Final = "GAUNTLET_SUPERVISOR"
MAX_IN_FLIGHT: Final = 512
DRAIN_SECONDS: Final = 20.0
CLOSING_SECONDS: Final = 3.0
ORPHAN_SECONDS: Final = 1.0
ORPHAN_CLOSING_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_PROBES: Final = frozenset(("/livez", "/readyz", "/metrics"))


class Lifecycle:
    """What this worker process is about. One object a process.

    Attributes:
        in_flight: Requests that were taken on and are not answered yet.
        warm: Whether a model can answer; set by whoever loads it.
        draining: Whether the process is about to end: nothing more is taken on.
    """

    def __init__(self, most: int = MAX_IN_FLIGHT) -> None:
        """Take on at most `most` requests at once."""
        self.in_flight = 0
        self.warm = False
        self.draining = False
        self._most = most
        self._closers: list[Callable[[], object]] = []
        self._closing = threading.Lock()
        self._deadline = float("inf")
        self._last_seconds = CLOSING_SECONDS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], object] = lambda: None

    @property
    def ready(self) -> bool:
        """Whether `/readyz` is answered with 200."""
        return self.warm and not self.draining

    def refusal(self) -> str | None:
        """Why no further request is taken on, as one word; None when it is."""
        if self.draining:
            return "draining"
        return "overloaded" if self.in_flight >= self._most else None

    def on_drained(self, close: Callable[[], object]) -> None:
        """Have `close` called once, when the last request was answered or is given up; those added last come first."""
        self._closers.append(close)

    def attend(self) -> None:
        """Take SIGTERM and Ctrl-C over from uvicorn, and end when the supervisor is gone.

        To be called on the event loop of the main thread, before anything that takes long.
        """
        self._loop = asyncio.get_running_loop()
        uvicorn_s = signal.getsignal(signal.SIGTERM)
        if callable(uvicorn_s):
            self._stop = lambda: uvicorn_s(signal.SIGTERM, None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.drain(DRAIN_SECONDS, CLOSING_SECONDS))
        # Its id was handed down: it may have died before this first look, and the parent be somebody else by now.
        supervisor = int(os.environ.get(SUPERVISOR) or os.getppid())
        threading.Thread(target=self._outlive, args=(supervisor,), name="gauntlet-supervisor", daemon=True).start()

    def drain(self, seconds: float, last_seconds: float) -> None:
        """Refuse what comes, answer what was taken on, and end the process.

        Args:
            seconds: Until what is unanswered then is given up.
            last_seconds: That what `on_drained` was given may take after that, until the process ends the hard way.
        """
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        self._last_seconds = min(self._last_seconds, last_seconds)
        if self.draining:
            return
        self.draining = True
        threading.Thread(target=self._end_in_time, name="gauntlet-drain", daemon=True).start()
        if self._loop:
            with contextlib.suppress(RuntimeError):  # closed: uvicorn is through already
                self._loop.call_soon_threadsafe(self._stop_when_idle)

    def close(self) -> None:
        """Call what `on_drained` was given, each once; waits where another thread is at it."""
        with self._closing:
            while self._closers:
                try:
                    self._closers.pop()()
                except Exception:
                    log.exception("something could not be closed")

    def _stop_when_idle(self) -> None:
        assert self._loop is not None
        if self.in_flight:
            self._loop.call_later(0.01, self._stop_when_idle)
        else:
            self._stop()

    def _end_in_time(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(_LOOK_SECONDS)
        log.error("the process ends the hard way; %d requests are given up", self.in_flight)
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(self._last_seconds)
        os._exit(1)

    def _outlive(self, supervisor: int) -> None:
        while os.getppid() == supervisor:
            time.sleep(_LOOK_SECONDS)
        log.error("the supervisor is gone, so this worker ends")
        # One that is still loading has taken nothing on.
        self.drain(ORPHAN_SECONDS if self.warm else 0.0, ORPHAN_CLOSING_SECONDS)


class LifecycleMiddleware:
    """Takes requests on as a `Lifecycle` allows, and counts them; probes are always answered."""

    def __init__(
        self, app: App, lifecycle: Lifecycle, refused: Callable[[Scope, Reply], None] = lambda *_: None
    ) -> None:
        """Wrap an ASGI app.

        Args:
            app: What answers.
            lifecycle: What says whether it may.
            refused: Told of every request that is not taken on, and what it is answered with.
        """
        self._app = app
        self._lifecycle = lifecycle
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 503."""
        lifecycle = self._lifecycle
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        if why := lifecycle.refusal():
            metrics().refused(why)
            reply = unavailable(why)
            await reply.tell(send)
            self._refused(scope, reply)
            return
        lifecycle.in_flight += 1
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to answer
        finally:
            lifecycle.in_flight -= 1


def unavailable(why: str) -> Reply:
    """The answer to a request that is not taken on: 503, and when to try again.

    Args:
        why: As `Lifecycle.refusal` says.
    """
    said = "the service is ending" if why == "draining" else "too many requests at once"
    reply = fault(503, f"{said}; try again", why, retry_after=1)
    return replace(reply, extra=((b"connection", b"close"),)) if why == "draining" else reply
