"""The source `url` against a real server: pinned, cached, resumed, and every fault in words."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.config import ModelConfig
from models.errors import LIMIT, ConfigError, DataError
from steps import download as module
from steps import web
from steps.ingest import ingest_frame, source_digest
from tests.steps.tables import make_config, make_table, write
from tests.steps.website import Answer, Asked, Serve, ranged, website

CSV = make_table().to_csv(index=False).encode()
SUM = hashlib.sha256(CSV).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and waits a hundred times shorter."""
    monkeypatch.setenv("GAUNTLET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(web, "BACKOFF", web.BACKOFF / 100)
    return tmp_path / "home"


def _config(url: str, **keys: Any) -> ModelConfig:
    source = {"name": "web", "kind": "url", "url": url, "sha256": SUM, "retries": 2, "timeout": 5, **keys}
    return make_config(sources=[source])


def _cache(home: Path) -> dict[str, bytes]:
    folder = home / "cache" / "downloads"
    return {path.name.removeprefix(SUM): path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def _refused(config: ModelConfig, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        ingest_frame(config)
    assert len(str(caught.value)) <= LIMIT and caught.value.__suppress_context__ | (caught.value.__context__ is None)
    for part in said:
        assert part in str(caught.value), str(caught.value)


def test_a_file_is_fetched_once_and_read_as_a_csv(serve: Serve, home: Path, tmp_path: Path) -> None:
    site = serve(ranged(CSV))
    config = _config(f"{site.url}/rows.csv?part=1")
    digest = source_digest(config)
    ingested = ingest_frame(config, None, digest)
    assert ingested.digest == ingest_frame(make_config(write(tmp_path, make_table()))).digest
    assert "csv file http://127.0.0.1" in ingested.source_line and "part" not in ingested.source_line
    assert len(site.asked) == 1 and _cache(home) == {"": CSV}
    assert source_digest(config) == digest


def test_parquet_is_read_too(serve: Serve, tmp_path: Path) -> None:
    make_table().to_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    site = serve(ranged(content))
    assert ingest_frame(_config(site.url, format="parquet", sha256=hashlib.sha256(content).hexdigest())).rows == 200


def test_a_damaged_cache_is_fetched_again(serve: Serve, home: Path) -> None:
    site = serve(ranged(CSV))
    ingest_frame(_config(site.url))
    (home / "cache" / "downloads" / SUM).write_bytes(CSV[:-1])
    assert ingest_frame(_config(site.url)).rows == 200
    assert len(site.asked) == 2 and _cache(home) == {"": CSV}


def test_a_cut_connection_is_resumed_where_it_broke(serve: Serve, home: Path) -> None:
    site = serve(ranged(CSV, '"v1"', cut=3_000))
    assert ingest_frame(_config(site.url, retries=0)).rows == 200
    assert site.ranges == ["", *(f"bytes={start}-" for start in range(3_000, len(CSV), 3_000))]
    assert all(asked.headers.get("if-range") == '"v1"' for asked in site.asked[1:])


def test_what_was_received_is_continued_by_the_next_run(serve: Serve, home: Path) -> None:
    broken = [False]
    whole = ranged(CSV, '"v1"')

    def respond(asked: Asked) -> Answer:
        if "range" in asked.headers and broken[0]:
            return Answer(status=503)
        answer = whole(asked)
        answer.cut = 5_000 if broken[0] else None
        return answer

    site = serve(respond)
    broken[0] = True
    _refused(_config(site.url), "answers 503", "after 3 attempts", "continued by the next run")
    assert _cache(home) == {".part": CSV[:5_000], ".tag": b'"v1"'}
    broken[0] = False
    assert ingest_frame(_config(site.url)).rows == 200
    assert site.ranges[-1] == "bytes=5000-" and _cache(home) == {"": CSV}


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(serve: Serve, home: Path) -> None:
    folder = home / "cache" / "downloads"
    folder.mkdir(parents=True)
    (folder / f"{SUM}.part").write_bytes(b"an older version")
    (folder / f"{SUM}.tag").write_text('"v0"')
    assert ingest_frame(_config(serve(ranged(CSV, '"v1"')).url)).rows == 200, "If-Range says so"
    (folder / SUM).unlink()
    (folder / f"{SUM}.part").write_bytes(b"an older version")
    site = serve(ranged(CSV))
    assert ingest_frame(_config(site.url)).rows == 200, "the sum says so"
    assert site.ranges == ["bytes=16-", ""]
    (folder / SUM).unlink()
    (folder / f"{SUM}.part").write_bytes(CSV + b"more")
    assert ingest_frame(_config(serve(ranged(CSV)).url)).rows == 200, "416 says so"


def test_a_server_without_range_starts_over(serve: Serve, home: Path) -> None:
    cuts = iter([4_000, 6_000])
    site = serve(lambda asked: Answer(CSV, cut=next(cuts, None)))
    assert ingest_frame(_config(site.url)).rows == 200
    assert len(site.asked) == 3 and _cache(home) == {"": CSV}


def test_another_file_than_the_pinned_one_is_removed(serve: Serve, home: Path) -> None:
    other = CSV.replace(b"red", b"RED")
    site = serve(ranged(other))
    _refused(_config(site.url), SUM[:12], hashlib.sha256(other).hexdigest()[:12], "removed", "set its sum")
    assert _cache(home) == {} and len(site.asked) == 1


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, ("answers 404 Not Found", "check `url`")),
        (403, {}, ("answers 403",)),
        (302, {"Location": "file:///etc/passwd"}, ("a redirect leads to file:/etc/passwd", "only http and https")),
        (302, {"Location": "ftp://host/x?token=SECRET"}, ("only http and https",)),
        (302, {"Location": "/again"}, ("5 redirects in a row",)),
    ],
)
def test_an_answer_that_is_no_file_stops(
    status: int, headers: dict[str, str], said: tuple[str, ...], serve: Serve, home: Path
) -> None:
    site = serve(lambda _: Answer(b"no", status, headers))
    _refused(_config(f"{site.url}/rows.csv"), *said)
    assert _cache(home) == {}
    assert len(site.asked) == (6 if headers.get("Location") == "/again" else 1), "what is final is not asked again"


