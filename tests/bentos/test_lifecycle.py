"""What a worker takes on and what a connection may cost (a real uvicorn), and what a start is refused for."""

import asyncio
import contextlib
import hashlib
import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bentos import connections, lifecycle, startup
from bentos.canonical import pipeline_digest
from bentos.connections import CUT_OFF, BoundedProtocol
from bentos.lifecycle import Lifecycle, LifecycleMiddleware
from bentos.release import Release, _release_digest
from bentos.startup import Listening, require_answers, require_workers, workers
from models.errors import ConfigError, WorkError
from stacks.home import clone_dir
from tests.bentos.samples import write
from tests.bentos.tls import Pair, pair


def ask(middleware: LifecycleMiddleware, path: str = "/predict") -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON that one request gets."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(middleware(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"] or b"null")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await Response(b"", 200)(scope, receive, send)


def test_at_most_so_many_requests_are_in_flight() -> None:
    life = Lifecycle(most=2)
    seen: list[int] = []

    async def nested(scope: Any, receive: Any, send: Any) -> None:
        """Each request asks for another before it is answered."""
        seen.append(life.in_flight)
        scope = {**scope, "depth": scope.get("depth", 0) + 1}
        await (middleware(scope, receive, send) if scope["depth"] < 5 else answer(scope, receive, send))

    middleware = LifecycleMiddleware(nested, life)
    status, headers, told = ask(middleware)
    assert (seen, life.in_flight) == ([1, 2], 0), "the third was refused, and all were counted out again"
    assert (status, headers["retry-after"], told["detail"][0]["type"]) == (503, "1", "overloaded")


@pytest.mark.parametrize("raised", [ClientDisconnect, ValueError])
def test_a_request_that_fails_is_counted_out(raised: type[Exception]) -> None:
    life = Lifecycle()

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise raised

    call = LifecycleMiddleware(fail, life)({"type": "http", "path": "/predict"}, None, None)  # type: ignore[arg-type]
    gone = raised is ClientDisconnect  # is nobody's error
    with contextlib.nullcontext() if gone else pytest.raises(ValueError):
        asyncio.run(call)
    assert life.in_flight == 0


def test_while_it_drains_only_probes_are_answered() -> None:
    life = Lifecycle()
    life.warm = True
    middleware = LifecycleMiddleware(answer, life)
    assert (life.ready, ask(middleware)[0]) == (True, 200)
    life.draining = True
    assert not life.ready
    status, headers, told = ask(middleware)
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert told["detail"][0]["type"] == "draining"
    assert ask(middleware, "/readyz")[0] == ask(middleware, "/livez")[0] == ask(middleware, "/metrics")[0] == 200


def test_it_is_not_ready_before_a_model_is_warm() -> None:
    assert not Lifecycle().ready


def test_what_was_opened_is_closed_once_and_in_turn_whatever_fails() -> None:
    life, closed = Lifecycle(), []
    life.on_drained(lambda: closed.append("first opened"))
    life.on_drained(lambda: 1 / 0)
    life.on_drained(lambda: closed.append("last opened"))
    life.close()
    life.close()
    assert closed == ["last opened", "first opened"]


