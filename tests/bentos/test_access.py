"""Who is answered: the middleware around an app, then a real `bentoml serve` that other machines could reach."""

import asyncio
import http.client
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from bentos import access as module
from bentos.access import Access, is_loopback
from bentos.access_log import AccessLog
from bentos.desk import Desk
from bentos.fleet import Fleet
from bentos.front import Front
from bentos.messages import Refusal
from bentos.metrics import metrics
from bentos.release import Release
from models.errors import ConfigError
from stacks import keys
from stacks.home import clone_dir
from stacks.ledger import Ledger
from stacks.orchestrator.tether import tethered
from steps.apart import apart
from steps.build import build_bento, unpack
from tests.bentos.samples import write

LOCAL, REMOTE = "127.0.0.1", "192.0.2.7"
PRIVATE = "Zq7-private"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Service:
    """An app behind the middleware, on a database and a clock of its own."""

    database: Path
    seconds: float = 1_000.0
    late: timedelta = timedelta()
    access: Access = field(init=False)

    def __post_init__(self) -> None:
        self.access = Access(clock=lambda: self.seconds, now=lambda: datetime.now(UTC) + self.late)

    @property
    def ledger(self) -> Ledger:
        return Ledger(f"sqlite:///{self.database}")

    def add(self, name: str, role: str = "predict", **options: Any) -> str:
        _, secret = keys.add(name, role, ledger=self.ledger, **options)
        self.passes(1)
        return secret

    def passes(self, seconds: float) -> None:
        """Let time pass and have the keys read again, as the service does every second."""
        self.seconds += seconds
        self.access.refresh()

    def ask(self, path: str = "/predict", client: str | None = LOCAL, key: str = "", **headers: str) -> Answer:
        """Ask over ASGI, with a key in the way that most clients show it."""
        sent = {"authorization": f"Bearer {key}"} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": (client, 5) if client else None,
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        }
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        asyncio.run(Front(_hello, self.access, Desk(Fleet()))(scope, receive, send))
        told = {name.decode().lower(): value.decode() for name, value in said[0]["headers"]}
        return Answer(said[0]["status"], told, b"".join(part.get("body", b"") for part in said[1:]).decode())


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'keys.db'}")
    return Service(tmp_path / "keys.db")


def _reason(answer: Answer) -> str:
    return Refusal.model_validate_json(answer.text).detail[0].type


def test_without_keys_only_this_machine_is_answered(service: Service) -> None:
    assert service.ask(client=LOCAL).status == service.ask(client="::1").status == 200
    assert service.ask(client="::ffff:127.0.0.1").status == 200
    for client in (REMOTE, "2001:db8::1", "::ffff:192.0.2.7", "testclient", None):
        answer = service.ask(client=client)
        assert (answer.status, _reason(answer)) == (403, "not_local")
        assert "gauntlet key add NAME --role predict" in answer.text


