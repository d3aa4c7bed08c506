"""The service as processes that are ended, killed and asked badly: a real `bentoml serve` with two workers."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bentos.predictions import find
from bentos.release import Release
from stacks.orchestrator.tether import tethered
from steps.apart import apart
from steps.build import build_bento, unpack
from tests.bentos.samples import write
from tests.bentos.tls import pair

pytestmark = pytest.mark.timeout(600)

READY_SECONDS = 240.0


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked Bento of wine."""
    folder = tmp_path_factory.mktemp("bento")
    release = write(folder / "release", "wine", "logistic_regression")
    return unpack(build_bento(release.directory, "wine", 3, {}, folder), folder / "wine")


@pytest.fixture(scope="module")
def body(bento: Path) -> bytes:
    """A request that is answered with 200."""
    return json.dumps({"features": Release.open(bento / "src/release").golden[0].inputs}).encode()


@dataclass(frozen=True)
class Service:
    """A real one; what happens inside the block of `served`."""

    port: int
    log: Path
    supervisor: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Its worker processes that live, in the order of their ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [child for child in self.supervisor.children() if child.status() != psutil.STATUS_ZOMBIE]
            return sorted((p for p in found if "_bentoml_impl.worker.service" in p.cmdline()), key=lambda p: p.pid)
        return []

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        """The answer to one request on a connection of its own, read to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            response.told = response.read()  # type: ignore[attr-defined]
            return response
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return self.ask("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False


# Stays when the server ends: the tether would otherwise end workers whose supervisor was killed.
STARTER = "import signal, subprocess, sys; subprocess.Popen(sys.argv[1:]).wait(); signal.pause()"


@contextmanager
def served(bento: Path, home: Path, *options: str, port: int = 0, workers: int = 2) -> Iterator[Service]:
    """Serve a Bento; whatever is left of it at the end of the block is killed."""
    port = port or free_port()
    serve = [sys.executable, "-m", "bentoml", "serve", str(bento), "--port", str(port), *options]
    command = [sys.executable, "-c", STARTER, *serve]
    environment = apart(home) | {"GAUNTLET_WORKERS": str(workers)}
    log = home / "server.log"
    with (
        log.open("ab") as output,
        tethered(command, env=environment, cwd=home, stdout=output, stderr=output, grace=1) as tether,
    ):
        until(lambda: len(psutil.Process(tether.pid).children(recursive=True)) > 1, log)
        yield Service(port, log, psutil.Process(tether.pid).children()[0].children()[0])


@contextmanager
def answering(bento: Path, home: Path, port: int = 0) -> Iterator[Service]:
    """`served`, once both workers answer."""
    with served(bento, home, port=port) as service:
        # A worker says so when it has loaded its model; the port alone shows only one of them.
        begun = loaded(service)
        until(lambda: loaded(service) >= begun + 2 and service.ready(), service.log, alive=service.supervisor)
        yield service


@pytest.fixture(scope="module")
def standing(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests that leave it standing."""
    with answering(bento, tmp_path_factory.mktemp("standing")) as service:
        yield service


def test_sigterm_answers_what_was_accepted_and_refuses_what_comes(bento: Path, body: bytes, tmp_path: Path) -> None:
    with answering(bento, tmp_path) as service, half_asked(service, body) as rest, Load(service, body) as load:
        until(lambda: load.answers[200] > 50, service.log)
        begun = time.monotonic()
        service.supervisor.terminate()
        until(lambda: load.answers[503] > 5, service.log, 5)
        # The worker that owes an answer goes on accepting; the other one may be through.
        refused = service.ask("POST", "/predict", body)
        assert (refused.status, refused.getheader("Retry-After")) == (503, "1")
        assert json.loads(refused.told)["detail"][0]["type"] == "draining"  # type: ignore[attr-defined]
        assert not service.ready()
        assert service.ask("GET", "/livez").status == 200
        status, told = rest()
        assert (status, told["version"]) == (200, 3), "accepted before the signal, complete long after it"
        service.supervisor.wait(30)
        assert time.monotonic() - begun < 30
        load.stop()
    assert load.lost_before(begun) == []
    assert set(load.answers) == {200, 503}


