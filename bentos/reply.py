"""Answers over HTTP, and refusals in the one form that all of them have: where and why, never the value."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

MAX_FAULTS: Final = 20
MAX_LISTED: Final = 1_000

Found = tuple[Sequence[str | int], str, str]
"""Path in the body, reason, type."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and a body, mostly of JSON.

    Attributes:
        status: Of HTTP.
        body: What is sent.
        retry_after: Seconds, where waiting helps.
        kind: One word for why it is a refusal; "" where it is none.
        version: Of the Release that was asked, where one was.
        variant: As what that answers.
        rows: How many were answered.
        media_type: Of the body.
        extra: Headers besides, as ASGI takes them.
    """

    status: int
    body: bytes
    retry_after: int | None = None
    kind: str = ""
    version: int | None = None
    variant: str = ""
    rows: int = 0
    media_type: str = "application/json"
    extra: tuple[tuple[bytes, bytes], ...] = ()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of ASGI."""
        told = [(b"content-type", self.media_type.encode()), (b"content-length", b"%d" % len(self.body)), *self.extra]
        if self.retry_after is not None:
            told.append((b"retry-after", b"%d" % self.retry_after))
        return told

    async def tell(self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
        """Send it, over ASGI."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers()})
        await send({"type": "http.response.body", "body": self.body})


class Refused(Exception):
    """A request that is not answered with what it asked for.

    Attributes:
        reply: What it is answered with.
    """

    def __init__(self, reply: Reply) -> None:
        """Keep the reply; the message holds nothing of the request."""
        super().__init__(f"refused with {reply.status}")
        self.reply = reply


def as_json(data: Any, status: int = 200) -> Reply:
    """A reply of JSON-ready data."""
    content = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Reply(status, content.encode("utf-8", "replace"))


def faults(status: int, found: Sequence[Found], retry_after: int | None = None, place: str = "body") -> Reply:
    """A refusal that names at most 20 faults of the body, or of another place."""
    detail = [
        {"loc": [place, *(part[:100] if isinstance(part, str) else part for part in path)], "msg": why, "type": kind}
        for path, why, kind in found[:MAX_FAULTS]
    ]
    body = json.dumps({"detail": detail}, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Reply(status, body, retry_after, found[0][2])


def fault(status: int, why: str, kind: str, path: Sequence[str | int] = (), retry_after: int | None = None) -> Reply:
    """A refusal for one reason."""
    return faults(status, [(path, why, kind)], retry_after)


def invalid(error: ValidationError) -> Reply:
    """The refusal of a body that pydantic did not take; more than 1,000 faults are counted and not listed."""
    if (count := error.error_count()) > MAX_LISTED:
        return fault(422, f"{count:,} things are wrong with the body, too many to be listed", "too_many_faults")
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    status = 413 if any(p["type"] == "too_long" and p["loc"] in ((), ("instances",)) for p in problems) else 422
    return faults(status, [(p["loc"], p["msg"], p["type"]) for p in problems])