def test_without_a_database_nothing_of_it_is_imported(tmp_path: Path) -> None:
    script = """
import sys
from bentos.access import Access
scope = {"type": "http", "path": "/predict", "headers": []}
access = Access()
access.refresh()
print(access.judge({**scope, "client": ("127.0.0.1", 1)}), access.judge({**scope, "client": ("192.0.2.7", 1)}).status)
print(sorted({"sqlalchemy", "filelock", "psycopg", "stacks.keys"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=clone_dir(), env=apart(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout == "None 403\n[]\n"


def test_from_the_first_key_on_everybody_shows_one(service: Service) -> None:
    assert service.ask().status == 200
    secret = service.add("shop")
    for client in (LOCAL, REMOTE):
        refused = service.ask(client=client)
        assert (refused.status, _reason(refused), refused.headers["www-authenticate"]) == (401, "no_key", "Bearer")
        assert service.ask(client=client, key=secret).status == 200
        assert service.ask(client=client, x_api_key=secret).status == 200
        assert service.ask(client=client, authorization=f"bearer   {secret} ").status == 200


@pytest.mark.parametrize("shown", ["gk_", "gk_nobody99_x", "hunter2", "Ünicode", "x" * 60_000])
def test_a_key_that_is_none_is_401(service: Service, shown: str) -> None:
    service.add("shop")
    for answer in (service.ask(key=shown), service.ask(x_api_key=shown)):
        assert (answer.status, _reason(answer)) == (401, "unknown_key")
    assert service.ask(authorization=f"Basic {shown}").status == 401


def test_expired_and_revoked_keys_are_401(service: Service) -> None:
    brief = service.add("brief", valid_for=timedelta(hours=1))
    ended = service.add("ended")
    assert service.ask(key=brief).status == service.ask(key=ended).status == 200
    keys.revoke("ended", ledger=service.ledger)
    service.passes(1)
    assert _reason(service.ask(key=ended)) == "revoked_key"
    service.late = timedelta(hours=2)
    answer = service.ask(key=brief)
    assert (answer.status, _reason(answer)) == (401, "expired_key")
    assert service.ask().status == 401, "what an expired key closed is not opened by its expiry"


def test_the_last_key_revoked_opens_nothing_itself(service: Service) -> None:
    secret = service.add("shop")
    keys.revoke("shop", ledger=service.ledger)
    service.passes(1)
    assert service.ask().status == 200
    assert service.ask(authorization="Basic abc").status == 200
    assert _reason(service.ask(key=secret)) == "revoked_key"
    assert service.ask(client=REMOTE, key=secret).status == 403


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/predict", {"predict", "admin"}),
        ("/predict/batch", {"predict", "admin"}),
        ("/models/wine/predict", {"predict", "admin"}),
        ("/docs.json", {"predict", "admin"}),
        ("/openapi.json", {"predict", "admin"}),
        ("/", {"predict", "admin"}),
        ("/no/such/outcomes", {"predict", "admin"}),
        ("/predict\n/outcomes", {"predict", "admin"}),
        ("/outcomes", {"outcome", "admin"}),
        ("/outcomes/late", {"outcome", "admin"}),
        ("/models/wine/outcomes", {"outcome", "admin"}),
        ("/health", {"predict", "outcome", "admin"}),
        ("/metrics", {"predict", "outcome", "admin"}),
    ],
)
def test_roles(service: Service, path: str, may: set[str]) -> None:
    for role in ("predict", "outcome", "admin"):
        answer = service.ask(path, REMOTE, service.add(role, role))
        assert answer.status == (200 if role in may else 403)
        assert role in may or _reason(answer) == "role"


def test_probes_are_always_answered_and_metrics_to_this_machine(service: Service, tmp_path: Path) -> None:
    for state in ("no keys", "keys", "away"):
        assert service.ask("/livez", REMOTE).status == service.ask("/readyz", REMOTE, "gk_bad").status == 200, state
        assert service.ask("/metrics", LOCAL).status == 200
        assert service.ask("/metrics", REMOTE).status == {"no keys": 403, "keys": 401, "away": 503}[state]
        for near in ("/livez/", "/livez/../predict", "//livez", "/healthz"):
            assert service.ask(near, REMOTE).status != 200
        if state == "no keys":
            service.add("shop")
        elif state == "keys":
            (tmp_path / "keys.db").unlink()
            service.passes(61)


def test_a_proxy_on_this_machine_is_not_this_machine(service: Service) -> None:
    for name in ("x_forwarded_for", "forwarded", "x_real_ip"):
        assert service.ask(client=LOCAL, **{name: "127.0.0.1"}).status == 403


def test_a_key_s_rate_is_its_own_and_refills(service: Service) -> None:
    slow, fast = service.add("slow", rate=6), service.add("fast", rate=None)
    assert [service.ask(key=slow).status for _ in range(8)] == [200] * 6 + [429] * 2
    answer = service.ask(key=slow)
    assert (_reason(answer), answer.headers["retry-after"]) == ("rate", "10")
    assert {service.ask(key=fast).status for _ in range(50)} == {200}
    service.passes(4)
    assert service.ask(key=slow).headers["retry-after"] == "6"
    service.passes(6)
    assert [service.ask(key=slow).status for _ in range(2)] == [200, 429]
    service.passes(3_600)
    assert [service.ask(key=slow).status for _ in range(7)] == [200] * 6 + [429]


def test_without_the_database_what_was_read_last_holds_for_a_minute(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = service.add("shop")
    away = (tmp_path / "keys.db").rename(tmp_path / "away.db")
    for _ in range(59):
        service.passes(1)
        assert (service.ask(key=secret).status, service.ask().status) == (200, 401)
    service.passes(2)
    answer = service.ask(key=secret)
    assert (answer.status, _reason(answer), answer.headers["retry-after"]) == (503, "keys_away", "5")
    assert service.ask(client=LOCAL).status == 503
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1, "an outage is said once"
    away.rename(tmp_path / "keys.db")
    service.passes(1)
    assert service.ask(key=secret).status == 200


def test_a_database_that_never_answered_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", "postgresql://me:hunter2@127.0.0.1:1/x")
    service = Service(tmp_path / "none.db")
    assert service.ask().status == service.ask(key="gk_nobody99_x").status == 503
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        service.access.refuse_address("0.0.0.0")
    assert "hunter2" not in str(caught.value)


def test_a_missing_package_is_an_outage_and_no_open_door(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stacks.keys", None)
    assert service.ask().status == 503


def test_refusals_repeat_nothing_and_are_counted(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken_down = AccessLog(str(tmp_path / "access.log"))
    monkeypatch.setattr("bentos.front.access_log", lambda: taken_down)
    secret = service.add("shop", "outcome", rate=1)
    before = _counted()
    path = f"/predict/{PRIVATE}"
    answers = [service.ask(path, key=secret), service.ask(path, key=secret), service.ask(path, key=secret[:-1])]
    answers += [service.ask(path, REMOTE), service.ask(f"/{PRIVATE}", x_api_key=PRIVATE)]
    assert [answer.status for answer in answers] == [403, 429, 401, 401, 401]
    for answer in answers:
        assert not [part for part in (secret[12:-1], secret[:11], PRIVATE) if part in answer.text]
        assert Refusal.model_validate_json(answer.text).detail[0].msg
    taken_down.flush()
    text = (tmp_path / "access.log").read_text()
    lines = [(line["status"], line["refusal"], line["key"]) for line in map(json.loads, text.splitlines())]
    assert lines[:2] == [(403, "role", "shop"), (429, "rate", "shop")]
    assert lines[4] == (401, "unknown_key", "-")
    assert len(lines) == 5
    assert not [part for part in (secret[3:11], secret[12:-1], PRIVATE, REMOTE) if part in text + caplog.text]
    more = {reason: count - before.get(reason, 0) for reason, count in _counted().items()}
    assert {reason: count for reason, count in more.items() if count} == {
        "role": 1,
        "rate": 1,
        "unknown_key": 2,
        "no_key": 1,
    }


def test_a_database_that_comes_to_be_refuses_nobody_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction log makes it, while requests come: a reader that has read nothing yet says nothing."""
    monkeypatch.setenv("GAUNTLET_DATABASE", "")
    monkeypatch.setenv("GAUNTLET_HOME", str(tmp_path))
    access, judged = Access(), list[Any]()
    scope = {"type": "http", "path": "/predict", "client": (LOCAL, 5), "headers": []}
    access.refresh()
    Ledger(f"sqlite:///{tmp_path / 'gauntlet.db'}").append("keep", "wine", 1)
    read = keys.KeyReader.refresh
    monkeypatch.setattr(keys.KeyReader, "refresh", lambda self: (judged.append(access.judge(scope)), read(self)))
    access.refresh()
    assert judged == [None]
    assert access.judge(scope) is None


