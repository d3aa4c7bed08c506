"""Before anything else of the service: who is answered, how much at once, and the short way of predictions."""

import asyncio
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from anyio import to_thread
from starlette.requests import ClientDisconnect

from bentos.access import Access, App, Receive, Scope, Send
from bentos.access_log import access_log, route_of, trace_id
from bentos.bodies import MAX_BODY, Claim
from bentos.connections import CUT_OFF
from bentos.desk import Caller, Desk, Endpoint
from bentos.metrics import metrics, page
from bentos.reply import Refused, Reply, fault

_PROBES: Final = frozenset(("/livez", "/readyz"))


@dataclass(slots=True)
class Told:
    """What was sent in answer to a request.

    Attributes:
        status: Of HTTP; 0 where nothing was sent.
        size: Bytes of the body.
    """

    status: int = 0
    size: int = 0


class Front:
    """ASGI middleware around all that the service answers, BentoML's own routes too."""

    def __init__(self, app: App, access: Access, desk: Desk) -> None:
        """Wrap an ASGI app.

        Args:
            app: What answers everything but predictions and metrics.
            access: Who is answered.
            desk: What answers predictions.
        """
        self._app = app
        self._access = access
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "websocket":
            await self._refuse_websocket(scope, send)
            return
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        begun, told, reply = time.perf_counter(), Told(), None
        try:
            reply = self._refusal(scope) or (await self._reply(scope, receive))
            if reply is not None:
                await reply.tell(send)
                told.status, told.size = reply.status, len(reply.body)
            else:
                await self._app(scope, receive, _noting(send, told))
        except (asyncio.CancelledError, ClientDisconnect) as error:
            if not told.status:
                reply = _cut_off(scope, error)
                told.status = reply.status if reply else 0
            raise
        finally:
            take_down(self._desk, scope, reply, told, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> Reply | None:
        """Why who asks is not answered."""
        denial = self._access.judge(scope)
        if denial is None:
            return None
        metrics().refused(denial.reason)
        return denial.reply()

    async def _reply(self, scope: Scope, receive: Receive) -> Reply | None:
        if (endpoint := self._desk.asked(scope)) is not None:
            return await answer(self._desk, endpoint, scope, receive)
        if scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD"):
            body, media_type = await to_thread.run_sync(page, self._desk.gauges.page)
            return Reply(200, body, media_type=media_type)
        return None

    async def _refuse_websocket(self, scope: Scope, send: Send) -> None:
        """There are none here; closing it before it was accepted is a 403."""
        if denial := self._access.judge(scope):
            metrics().refused(denial.reason)
        await send({"type": "websocket.close", "code": 1008})


def take_down(desk: Desk, scope: Scope, reply: Reply | None, told: Told, seconds: float) -> None:
    """Count a request and write it into the access log.

    Args:
        desk: What answers predictions.
        scope: The request.
        reply: What it was answered with, where that is known.
        told: What was sent.
        seconds: From its arrival to its answer.
    """
    endpoint = desk.asked(scope)
    version = reply.version if reply else None
    # A failure counts whether or not there was a version to fail; bad keys and bad bodies do without one.
    if endpoint and reply and (version is not None or told.status >= 500):
        given = (version or "-", reply.variant or "-", endpoint.route, told.status, seconds, reply.rows)
        metrics().answered(endpoint.model, *given)
    if endpoint and reply and reply.kind:
        metrics().failed(reply.kind, endpoint.model, version or "-")
    access_log().note(
        method=scope["method"],
        route=route_of(scope["path"]),
        status=told.status,
        seconds=seconds,
        size=told.size,
        refusal=(reply and reply.kind) or None,
        client=(scope.get("client") or ("",))[0],
        key=scope.get("gauntlet.key"),
        model=endpoint.model if endpoint else None,
        version=version,
        trace=trace_id(scope) if endpoint else None,
    )


def take_down_refusal(desk: Desk, scope: Scope, reply: Reply) -> None:
    """`take_down` a request that did not come this far."""
    take_down(desk, scope, reply, Told(reply.status, len(reply.body)), 0.0)


async def answer(desk: Desk, endpoint: Endpoint, scope: Scope, receive: Receive) -> Reply:
    """Read a request's body, strictly JSON and no larger than may be, and have it answered.

    FastAPI would parse with the standard library first (which takes NaN, and stops with a server error on numbers of
    5,000 digits and deep nesting) and would echo the input in its own 422.

    Raises:
        ClientDisconnect: The client left before the body was whole.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        return fault(415, "send the body as Content-Type: application/json", "media_type")
    try:
        with desk.bodies.claim() as claim:
            body = await _body(headers, receive, claim)
            if body is None:
                return fault(413, f"the body is larger than {MAX_BODY // 2**20} MiB", "too_large")
            return await endpoint.answer(endpoint.model, body, Caller(trace_id(scope)))
    except Refused as refused:
        return refused.reply


async def _body(headers: dict[bytes, bytes], receive: Receive, claim: Claim) -> bytes | None:
    """The whole body; None where it is too large. How long it may take is the connection's affair."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY:
        return None
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        content: bytes = message.get("body", b"")
        claim.take(len(content))
        if not message.get("more_body"):
            if not parts:
                return content if len(content) <= MAX_BODY else None
            parts += content
            return bytes(parts) if len(parts) <= MAX_BODY else None
        parts += content
        if len(parts) > MAX_BODY:
            return None


def _cut_off(scope: Scope, error: BaseException) -> Reply | None:
    """What somebody else answers instead of an app that was stopped; None where the client has left."""
    if isinstance(error, asyncio.CancelledError):  # by BentoML
        return fault(504, "the answer took too long", "timeout")
    return fault(408, "the body did not arrive in time", "too_slow") if scope.get(CUT_OFF) == 408 else None


def _noting(send: Send, told: Told) -> Send:
    """Pass on what is sent, and note it."""

    async def noting(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            told.status = message["status"]
        else:
            told.size += len(message.get("body", b""))
        await send(message)

    return noting
