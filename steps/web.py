"""Asking and telling over HTTP: redirects that stay on the web, and what is tried again after how long."""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from models.errors import DataError, WorkError, shown

REDIRECTS = 5
BACKOFF = 0.5
LONGEST = 60.0
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class AgainError(Exception):
    """An attempt that failed and may succeed later.

    Attributes:
        reason: What happened, in words that may be printed.
        after: Seconds that the server asked to wait.
    """

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


def retrying(retries: int) -> Retrying:
    """Calls a function again after `AgainError`: after half a second, doubling, or what the server asked for.

    No wait is longer than a minute. After the last try the `AgainError` is raised.
    """
    return Retrying(
        stop=stop_after_attempt(retries + 1),
        wait=_wait,
        retry=retry_if_exception_type(AgainError),
        reraise=True,
    )


@contextmanager
def opened(
    client: httpx.Client, url: str, headers: Mapping[str, str], where: str, home: str | None = None
) -> Iterator[httpx.Response]:
    """The answer to a GET, its body not read yet; redirects are followed to http and https only.

    Args:
        client: Whose timeouts count.
        url: What to ask for.
        headers: Sent with every request.
        where: The source, for messages.
        home: An address whose host must not be left, since `headers` may hold credentials.

    Raises:
        AgainError: The connection broke, or the server asks to come back.
        DataError: Any other answer than success, or a redirect to where it must not go.
    """
    try:
        for _ in range(REDIRECTS + 1):
            with client.stream("GET", url, headers=dict(headers), follow_redirects=False) as response:
                if not response.has_redirect_location:
                    _check_status(response, url, where)
                    yield response
                    return
                url = joined(url, response.headers["location"], where, home, "a redirect")
    except httpx.TransportError as error:
        raise AgainError(f"{shown(url)}: {_broken(error)}") from None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise DataError(f"{where}: {shown(url)} cannot be read ({type(error).__name__}); check `url`") from None
    raise DataError(f"{where}: {REDIRECTS} redirects in a row, the last to {shown(url)}; give the address they lead to")


def posted(client: httpx.Client, url: str, content: Any, where: str) -> None:
    """Hand JSON over by a POST; no redirect is followed, and the answer is not read.

    The whole of the URL may be a secret, as that of a chat's hook is: no message holds any of it.

    Args:
        client: Whose timeouts count.
        url: Where to.
        content: JSON-ready data.
        where: What names the URL, for messages.

    Raises:
        AgainError: The connection broke, or the server asks to come back.
        WorkError: Any other answer than success.
    """
    try:
        with _untold(), client.stream("POST", url, json=content, follow_redirects=False) as response:
            status = response.status_code
            if response.is_success:
                return
            if status in _LATER:
                raise AgainError(f"{where} answers {status}", _retry_after(response))
    except httpx.UnsupportedProtocol:
        raise WorkError(f"{where} is no http or https URL; correct it") from None
    except httpx.TransportError as error:
        raise AgainError(f"{where}: {_broken(error)}") from None
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError):
        raise WorkError(f"{where} is no URL that can be asked; correct it") from None
    moved = "; give the address that it leads to" if 300 <= status < 400 else "; check the URL"
    raise WorkError(f"{where} answers {status}{moved}")


@contextmanager
def _untold() -> Iterator[None]:
    """Keep httpx from logging the URL of each request."""

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger = logging.getLogger("httpx")
    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)


def joined(url: str, link: str, where: str, home: str | None, what: str) -> str:
    """The address that `link` on the page `url` leads to.

    Raises:
        DataError: It leaves the web, or the host of `home`.
    """
    try:
        target = httpx.URL(url).join(link)
    except httpx.InvalidURL:
        raise DataError(f"{where}: {what} leads to no address; ask who runs {shown(url)}") from None
    if target.scheme not in ("http", "https"):
        place = shown(str(target.copy_with(query=None)))[:80]
        raise DataError(f"{where}: {what} leads to {place}: only http and https are followed")
    if home is not None and not _same_host(httpx.URL(home), target):
        raise DataError(
            f"{where}: {what} leads from {httpx.URL(home).host} to {target.host[:80]}: another server is not asked, "
            "since it would be sent the headers; give its address as `url` if you trust it"
        )
    return str(target)


def _same_host(home: httpx.URL, target: httpx.URL) -> bool:
    ports = {"http": 80, "https": 443}
    there, here = target.port or ports[target.scheme], home.port or ports[home.scheme]
    upgraded = (home.scheme, here, target.scheme, there) == ("http", 80, "https", 443)
    return target.host == home.host and ((target.scheme, there) == (home.scheme, here) or upgraded)


def _check_status(response: httpx.Response, url: str, where: str) -> None:
    status = response.status_code
    if response.is_success or status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        return
    said = f"{shown(url)} answers {status} {response.reason_phrase[:40]}".rstrip()
    if status in _LATER:
        raise AgainError(said, _retry_after(response))
    advice = "check the credentials in `headers`" if status in (401, 403, 407) else "check `url`"
    raise DataError(f"{where}: {said}; {advice}")


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    try:
        if value.isdecimal():
            return float(value)
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _broken(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return "cannot be reached" if isinstance(error, httpx.ConnectError) else "the connection broke"


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, AgainError) else 0.0
    backoff = BACKOFF * 2 ** (state.attempt_number - 1) * random.uniform(0.75, 1.25)
    return min(max(asked, backoff), LONGEST)
