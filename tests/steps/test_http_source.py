"""The source `http` against a real server: pages, retries, checks of every page, and headers that go nowhere else."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from models.config import ModelConfig
from models.errors import LIMIT, ConfigError, DataError
from steps import web
from steps.ingest import ingest_frame, source_digest
from tests.steps.tables import SECRETS, make_config, make_table, write
from tests.steps.website import Answer, Asked, Serve, website

PAGE = 60
ROWS: list[dict[str, Any]] = json.loads(make_table().to_json(orient="records"))
TOKEN = "hunter2-token"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for; none are."""
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    return waited


def _json(value: object, **keys: Any) -> Answer:
    return Answer(json.dumps(value).encode(), **keys)


def _page(asked: Asked) -> int:
    return int(parse_qs(urlsplit(asked.path).query).get("page", ["1"])[0])


def _linked(asked: Asked) -> Answer:
    """Pages of 60 rows, each with the relative address of the next."""
    start = (_page(asked) - 1) * PAGE
    more = start + PAGE < len(ROWS)
    return _json(
        {
            "data": {"items": ROWS[start : start + PAGE]},
            "links": {"next": f"?page={_page(asked) + 1}" if more else None},
        }
    )


def _counted(asked: Asked) -> Answer:
    start = (_page(asked) - 1) * PAGE
    return _json(ROWS[start : start + PAGE])


LINKED = {"rows": "data.items", "next": "links.next"}


def _config(url: str, **keys: Any) -> ModelConfig:
    source = {"name": "api", "kind": "http", "url": url, "retries": 2, "timeout": 5, **keys}
    return make_config(sources=[source])


def _refused(config: ModelConfig, *said: str) -> str:
    with pytest.raises(DataError) as caught:
        ingest_frame(config)
    text = str(caught.value)
    assert len(text) <= LIMIT and "\n" not in text
    for part in said:
        assert part in text, text
    for secret in (*SECRETS, TOKEN):
        assert secret not in text
    return text


@pytest.mark.parametrize(("respond", "keys"), [(_linked, LINKED), (_counted, {"page": "page"})])
def test_pages_give_the_same_data_as_a_csv(
    respond: Callable[[Asked], Answer], keys: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    site = serve(respond)
    ingested = ingest_frame(_config(f"{site.url}/rows?kind=all", **keys))
    from_file = ingest_frame(make_config(write(tmp_path, make_table())))
    names = list(from_file.frame.columns)
    assert ingested.frame.sort_values(names, ignore_index=True).equals(
        from_file.frame.sort_values(names, ignore_index=True)
    )
    assert len(site.asked) == (4 if keys == LINKED else 5), "an empty page ends"
    assert "JSON API http://127" in ingested.source_line and "kind=all" not in ingested.source_line


def test_the_digest_follows_the_rows_and_ingest_takes_them(serve: Serve) -> None:
    rows = list(ROWS)
    site = serve(lambda _: _json(rows))
    config = _config(site.url)
    first = source_digest(config)
    rows.reverse()
    assert source_digest(config) == first, "any order is the same data"
    rows.pop()
    assert ingest_frame(config, None, first).rows == 200, "what the digest was made of"
    assert source_digest(config) != first


def test_null_absent_and_marked_values_are_missing(serve: Serve) -> None:
    rows = [dict(row) for row in ROWS]
    rows[0]["size"] = None
    del rows[1]["size"]
    rows[2]["size"] = " NA"
    site = serve(lambda _: _json(rows))
    assert ingest_frame(_config(site.url)).frame["size"].isna().sum() == 3


def test_nested_values_are_no_plain_values(serve: Serve) -> None:
    rows = [dict(row) for row in ROWS]
    rows[7]["colour"] = {"name": SECRETS[1]}
    site = serve(lambda _: _json(rows))
    _refused(_config(site.url), "column 'colour': 1 of 200 values: no plain value", "row 8")


def test_the_server_is_asked_again_when_it_is_busy_or_breaks(serve: Serve, waits: list[float]) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=web.LONGEST - 1), usegmt=True)
    faults = iter(
        [
            Answer(status=429, headers={"Retry-After": "7"}),
            Answer(status=429, headers={"Retry-After": at}),
            Answer(status=503, headers={"Retry-After": "86400"}),
            Answer(status=500),
            Answer(b"[]", cut=1),
        ]
    )
    site = serve(lambda _: next(faults, None) or _json(ROWS))
    assert ingest_frame(_config(site.url, retries=5)).rows == 200
    assert len(site.asked) == 6 and len(waits) == 5
    assert waits[0] == 7 and 20 < waits[1] <= web.LONGEST - 1 and waits[2] == web.LONGEST
    assert 3 <= waits[3] <= 5 and 6 <= waits[4] <= 10, "half a second, doubling"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("1" * 400, web.LONGEST),
        ("\xb2", 0),
        ("soon", 0),
        ("", 0),
        ("-5", 0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("Mon, 01 Jan 2001 00:00:00 +99999999999999", 0),
        ("Mon, 01 Jan 99999 00:00:00 GMT", 0),
    ],
)
def test_whatever_a_server_says_about_later_is_no_error_of_ours(value: str, seconds: float) -> None:
    response = httpx.Response(429, headers={"Retry-After": value.encode("latin-1")})
    assert min(web._retry_after(response), web.LONGEST) == seconds