@pytest.mark.prove
def test_what_never_completes_does_not_hold_the_end_up_after_ctrl_c(bento: Path, body: bytes, tmp_path: Path) -> None:
    with answering(bento, tmp_path) as service, half_asked(service, body):
        begun = time.monotonic()
        service.supervisor.send_signal(signal.SIGINT)
        service.supervisor.wait(240)
        assert 15 < time.monotonic() - begun < 30
        assert "1 requests are given up" in service.log.read_text()


def test_a_killed_worker_is_replaced_while_the_other_answers(standing: Service, body: bytes) -> None:
    killed, other = standing.workers()
    begun = loaded(standing)
    killed.kill()
    assert standing.ask("POST", "/predict", body).status == 200
    until(lambda: len(standing.workers()) == 2 and killed not in standing.workers(), standing.log, 10)
    assert other in standing.workers()
    until(lambda: loaded(standing) == begun + 1, standing.log)


def test_hostile_requests_are_the_caller_s_fault_and_cost_no_memory(standing: Service, body: bytes) -> None:
    before = sum(worker.memory_info().rss for worker in standing.workers())
    for _ in range(20):
        assert flood(standing.port) in ("431", "reset")
    assert large(standing.port) == 413
    utf16 = {"Content-Type": "application/json; charset=utf-16"}
    assert standing.ask("POST", "/predict", body.decode().encode("utf-16"), **utf16).status == 422
    assert sum(worker.memory_info().rss for worker in standing.workers()) - before < 200 * 2**20
    assert standing.ask("POST", "/predict", body).status == 200


def test_workers_end_with_their_supervisor_and_the_same_command_starts(
    bento: Path, body: bytes, tmp_path: Path
) -> None:
    with answering(bento, tmp_path) as service, Load(service, body) as load:
        until(lambda: load.answers[200] > 50, service.log)
        workers = service.workers()
        service.supervisor.kill()
        # At once, as systemd would: the port is still held, and waited for.
        with served(bento, tmp_path, port=service.port) as again:
            # How soon is shown by the proof below, and by the bounds that test_lifecycle.py holds to each other.
            until(lambda: ended(workers), service.log)
            until(again.ready, again.log)
            assert again.ask("POST", "/predict", body).status == 200
        load.stop()


