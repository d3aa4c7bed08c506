"""Paging: the rows of a JSON API, page by page, each page checked."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from models.config import HttpSource
from models.errors import DataError, shown
from steps.read import Chunk, names_text, near, object_frame
from steps.variables import expand
from steps.web import AgainError, joined, opened, retrying

LARGEST_PAGE = 256 << 20
CHUNK = 50_000


@dataclass(frozen=True)
class _Page:
    number: int
    url: str  # after redirects: what relative links start from
    rows: Sequence[Mapping[str, Any]]
    next: str | None
    digest: bytes


def api_rows(source: HttpSource, needed: Sequence[str]) -> Iterator[Chunk]:
    """Ask for every page and give the needed columns, some 50,000 rows at a time, as JSON typed them.

    A key that is absent from a row is a missing value; one that is absent from all rows of a page stops.

    Raises:
        DataError: A page cannot be had, is no such JSON, or the pages do not end; says which page.
        ConfigError: A variable is not set.
    """
    waiting: list[Mapping[str, Any]] = []
    extra: dict[str, None] = {}
    empty = True
    for page in _pages(source):
        _check_columns(page, needed, f"source '{source.name}' page {page.number}")
        for row in page.rows:
            extra.update(dict.fromkeys(name for name in row if name not in needed))
        waiting += [{name: row.get(name) for name in needed} for row in page.rows]
        empty = empty and not page.rows
        if len(waiting) >= CHUNK:
            yield _chunk(waiting, needed, source, extra)
            waiting = []
    if empty:
        raise DataError(f"source '{source.name}': {shown(source.url)} answers and has no rows; check its parameters")
    if waiting:
        yield _chunk(waiting, needed, source, extra)


def _chunk(
    rows: Sequence[Mapping[str, Any]], needed: Sequence[str], source: HttpSource, extra: Mapping[str, None]
) -> Chunk:
    missing = set(source.missing_values)
    columns = {
        name: [None if isinstance(cell := row[name], str) and cell.strip() in missing else cell for row in rows]
        for name in needed
    }
    return Chunk(object_frame(columns), tuple(extra))


def _pages(source: HttpSource) -> Iterator[_Page]:
    """The pages in order, until one says that it is the last.

    Raises:
        DataError: A page leads back to an earlier one or repeats it, or there are more than `max_pages`.
    """
    where = f"source '{source.name}'"
    first = expand(source.url, f"{where}: url")
    headers = {name: expand(value, f"{where}: headers.{name}") for name, value in source.headers.items()}
    asked: dict[str, int] = {}
    url: str | None = _counted(first, source, source.first_page)
    before = b""
    with httpx.Client(timeout=source.timeout) as client:
        for number in range(1, source.max_pages + 1):
            assert url is not None
            asked[url] = number
            page = _ask(client, source, url, {"Accept": "application/json", **headers}, number)
            if source.page and page.rows and page.digest == before:
                raise DataError(
                    f"{where} page {number} is the same as page {number - 1}; is '{source.page}' the parameter that "
                    "counts its pages?"
                )
            yield page
            before = page.digest
            url = _following(source, page, first)
            if url is None:
                return
            if url in asked:
                raise DataError(
                    f"{where} page {number}: `{source.next}` leads back to page {asked[url]}; the API loops"
                )
    raise DataError(f"{where}: there are more than {source.max_pages:,} pages; raise max_pages if that is right")


def _following(source: HttpSource, page: _Page, first: str) -> str | None:
    if source.page:
        return _counted(first, source, source.first_page + page.number) if page.rows else None
    if not page.next:
        return None
    return joined(page.url, page.next, f"source '{source.name}' page {page.number}", first, f"`{source.next}`")


def _counted(url: str, source: HttpSource, number: int) -> str:
    return str(httpx.URL(url).copy_set_param(source.page, number)) if source.page else url


def _ask(client: httpx.Client, source: HttpSource, url: str, headers: Mapping[str, str], number: int) -> _Page:
    where = f"source '{source.name}' page {number}"

    def body() -> tuple[str, bytes]:
        with opened(client, url, headers, where, home=url) as response:
            content = bytearray()
            for block in response.iter_bytes():
                content += block
                if len(content) > LARGEST_PAGE:
                    raise DataError(f"{where} has more than {LARGEST_PAGE >> 20} MiB; ask for smaller pages")
            return str(response.url), bytes(content)

    try:
        answered, content = retrying(source.retries)(body)
    except AgainError as error:
        raise DataError(
            f"{where}: {error.reason}, after {source.retries + 1} attempts; check `url`, or try later"
        ) from None
    return _read(content, answered, source, number, where)


def _read(content: bytes, url: str, source: HttpSource, number: int, where: str) -> _Page:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        kind = "HTML" if content.lstrip()[:1] == b"<" else "no JSON"
        raise DataError(f"{where} is {kind}, not JSON; check `url`, and the headers that it needs") from None
    rows = _at(answer, source.rows)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        place = f"at `{source.rows}`" if source.rows else "in the answer"
        keys = f" (its keys: {names_text(answer, 10)})" if isinstance(answer, dict) else ""
        raise DataError(f"{where} has no list of objects {place}{keys}; set `rows` to the path of the list")
    following = _at(answer, source.next) if source.next else None
    if following is not None and not isinstance(following, str):
        raise DataError(f"{where}: `{source.next}` is no address; set `next` to the path of the next page's address")
    return _Page(number, url, rows, following, hashlib.sha256(content).digest())


def _at(answer: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer


def _check_columns(page: _Page, needed: Sequence[str], where: str) -> None:
    if not page.rows:
        return
    known = {name for row in page.rows for name in row}
    missing = [name for name in needed if name not in known]
    if missing:
        hints = ", ".join(f"'{name[:40]}'{near(name, known)}" for name in missing[:5])
        raise DataError(
            f"{where}: declared columns are in none of its {len(page.rows)} rows: {hints}. There is: "
            f"{names_text(sorted(known))}. Correct the YAML, or ask the API for them"
        )