def test_it_is_asked_so_often_and_no_more(serve: Serve, waits: list[float]) -> None:
    site = serve(lambda _: Answer(status=502))
    _refused(_config(site.url), "page 1: http://127.0.0.1", "answers 502", "after 3 attempts")
    assert len(site.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_final_is_not_asked_again(status: int, serve: Serve, waits: list[float]) -> None:
    site = serve(lambda asked: _linked(asked) if _page(asked) == 1 else Answer(SECRETS[0].encode(), status))
    advice = "check the credentials" if status in (401, 403) else "check `url`"
    _refused(_config(site.url, **LINKED), "page 2", f"answers {status}", advice)
    assert len(site.asked) == 2 and not waits


def test_headers_are_filled_in_sent_and_never_printed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    site = serve(lambda a: _linked(a) if a.headers.get("authorization") == f"Bearer {TOKEN}" else Answer(status=401))
    headers = {"Authorization": "Bearer ${API_TOKEN}"}
    assert ingest_frame(_config(site.url, **LINKED, headers=headers)).rows == 200
    monkeypatch.setenv("API_TOKEN", f"{TOKEN}-old")
    _refused(_config(site.url, **LINKED, headers=headers), "answers 401")
    monkeypatch.delenv("API_TOKEN")
    monkeypatch.setattr("stacks.stack_file.active_environment", dict)
    with pytest.raises(ConfigError, match="a variable that is not set: API_TOKEN"):
        ingest_frame(_config(site.url, headers=headers))
    with pytest.raises(ConfigError, match="Authorization is secret") as caught:
        _config(site.url, headers={"Authorization": TOKEN})
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("way", ["next", "redirect"])
def test_another_host_is_not_asked(way: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    other = serve(_linked)
    elsewhere = f"{other.url.replace('127.0.0.1', 'localhost')}/rows?key=SECRET"
    redirect = Answer(status=307, headers={"Location": elsewhere})
    linked = _json({"data": {"items": ROWS[:60]}, "links": {"next": elsewhere}})
    site = serve(lambda _: linked if way == "next" else redirect)
    headers = {"X-Api-Key": "${API_TOKEN}"}
    said = _refused(_config(site.url, **LINKED, headers=headers), "from 127.0.0.1 to localhost", "another server")
    assert "SECRET" not in said and other.asked == []


def test_a_redirect_on_the_same_host_is_followed(serve: Serve) -> None:
    moved = Answer(status=301, headers={"Location": "/v2/rows"})
    site = serve(lambda asked: _linked(asked) if asked.path.startswith("/v2") else moved)
    assert ingest_frame(_config(f"{site.url}/v1/rows", **LINKED)).rows == 200


BAD_PAGES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "html": (b"<html>jane.doe@example.org</html>", ("page 2 is HTML, not JSON",)),
    "cut json": (b'{"data": {"items": [{"size": 1', ("page 2 is no JSON",)),
    "empty": (b"", ("page 2 is no JSON",)),
    "deep": (b"[" * 100_000, ("page 2 is no JSON",)),
    "no list": (b'{"data": {"items": 5}}', ("page 2 has no list of objects at `data.items`", "its keys: 'data'")),
    "no rows": (b'{"error": "jane.doe@example.org"}', ("page 2 has no list of objects", "its keys: 'error'")),
    "a list of numbers": (b'{"data": {"items": [1, 2]}}', ("page 2 has no list of objects",)),
    "a column gone": (
        json.dumps({"data": {"items": [{k: v for k, v in row.items() if k != "colour"} for row in ROWS[:3]]}}).encode(),
        ("page 2: declared columns are in none of its 3 rows: 'colour'", "There is: 'member'"),
    ),
    "a number as next": (
        json.dumps({"data": {"items": ROWS[:3]}, "links": {"next": 3}}).encode(),
        ("page 2: `links.next` is no address",),
    ),
    "next to a file": (
        json.dumps({"data": {"items": ROWS[:3]}, "links": {"next": "file:///etc/passwd"}}).encode(),
        ("page 2: `links.next` leads to file:/etc/passwd", "only http and https"),
    ),
    "a loop": (
        json.dumps({"data": {"items": ROWS[:3]}, "links": {"next": "?page=2"}}).encode(),
        ("page 2: `links.next` leads back to page 2",),
    ),
}


@pytest.mark.parametrize("case", BAD_PAGES)
def test_a_bad_page_stops_with_its_number(case: str, serve: Serve, waits: list[float]) -> None:
    content, said = BAD_PAGES[case]
    site = serve(lambda asked: _linked(asked) if _page(asked) == 1 else Answer(content))
    _refused(_config(site.url, **LINKED), *said)
    assert len(site.asked) == 2 and not waits


def test_pages_without_end_stop(serve: Serve) -> None:
    _refused(_config(serve(_linked).url, **LINKED, max_pages=3), "more than 3 pages", "max_pages")
    same = serve(lambda _: _json(ROWS[:5]))
    _refused(_config(same.url, page="seite"), "page 2 is the same as page 1", "'seite'")
    _refused(_config(serve(lambda _: _json([])).url), "has no rows")


def test_a_page_beyond_bounds_stops(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.api.LARGEST_PAGE", 1_000)
    _refused(_config(serve(_linked).url, **LINKED), "page 1 has more than 0 MiB")


def test_a_server_that_is_not_there_says_so(waits: list[float]) -> None:
    with website(_linked) as site:
        gone = site.url
    _refused(_config(gone), "cannot be reached", "after 3 attempts", "check `url`")
