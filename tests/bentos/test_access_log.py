"""The access log: what a line holds, when it is written, what becomes of it when its file is moved or full."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider

from bentos import access_log as module
from bentos.access_log import VARIABLE, AccessLog, network_of, route_of, trace_id
from models.errors import ConfigError
from stacks.home import clone_dir

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-00"
PRIVATE = "Zq7-private"


def _note(log: AccessLog, **changed: Any) -> None:
    told: dict[str, Any] = {
        "method": "POST",
        "route": route_of("/models/wine/predict"),
        "status": 200,
        "seconds": 0.0123456,
        "size": 321,
        "client": "192.0.2.7",
        "key": "shop",
        "model": "wine",
        "version": 12,
        "trace": TRACE,
    }
    log.note(**told | changed)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_line_says_who_asked_what_and_got_what_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    _note(log)
    _until(lambda: path.stat().st_size > 0)
    (line,) = _lines(path)
    assert path.read_text().startswith('{"time":"2')
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "gauntlet.access_log",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "refusal": None,
        "milliseconds": 12.346,
        "bytes": 321,
        "key": "shop",
        "client": "192.0.2.0/24",
        "model": "wine",
        "version": 12,
        "trace": TRACE,
    }


def test_what_a_caller_makes_up_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    for asked in (f"/{PRIVATE}", f"/predict/{PRIVATE}", f"/models/{PRIVATE}/predict", f"/models/a/b\n/{PRIVATE}"):
        log.note(method=PRIVATE, route=route_of(asked), status=404, seconds=0, size=0, client=PRIVATE)
    log.flush()
    assert PRIVATE not in path.read_text()
    assert [(line["method"], line["route"]) for line in _lines(path)] == [
        ("OTHER", "other"),
        ("OTHER", "other"),
        ("OTHER", "/predict"),
        ("OTHER", "other"),
    ]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/predict", "/predict"),
        ("/predict/batch", "/predict/batch"),
        ("/models/wine/predict/batch", "/predict/batch"),
        ("/models/wine/outcomes", "/outcomes"),
        ("/models/wine/monitoring/summary", "/monitoring/summary"),
        ("/monitoring/summary", "/monitoring/summary"),
        ("/models", "/models"),
        ("/health", "/health"),
        ("/metrics", "/metrics"),
        ("/models/a/b/predict", "other"),
        ("/predictions", "other"),
    ],
)
def test_a_route_is_one_of_few(path: str, route: str) -> None:
    assert route_of(path) == route


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        ("somebody", "-"),
        ("", "-"),
    ],
)
def test_of_a_client_only_the_network_is_known(client: str, network: str) -> None:
    assert network_of(client) == network


def test_many_lines_are_written_in_few_pieces_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    assert log._sink is not None
    pieces: list[int] = []
    write = log._sink.write
    monkeypatch.setattr(log._sink, "write", lambda lines: pieces.append(len(lines)) or write(lines))
    for version in range(1_000):
        _note(log, version=version)
    log.flush()
    assert [line["version"] for line in _lines(path)] == list(range(1_000))
    assert len(pieces) < 20


def test_a_file_that_was_moved_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    log = AccessLog(str(path))
    _note(log, version=1)
    log.flush()
    path.rename(moved)
    _note(log, version=2)
    log.flush()
    path.unlink()
    path.write_text("")  # as `logrotate create` does
    _note(log, version=3)
    log.flush()
    assert [line["version"] for line in _lines(moved)] == [1]
    assert [line["version"] for line in _lines(path)] == [3]


def test_what_cannot_be_written_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    path = tmp_path / "access.log"
    path.symlink_to("/dev/full")
    log = AccessLog(str(path))
    for _ in range(3):
        _note(log)
        log.flush()
    path.unlink()
    _note(log, version=99)
    log.flush()
    assert [line["version"] for line in _lines(path)] == [99]
    assert [record.getMessage() for record in caplog.records] == [
        "the access log cannot be written (No space left on device); its lines are dropped",
        "3 lines of the access log were dropped",
    ]


def test_the_queue_has_an_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    with log._writing:  # a disk that hangs
        for _ in range(module.WAITING + 5):
            _note(log)
    log.flush()
    _until(lambda: len(_lines(path)) == module.WAITING)
    _note(log)
    log.flush()
    assert "5 lines of the access log were dropped" in caplog.text


def test_off_writes_nothing_and_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    log = AccessLog("off")
    _note(log)
    assert log._thread is None
    with pytest.raises(ConfigError, match=f"no/access.log cannot be opened .*{VARIABLE}"):
        AccessLog(str(tmp_path / "no" / "access.log"))


@pytest.mark.parametrize("format", ["text", "json"])
def test_two_processes_write_whole_lines_to_one_pipe_and_the_last_ones_at_their_end(format: str) -> None:
    """Both write to this test's pipe, more than it holds; then they just end."""
    program = """
import sys
from stacks import logs
logs.inherit()
from bentos.access_log import access_log
log = access_log()
for number in range(3_000):
    log.note(method="POST", route="/predict", status=200, seconds=0, size=number, key=sys.argv[1])
"""
    read, write = os.pipe()
    own = {"GAUNTLET_LOG_FORMAT": format, VARIABLE: "-"}
    both = [
        subprocess.Popen([sys.executable, "-c", program, name], cwd=clone_dir(), env=os.environ | own, stderr=write)
        for name in ("a", "b")
    ]
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = [json.loads(line) for line in pipe]
    assert [process.wait() for process in both] == [0, 0]
    for name in ("a", "b"):
        assert [line["bytes"] for line in lines if line["key"] == name] == list(range(3_000))


def _traced(headers: dict[str, str], spans: bool) -> str | None:
    """What `trace_id` says within BentoML's middleware, as it is by default (nothing sampled), or without it."""
    from bentoml._internal.utils.telemetry import ParentBasedTraceIdRatio

    found: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(trace_id(scope))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(0.0))
    outer: Any = OpenTelemetryMiddleware(app, tracer_provider=provider) if spans else app
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/predict",
        "query_string": b"",
        "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(outer(scope, receive, send))
    return found[0]


def test_a_trace_goes_on_with_the_caller_s_whether_there_is_a_span_or_not() -> None:
    assert _traced({"traceparent": PARENT}, spans=True) == TRACE
    assert _traced({"host": "x", "traceparent": PARENT}, spans=False) == TRACE


def test_without_a_caller_s_trace_there_is_the_span_s_or_none() -> None:
    first, second = _traced({}, spans=True), _traced({}, spans=True)
    assert first != second and first is not None and len(bytes.fromhex(first)) == 16
    assert _traced({}, spans=False) is None


@pytest.mark.parametrize(
    "sent",
    [
        "",
        PRIVATE,
        PARENT.upper(),
        PARENT.replace(TRACE, "0" * 32),
        f"00-{TRACE}",
        f"00-{TRACE[:-1]}-b7ad6b7169203331-00",
        f"00-{TRACE}\n-b7ad6b7169203331-00",
    ],
)
def test_a_malformed_trace_is_none(sent: str) -> None:
    assert _traced({"traceparent": sent}, spans=False) is None