def test_redirects_on_the_web_are_followed(serve: Serve) -> None:
    there = serve(ranged(CSV))
    here = serve(lambda _: Answer(status=302, headers={"Location": f"{there.url}/rows.csv"}))
    assert ingest_frame(_config(here.url)).rows == 200


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    busy = iter([503, 429])
    site = serve(lambda asked: Answer(b"", status) if (status := next(busy, None)) else Answer(CSV))
    assert ingest_frame(_config(site.url)).rows == 200
    assert len(site.asked) == 3


def test_no_server_and_no_room_stop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with website(ranged(CSV)) as site:
        gone = site.url
    _refused(_config(gone), "cannot be reached", "after 3 attempts")
    full = shutil.disk_usage(".")._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        _refused(_config(serve(ranged(CSV)).url), "are to come and 0 MiB are free")
    monkeypatch.setattr(module, "LARGEST", 1 << 10)
    _refused(_config(serve(ranged(CSV)).url), "the file has more than")


def test_a_slow_transfer_shows_a_bar_on_a_terminal(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    ingest_frame(_config(serve(ranged(CSV)).url))
    assert "source 'web'" in screen.getvalue()


def test_variables_reach_the_server_and_no_message(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILE_TOKEN", "hunter2")
    site = serve(lambda asked: Answer(CSV) if asked.path.endswith("token=hunter2") else Answer(status=403))
    config = _config(f"{site.url}/rows.csv?token=${{FILE_TOKEN}}")
    assert ingest_frame(config).rows == 200
    monkeypatch.setenv("FILE_TOKEN", "hunter3")
    with pytest.raises(DataError) as caught:
        ingest_frame(_config(config.sources[0].url, sha256="0" * 64))  # type: ignore[union-attr]
    assert "403" in str(caught.value) and "hunter" not in str(caught.value)
    with pytest.raises(ConfigError, match="write"):
        _config(f"{site.url}/rows.csv?token=hunter2")