DRAINING = """
import asyncio, os, sys, threading, time
from bentos.lifecycle import Lifecycle
async def main():
    life = Lifecycle()
    life.attend()
    life.in_flight = 1
    life.on_drained(lambda: print("closed", flush=True))
    life.on_drained(lambda: time.sleep(60) if {stuck} else None)
    print("attends", flush=True)
    {block}
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("block", "stuck", "said"),
    [
        ("await asyncio.sleep(60)", 0, "closed"),
        ("[time.sleep(0.02) for _ in range(3_000)]", 0, "closed"),
        ("await asyncio.sleep(60)", 1, ""),
    ],
    ids=["unanswered", "blocked", "cannot be closed"],
)
def test_a_process_that_does_not_end_is_ended_in_time(block: str, stuck: int, said: str) -> None:
    script = DRAINING.format(block=block, stuck=stuck)
    script = f"import bentos.lifecycle as l; l.DRAIN_SECONDS, l.CLOSING_SECONDS = 0.3, {0.3 if stuck else 60}\n{script}"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=clone_dir())
    assert process.stdout is not None
    assert process.stdout.readline() == "attends\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 1
    assert process.stdout.read().strip() == said


def test_the_bounds_of_an_ending_fit_into_the_promised_times() -> None:
    assert lifecycle.DRAIN_SECONDS + lifecycle.CLOSING_SECONDS + 1 < 30
    assert lifecycle.ORPHAN_SECONDS + lifecycle.ORPHAN_CLOSING_SECONDS + 0.4 < 2


CUT: "queue.Queue[int | None]" = queue.Queue()  # what an app is told of requests whose body it did not get


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real uvicorn with `BoundedProtocol`, whose app answers with the length of the body."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    monkeypatch.setattr(connections, "BODY_SECONDS", 60)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                CUT.put(scope.get(CUT_OFF))
                return
            length += len(message["body"])
            more = message["more_body"]
            if scope["path"] == "/early":
                break
        await Response(str(length), 200)(scope, receive, send)

    config = uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield int(listening.getsockname()[1])
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "no connection is left open"


def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts with pauses between; all that was answered until the server hung up."""
    with socket.create_connection(("127.0.0.1", port), 120) as client:
        with contextlib.suppress(OSError):
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65_536):
                told += part
    return told


def test_whole_requests_are_answered_one_after_the_other(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for size in (0, 10, 200_000):
        connection.request("POST", "/", b"x" * size)
        assert connection.getresponse().read() == str(size).encode()
    connection.close()
    both = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST / HTTP/1.1\r\n"
    both += b"Connection: close\r\nContent-Length: 2\r\n\r\nab"
    told = talk(port, both)
    assert told.count(b"200 OK") == 2


def test_a_body_that_comes_in_time_may_come_in_pieces(port: int) -> None:
    told = talk(
        port, b"POST / HTTP/1.1\r\nConnec", b"tion: close\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd", pause=0.05
    )
    assert told.startswith(b"HTTP/1.1 200") and told.endswith(b"4")


def test_a_body_that_trickles_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.4)
    head = b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"
    told = talk(port, head, *[b"x"] * 30, pause=0.05)
    assert told.startswith(b"HTTP/1.1 408") and b"the body did not arrive in time" in told
    assert CUT.get(timeout=60) == 408


@pytest.mark.parametrize("parts", [(), (b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 30)], ids=["nothing", "trickling"])
def test_who_does_not_ask_is_hung_up_on(port: int, parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    told = talk(port, *parts, pause=0.05)
    assert told == b""


def test_a_body_that_goes_on_after_its_answer_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 1)
    head = b"POST /early HTTP/1.1\r\nContent-Length: 1000\r\n\r\nx"
    told = talk(port, head, *[b"x"] * 30, pause=0.05)
    assert told.count(b"HTTP/1.1") == 1 and b"200 OK" in told


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: y\r\n" % number for number in range(3_000)),
        b"X: " + b"y" * 300_000 + b"\r\n",
        b"X: y\r\n" * 101,
    ],
    ids=["thousands", "long", "one too many"],
)
def test_large_heads_are_refused(port: int, head: bytes) -> None:
    told = talk(port, b"POST / HTTP/1.1\r\n", head, b"\r\n")
    assert told == b"" or told.startswith(b"HTTP/1.1 431"), "a reset may overtake the answer while more is sent"
    assert b"200 OK" not in told


