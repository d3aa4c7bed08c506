"""What a connection may cost before a request is whole: sizes and deadlines that neither uvicorn nor BentoML sets.

uvicorn with httptools collects headers without end, and waits for the rest of a head or of a body for as long as the
client likes. A request that is whole when it arrives, as nearly all are, sets no timer here.
"""

import json
from asyncio import BaseTransport, TimerHandle
from http import HTTPStatus
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 64 * 2**10  # bytes of request line and headers
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 10.0
BODY_SECONDS: Final = 25.0  # below the time after which BentoML answers 504, above that in which a service drains
CUT_OFF: Final = "gauntlet.cut_off"

_SAID: Final = {
    400: ("malformed", "this is no HTTP request"),
    408: ("too_slow", "the body did not arrive in time"),
    431: ("head_too_large", f"more than {MAX_HEADERS} headers, or more than {MAX_HEAD // 2**10} KiB of them"),
}


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which refuses large heads with 431 and slow bodies with 408, and hangs up on slow heads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*args, **options)
        self._missing: Literal["head", "body"] | None = None
        self._timed: Literal["head", "body"] | None = None
        self._timer: TimerHandle | None = None
        self._head = 0
        self._code = 400

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for a first request, but not for ever."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._time("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._time(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then look at what is still missing."""
        super().data_received(data)
        missing = self._missing
        if missing is not self._timed:
            self._time(missing)
        if missing == "head":
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._missing, self._head = "head", 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        if len(self.headers) > MAX_HEADERS:
            self._code = 431
            raise ValueError("too many headers")  # the parser stops, and `send_400_response` is called
        self._missing = "body"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole."""
        self._missing = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what the parser stopped at."""
        self._refuse(self._code)

    def _time(self, missing: Literal["head", "body"] | None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timed = missing
        seconds = BODY_SECONDS if missing == "body" else HEAD_SECONDS
        self._timer = self.loop.call_later(seconds, self._late) if missing else None

    def _late(self) -> None:
        if self._missing == "body":
            self._refuse(408)
        else:
            self.transport.close()

    def _refuse(self, code: int) -> None:
        """Answer and hang up; only hang up where another answer has begun on this connection."""
        if self.transport.is_closing():
            return
        asked = self.cycle
        begun = asked is not None and (
            asked.response_started if self._missing == "body" else not asked.response_complete
        )
        if not begun and not self.pipeline:
            self.transport.write(_refusal(code))
        if asked is not None and not asked.response_complete:
            asked.scope[CUT_OFF] = code  # type: ignore[typeddict-unknown-key]
            asked.disconnected = True  # so that nothing more is written; the app finds its client gone
            asked.message_event.set()
        self.transport.close()


def _refusal(code: int) -> bytes:
    kind, said = _SAID[code]
    place = ["body"] if code == 408 else ["header"]
    body = json.dumps({"detail": [{"loc": place, "msg": said, "type": kind}]}).encode()
    head = (
        f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