def test_a_port_that_is_taken_is_refused(bento: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, told = refused(bento, tmp_path, "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "is taken by another process: end it, or give another --port" in told
    assert "Traceback" not in told


def test_bad_starts_are_refused_in_one_sentence(bento: Path, tmp_path: Path) -> None:
    cert, _ = pair(tmp_path)
    (tmp_path / "other").mkdir()
    _, key = pair(tmp_path / "other")
    for sentence, options, variables in (
        ("the key is not the certificate's", ["--ssl-certfile", cert, "--ssl-keyfile", key], {}),
        ("a whole number from 1 to 64", [], {"GAUNTLET_WORKERS": "many"}),
        ("a whole number from 1 to 64", ["--api-workers", "0"], {}),
    ):
        code, told = refused(bento, tmp_path, "--port", str(free_port()), *options, **variables)
        assert (code, sentence in told, "Traceback" in told) == (1, True, False), told


def test_tls_files_encrypt(bento: Path, body: bytes, tmp_path: Path) -> None:
    cert, key = pair(tmp_path)
    with served(bento, tmp_path, "--ssl-certfile", cert, "--ssl-keyfile", key, workers=1) as service:
        trust = ssl.create_default_context(cafile=cert)

        def answered() -> bool:
            connection = http.client.HTTPSConnection("127.0.0.1", service.port, timeout=30, context=trust)
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                return connection.getresponse().status == 200
            except OSError:  # nobody answers yet
                return False
            finally:
                connection.close()

        until(answered, service.log)
        assert not service.ready(), "nothing is answered in the clear"


@pytest.mark.prove
@pytest.mark.timeout(1_800)
def test_killed_twenty_times_under_load(
    bento: Path, body: bytes, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    port, rounds, slowest = free_port(), 10, 0.0
    ids: list[str] = []
    for number in range(rounds):
        with answering(bento, tmp_path, port) as service, Load(service, body) as load:
            until(lambda load=load: load.answers[200] > 100, service.log)  # type: ignore[misc]
            begun = loaded(service)
            service.workers()[0].kill()
            until(lambda begun=begun, service=service: loaded(service) > begun, service.log)  # type: ignore[misc]
            workers, killed = service.workers(), time.monotonic()
            for victim in [service.supervisor, *(workers if number % 2 else ())]:
                victim.kill()
            until(lambda workers=workers: ended(workers), service.log, 10)  # type: ignore[misc]
            slowest = max(slowest, time.monotonic() - killed)
            load.stop()
            ids += load.ids
            assert set(load.answers) <= {200, 503}
    assert len(set(ids)) == len(ids)
    assert set(find(f"sqlite:///{tmp_path / 'gauntlet.db'}", ids)) == set(ids)
    assert slowest < 2 + SLACK
    told = f"{len(ids):,} answered ids, all in the log; started again each time; workers gone after {slowest:.1f} s"
    proof("`kill -9` under load: 10 of a worker, 5 of the supervisor, 5 of all processes", 2 * rounds, told)


SLACK = 1.0  # seconds that a busy machine may take besides


class Load:
    """Four clients that ask one request after the other, each on a connection of its own, until `stop`.

    Attributes:
        answers: How many answers of each status there were.
        ids: Ids of the predictions that were answered with 200.
    """

    def __init__(self, service: Service, body: bytes) -> None:
        self.answers: Counter[int] = Counter()
        self.ids: list[str] = []
        self._lost: list[tuple[float, str]] = []
        self._service, self._body = service, body
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; all clients have got their last answer."""
        self._stop.set()
        for client in self._clients:
            client.join(60)

    def lost_before(self, moment: float) -> list[str]:
        """What became of requests that were sent before a moment and never answered."""
        return [why for sent, why in self._lost if sent < moment]

    def _ask(self) -> None:
        while not self._stop.is_set():
            sent = time.monotonic()
            try:
                response = self._service.ask("POST", "/predict", self._body)
            except (OSError, http.client.HTTPException) as error:
                self._lost.append((sent, repr(error)))
                self._stop.wait(0.02)
                continue
            if response.status == 200:
                self.ids.append(json.loads(response.told)["prediction_id"])  # type: ignore[attr-defined]
            self.answers[response.status] += 1


@contextmanager
def half_asked(service: Service, body: bytes) -> Iterator[Callable[[], tuple[int, dict[str, object]]]]:
    """A request of which half is sent, and certainly accepted; yields what sends the rest and gives the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=40)
    connection.putrequest("POST", "/predict")
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Expect": "100-continue",
    }.items():
        connection.putheader(name, value)
    connection.endheaders()
    # The service says that it waits for the body: it has taken the request on.
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100")
    connection.send(body[:10])

    def rest() -> tuple[int, dict[str, object]]:
        connection.send(body[10:])
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    try:
        yield rest
    finally:
        connection.close()


def loaded(service: Service) -> int:
    """How often a worker said that it loaded its model."""
    return service.log.read_text(errors="replace").count("Service Gauntlet initialized")


def ended(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them runs any more; whoever inherits them may not have asked for their end yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)
    return False  # ended just now: asked again


def flood(port: int) -> str:
    """What 5,000 headers are answered with; the answer may be overtaken by the reset of what is still being sent."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        try:
            client.sendall(b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n")
            told = client.recv(1_000)
        except OSError:
            return "reset"
    return told[9:12].decode() or "reset"


def large(port: int) -> int:
    """Status of a body of 100 MB, most of which is never read."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        head = "POST /predict HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
        client.sendall(head.encode())
        for _ in range(80):
            client.sendall(b" " * 1_000_000)
        return int(client.recv(1_000)[9:12])


def refused(bento: Path, folder: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Exit code and words of a `bentoml serve` that ends by itself."""
    command = [sys.executable, "-m", "bentoml", "serve", str(bento), *options]
    environment = apart(folder / "home") | variables
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=READY_SECONDS, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def until(
    done: Callable[[], object], log: Path, seconds: float = READY_SECONDS, alive: psutil.Process | None = None
) -> None:
    """Wait until something is so, no longer than a process lives."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline and (alive is None or alive.is_running()), said(log)
        time.sleep(0.02)


def said(log: Path) -> str:
    """The end of what a server said."""
    return log.read_text(errors="replace")[-3_000:] if log.exists() else os.strerror(2)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
