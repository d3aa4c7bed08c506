"""Before anything else of the service: who is answered, how much at once, and the short way of predictions."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from anyio import to_thread
from starlette.requests import ClientDisconnect

from bentos.access import Access, App, Receive, Scope, Send
from bentos.access_log import access_log, route_of, trace_id
from bentos.desk import Caller, Desk, Endpoint
from bentos.metrics import metrics, page
from bentos.reply import Reply, fault

MAX_BODY: Final = 64 * 2**20
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
        endpoint = self._desk.endpoint(scope["path"]) if scope["method"] == "POST" else None
        try:
            reply = self._refusal(scope) or (await self._reply(endpoint, scope, receive))
            if reply is not None:
                await tell(reply, send)
                told.status, told.size = reply.status, len(reply.body)
            else:
                await self._app(scope, receive, _noting(send, told))
        finally:
            self._note(scope, endpoint, reply, told, time.perf_counter() - begun)

    def _refusal(self, scope: Scope) -> Reply | None:
        """Why who asks is not answered."""
        denial = self._access.judge(scope)
        if denial is None:
            return None
        metrics().refused(denial.reason)
        return denial.reply()

    async def _reply(self, endpoint: Endpoint | None, scope: Scope, receive: Receive) -> Reply | None:
        if endpoint is not None:
            return await answer(endpoint, scope, receive)
        if scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD"):
            body, media_type = await to_thread.run_sync(page, self._desk.gauges.page)
            return Reply(200, body, media_type=media_type)
        return None

    async def _refuse_websocket(self, scope: Scope, send: Send) -> None:
        """There are none here; closing it before it was accepted is a 403."""
        if denial := self._access.judge(scope):
            metrics().refused(denial.reason)
        await send({"type": "websocket.close", "code": 1008})

    def _note(self, scope: Scope, endpoint: Endpoint | None, reply: Reply | None, told: Told, seconds: float) -> None:
        """Count a request and take it down."""
        model = endpoint.model if endpoint else None
        version = reply.version if reply else None
        if endpoint and reply and version is not None:
            given = (version, reply.variant, endpoint.route, told.status, seconds, reply.rows)
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
            model=model,
            version=version,
            trace=trace_id(scope) if endpoint else None,
        )


async def answer(endpoint: Endpoint, scope: Scope, receive: Receive) -> Reply:
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
    body = await _body(headers, receive)
    if body is None:
        return fault(413, f"the body is larger than {MAX_BODY // 2**20} MiB", "too_large")
    return await endpoint.answer(endpoint.model, body, Caller(trace_id(scope)))


async def tell(reply: Reply, send: Send) -> None:
    """Send a reply."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers()})
    await send({"type": "http.response.body", "body": reply.body})


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
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
        if not message.get("more_body"):
            if not parts:
                return content if len(content) <= MAX_BODY else None
            parts += content
            return bytes(parts) if len(parts) <= MAX_BODY else None
        parts += content
        if len(parts) > MAX_BODY:
            return None


def _noting(send: Send, told: Told) -> Send:
    """Pass on what is sent, and note it."""

    async def noting(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            told.status = message["status"]
        else:
            told.size += len(message.get("body", b""))
        await send(message)

    return noting