def test_a_refused_head_is_told_why(port: int) -> None:
    told = talk(port, b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n")
    assert told.startswith(b"HTTP/1.1 431") and b"head_too_large" in told
    assert talk(port, b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 99 + b"Connection: close\r\n\r\n")[9:12] == b"200"


def test_what_is_no_http_is_refused_without_an_echo(port: int) -> None:
    told = talk(port, b"Zq7 \x00\xff\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400") and b"malformed" in told and b"Zq7" not in told
    told = talk(port, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZq7\r\n")
    assert told.startswith(b"HTTP/1.1 400") and told.count(b"HTTP/1.1") == 1 and b"Zq7" not in told


def test_a_taken_port_is_refused_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listening = Listening("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {listening.port} of 127.0.0.1 is taken .* another --port"):
            listening.require_port(0.2)
        freeing = threading.Timer(0.3, taken.close)
        freeing.start()
        listening.require_port(60)
        freeing.join()


@pytest.mark.parametrize("host", ["203.0.113.7", "no address"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}, port 0"):
        Listening(host, 0).require_port()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("tls"))


def test_a_certificate_with_its_key_is_taken(certificate: Pair, tmp_path: Path) -> None:
    cert, key = certificate
    Listening("::1", 1).require_tls()
    Listening("::1", 1, cert, key, ca_certs=cert).require_tls()
    _, locked = pair(tmp_path, password=b"gate")
    for password in (None, "other"):
        with pytest.raises(ConfigError, match="the key is encrypted; give its password: --ssl-keyfile-password"):
            Listening("::1", 1, cert, locked, password).require_tls()


def test_files_that_cannot_encrypt_are_refused(certificate: Pair, tmp_path: Path) -> None:
    cert, key = certificate
    _, other = pair(tmp_path)
    absent, prose = str(tmp_path / "absent.pem"), tmp_path / "prose.pem"
    prose.write_text("no certificate")
    for fault, given in {
        "--ssl-keyfile is given without --ssl-certfile": (None, key),
        "--ssl-certfile: there is no file .*absent": (absent, key),
        "--ssl-keyfile: there is no file .*absent": (cert, absent),
        "the key is not the certificate's": (cert, other),
        "a PEM certificate and its key are needed": (str(prose), key),
    }.items():
        with pytest.raises(ConfigError, match=fault):
            Listening("::1", 1, *given).require_tls()


@pytest.mark.parametrize(
    ("given", "count"), [("1", 1), ("3", 3), ("64", 64), ("0", 0), ("65", 0), ("-1", 0), ("two", 0)]
)
def test_workers_are_counted_in_whole_numbers(given: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_WORKERS", given)
    assert workers() == max(count, 1)
    with contextlib.nullcontext() if count else pytest.raises(ConfigError, match="a whole number from 1 to 64"):
        require_workers()


def test_one_worker_is_what_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAUNTLET_WORKERS", raising=False)
    assert workers() == 1


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    write(folder / "wine", "wine", "logistic_regression")
    write(folder / "houses", "houses", "linear_regression")
    return folder


def changed(directory: Path, into: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a Release whose golden rows were changed, all its sums being right again."""
    copy = Path(shutil.copytree(directory, into))
    rows = json.loads((copy / "golden.json").read_text())
    change(rows[3])
    (copy / "golden.json").write_text(json.dumps(rows))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["golden.json"] = hashlib.sha256((copy / "golden.json").read_bytes()).hexdigest()
    manifest["release_digest"] = _digest(Release(copy, manifest))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def _digest(release: Release) -> str:
    return _release_digest(
        pipeline=pipeline_digest(release._read_optional),
        schema=release._json("schema.json"),
        golden=release._json("golden.json"),
        metrics=release._json("metrics.json"),
        training=release.training,
        config=release.config,
    )


@pytest.mark.parametrize("model", ["wine", "houses"])
def test_only_a_release_that_answers_as_it_did_is_served(model: str, releases: Path, tmp_path: Path) -> None:
    require_answers(clone_dir(), releases / model)

    def change(row: dict[str, Any]) -> None:
        if row["probabilities"]:
            row["probabilities"][0] += 1e-3
        else:
            row["prediction"] += 1.0

    other = changed(releases / model, tmp_path / model, change)
    with pytest.raises(WorkError, match=f"the Release of {model} answers its golden inputs otherwise"):
        require_answers(clone_dir(), other)


def test_a_release_that_cannot_be_loaded_is_said_without_values(releases: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="manifest"):
        require_answers(clone_dir(), tmp_path)
    unfit = changed(releases / "wine", tmp_path / "unfit", lambda row: row["inputs"].popitem())
    with pytest.raises(WorkError, match=r"^the Release cannot be loaded in this environment \(\w+Error\)$"):
        require_answers(clone_dir(), unfit)


def test_loading_that_takes_for_ever_is_ended(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LOAD_SECONDS", 0.05)
    with pytest.raises(WorkError, match="was not loaded within"):
        require_answers(clone_dir(), releases / "wine")