def _counted() -> dict[str, float]:
    metrics()
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {s.labels["reason"]: s.value for s in samples if s.name == "gauntlet_refusals_total"}


def test_websockets_are_refused_too(service: Service) -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "websocket", "path": "/predict", "client": (REMOTE, 5), "headers": []}
    asyncio.run(Front(_hello, service.access, Desk(Fleet()))(scope, send, send))  # type: ignore[arg-type]
    assert said == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_an_address_that_others_reach_needs_a_key(service: Service, host: str, local: bool) -> None:
    assert is_loopback(host) == local
    if local:
        service.access.refuse_address(host)
        return
    with pytest.raises(ConfigError, match="gauntlet key add NAME --role predict"):
        service.access.refuse_address(host)
    service.add("brief", valid_for=timedelta(hours=1))
    service.access.refuse_address(host)
    service.late = timedelta(hours=2)
    with pytest.raises(ConfigError, match="no access key"):
        service.access.refuse_address(host)


def test_the_keys_are_followed_every_second(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []

    class Enough(Exception):
        pass

    def sleep(seconds: float) -> None:
        read.append(seconds)
        if len(read) == 3:
            raise Enough

    monkeypatch.setattr(module.time, "sleep", sleep)
    with pytest.raises(Enough):
        service.access._follow()
    assert read == [1.0] * 3


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked Bento of wine."""
    folder = tmp_path_factory.mktemp("bento")
    release = write(folder / "release", "wine", "logistic_regression")
    return unpack(build_bento(release.directory, "wine", 3, {}, folder), folder / "wine")


@dataclass(frozen=True)
class Server:
    """A real one, reached over the loopback."""

    port: int

    def ask(self, method: str, path: str, key: str = "", body: Any = None, **more: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json", **more} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@contextmanager
def _served(bento: Path, home: Path, database: Path) -> Iterator[Server]:
    """Serve on every address, with a log in `home`; ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(int(probe.getsockname()[1]))
    command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "0.0.0.0", "--port", str(server.port)]
    environment = apart(home) | {"GAUNTLET_DATABASE": f"sqlite:///{database}", "GAUNTLET_ACCESS_LOG": "-"}
    log = home / "server.log"
    with (
        log.open("wb") as output,
        tethered(command, env=environment, cwd=home, stdout=output, stderr=output) as process,
    ):
        _until(lambda: process.poll() is not None or _ready(server), 90, log)
        assert process.poll() is None, log.read_text()
        yield server


def _ready(server: Server) -> bool:
    try:
        return server.ask("GET", "/readyz")[0] == 200
    except OSError:
        return False


def _until(done: Callable[[], bool], seconds: float, log: Path) -> None:
    """Wait until something is so; fails when it does not come about."""
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < seconds, log.read_text()[-3000:]
        time.sleep(0.02)


def test_on_every_address_it_does_not_start_without_a_key(bento: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'keys.db'}"
    with socket.socket() as taken:
        # A port that cannot be opened: had the service tried, it would have said so.
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "bentoml", "serve", str(bento), "--port", port]
        for option, variables in ((["--host", "0.0.0.0"], {}), ([], {"BENTOML_HOST": "::"})):
            done = subprocess.run(
                [*command, *option],
                cwd=tmp_path,
                env=apart(tmp_path / "home") | {"GAUNTLET_DATABASE": database, **variables},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            said = " ".join((done.stdout + done.stderr).split())
            assert done.returncode == 1
            assert "gauntlet key add NAME --role predict" in said
            assert "in use" not in said and "Traceback" not in said


def test_a_real_service_asks_for_keys_and_obeys_a_revocation(bento: Path, tmp_path: Path) -> None:
    database, home = tmp_path / "keys.db", tmp_path / "home"
    home.mkdir()
    ledger = Ledger(f"sqlite:///{database}")
    (_, shop), (_, late) = (keys.add(name, role, ledger=ledger) for name, role in (("a", "predict"), ("b", "outcome")))
    row = {"features": Release.open(bento / "src/release").golden[0].inputs}
    with _served(bento, home, database) as server:
        assert server.ask("GET", "/livez")[0] == server.ask("GET", "/readyz")[0] == 200
        for path in ("/health", "/docs.json", "/openapi.json", "/schema.json", "/"):
            assert server.ask("GET", path)[0] == 401, path
        assert server.ask("GET", "/docs.json", shop)[0] == server.ask("GET", "/health", late)[0] == 200
        assert server.ask("POST", "/predict", body=row)[0] == 401
        assert server.ask("POST", "/predict", late, row)[0] == 403
        status, told = server.ask("POST", "/predict", shop, row)
        assert (status, "prediction" in told) == (200, True), told
        keys.revoke("a", ledger=ledger)
        _until(lambda: server.ask("POST", "/predict", shop, row)[0] == 401, 60, home / "server.log")
        status, told = server.ask("GET", "/metrics")
        counted = {line.split()[0] for line in told.splitlines() if line.startswith("gauntlet_refusals_total{")}
        assert (status, 'gauntlet_refusals_total{reason="revoked_key"}' in counted) == (200, True), counted
        remote = {"X-Forwarded-For": REMOTE}  # as a proxy on this machine says it
        assert [server.ask("GET", "/metrics", key, **remote)[0] for key in ("", shop, late)] == [401, 401, 200]
        assert server.ask("GET", "/readyz", **remote)[0] == 200
    said = (home / "server.log").read_text()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert (403, "role", "b") in {(line["status"], line["refusal"], line["key"]) for line in lines}
    assert not [key for key in (shop, late) if key[12:] in said]
