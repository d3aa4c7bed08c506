"""A real service and what it depends on: what its database keeps, and what happens while a store is away."""

import errno
import functools
import os
import secrets
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from email.message import Message
from http.client import HTTPException
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from bentos.outcomes import read_outcomes
from bentos.prediction_log import keyed, new_id
from bentos.predictions import Prediction, find
from bentos.release import Release
from stacks import keys
from stacks.ledger import Ledger
from tests.bentos.following import Clients, Service, crown, following, is_ready, pids_of
from tests.bentos.samples import config_of, write
from tests.databases import POSTGRES, files_holding, postgres_schema

pytestmark = pytest.mark.timeout(600)

WINE, EASY = "/models/wine", "/models/easy"
TRACE = "0af7651916cd43dd8448eb211c80319c"
EVER = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A model that answers only what its log keeps."""
    return write(tmp_path_factory.mktemp("registry") / "wine", "wine", "logistic_regression")


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same model, which answers whether its log keeps it or not."""
    config = config_of("wine")
    log = config.serving.log.model_copy(update={"mode": "best_effort"})
    serving = config.serving.model_copy(update={"log": log})
    config = config.model_copy(update={"name": "easy", "serving": serving})
    return write(tmp_path_factory.mktemp("registry") / "easy", "wine", "logistic_regression", config=config)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the database lies: a small file system, where one can be mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def service(wine: Release, easy: Release, disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One that serves both, for all tests of SQLite; they leave it as it was."""
    ledger = Ledger(f"sqlite:///{disk / 'gauntlet.db'}")
    for release in (wine, easy):
        crown(ledger, 1, release)
    home = tmp_path_factory.mktemp("home")
    with following(home, f"sqlite:///{disk / 'gauntlet.db'}", GAUNTLET_ACCESS_LOG=str(home / "access.log")) as running:
        running.until(lambda: is_ready(running), 180)
        for path in (WINE, EASY):
            running.until(lambda path=path: running.versions(f"{path}/health") == {1})  # type: ignore[misc]
        yield running


def row(release: Release, **more: Any) -> dict[str, Any]:
    """A request that is answered."""
    return {"features": release.golden[0].inputs, **more}


def predicted(service: Service, release: Release, **headers: str) -> Prediction:
    """What the log holds of a prediction that was just answered."""
    status, told = service.ask("POST", f"{WINE}/predict", row(release, entity="patient-4711"), **headers)
    assert status == 200, told
    return find(service.database, [told["prediction_id"]])[told["prediction_id"]]


def total(service: Service, name: str, **labels: str) -> float:
    """A counter's sum on the page of metrics."""
    page = service.ask("GET", "/metrics")[1]
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_outcomes_are_taken_once_and_contradictions_reported(service: Service, wine: Release) -> None:
    def told(*items: tuple[str, Any], path: str = WINE) -> dict[str, int]:
        data = [{"prediction_id": identity, "outcome": outcome} for identity, outcome in items]
        status, report = service.ask("POST", f"{path}/outcomes", data)
        assert status == 200, report
        return {kind: count for kind, count in report.items() if count and not kind.endswith("_ids")}

    one, other = wine.schema.labels[:2]
    single = predicted(service, wine).id
    batch = service.ask("POST", f"{WINE}/predict/batch", {"instances": [wine.golden[0].inputs] * 2})[1]["predictions"]
    second = batch[1]["prediction_id"]
    assert told((single, one), (second, other)) == {"recorded": 2}
    assert told((single, one), (second, other)) == {"repeated": 2}
    assert told((single, other)) == {"recorded": 1, "contradicted": 1}
    assert told((new_id(time.time()), one)) == {"unknown": 1}
    assert told((second, "no such label")) == {"unacceptable": 1}
    assert told((second, other), path=EASY) == {"unacceptable": 1}, "it is another model's prediction"
    kept = [(outcome.prediction_id, outcome.outcome) for outcome in read_outcomes(service.database, "wine", *EVER)]
    assert kept == [(single, one), (single, other), (second, other)]
    assert service.ask("POST", f"{WINE}/outcomes", [{"prediction_id": single}])[0] == 422


def test_a_key_for_outcomes_opens_nothing_else(service: Service, wine: Release) -> None:
    ledger, identity = Ledger(service.database), predicted(service, wine).id
    asked = {"predict": row(wine), "outcomes": [{"prediction_id": identity, "outcome": wine.schema.labels[0]}]}

    def statuses(**headers: str) -> set[int]:
        return {service.ask("POST", f"{WINE}/predict", asked["predict"], **headers)[0] for _ in range(8)}

    made = {role: keys.add(f"for-{role}", role, ledger=ledger)[1] for role in ("outcome", "predict")}
    try:
        for secret, wanted in ((made["predict"], {200}), (made["outcome"], {403}), ("", {401})):
            service.until(lambda s=secret, w=wanted: statuses(Authorization=f"Bearer {s}") == w, 10)  # type: ignore[misc]
        for role, status in (("outcome", 200), ("predict", 403)):
            bearer = f"Bearer {made[role]}"
            assert service.ask("POST", f"{WINE}/outcomes", asked["outcomes"], Authorization=bearer)[0] == status
    finally:
        for role in made:
            keys.revoke(f"for-{role}", ledger=ledger)
    # That a worker looks every second is shown in test_access.py.
    service.until(lambda: statuses(Authorization=f"Bearer {made['predict']}") == {401})
    service.until(lambda: statuses() == {200})


def test_the_record_holds_the_trace_and_of_the_entity_a_hash(service: Service, wine: Release, disk: Path) -> None:
    record = predicted(service, wine, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert (record.trace, record.entity) == (TRACE, keyed("patient-4711"))
    files = [*disk.glob("gauntlet.db*"), service.said, service.said.with_name("access.log")]
    assert files_holding(TRACE, *files), "they are the files where it would be"
    assert files_holding("patient-4711", *files) == []


def test_the_metrics_of_both_workers_add_up(service: Service, wine: Release) -> None:
    of = {"model": "wine", "route": "predict", "status": "200"}

    def shares() -> list[float]:
        """What each worker counted, from the file of each."""
        told = []
        for path in service.said.parent.glob("prometheus_multiproc_dir/counter_*.db"):
            families = MultiProcessCollector.merge([str(path)], accumulate=True)  # type: ignore[no-untyped-call]
            samples = [sample for family in families for sample in family.samples]
            told.append(
                sum(s.value for s in samples if s.name == "gauntlet_requests_total" and of.items() <= s.labels.items())
            )
        return told

    before = total(service, "gauntlet_requests_total", **of)
    asked = 0

    def both() -> bool:
        nonlocal asked
        asked += 1
        assert service.ask("POST", f"{WINE}/predict", row(wine))[0] == 200
        return len([share for share in shares() if share]) == 2

    service.until(both)
    # A worker counts after the answer has left.
    service.until(lambda: sum(shares()) == before + asked, 5)
    assert {total(service, "gauntlet_requests_total", **of) for _ in range(8)} == {before + asked}


def test_a_worker_that_takes_the_place_of_a_dead_one_refuses_nothing(service: Service, wine: Release) -> None:
    started, broken, answered = "Service Gauntlet initialized", 0, 0
    begun = service.said.read_text().count(started)
    os.kill(pids_of(service, "_bentoml_impl.worker.service")[0], signal.SIGKILL)
    after: int | None = None
    while after is None or answered < after + 20:
        try:
            status, told = service.ask("POST", f"{WINE}/predict", row(wine))
        except (OSError, HTTPException):  # it was this connection that the dead one had
            broken += 1
            assert broken < 10
            continue
        assert status == 200, told
        answered += 1
        if after is None and service.said.read_text().count(started) > begun:
            after = answered
        assert answered < 5_000, service.said.read_text()


def away_and_back(service: Service, base: str, release: Release, outage: AbstractContextManager[object]) -> int:
    """Have a log go away under load and come back; how many predictions were answered, all of them in the log."""

    def logs() -> set[str]:
        return {service.ask("GET", f"{base}/health")[1]["log"] for _ in range(8)}

    # So many that each worker has some: one that nobody asks does not notice.
    with Clients(service.port, f"{base}/predict", [release.golden[0].inputs], 16, pause=0.05) as asking:
        service.until(lambda: len(asking.seen) > 20)
        with outage:
            service.until(lambda: logs() == {"unavailable"}, 40)
            _require_away(service.exchange("POST", f"{base}/predict", row(release)))
            assert is_ready(service), "the model is; a restart would not bring the log back"
        # Answers to all of them in a row: whoever asks has one connection, and so one worker.
        service.until(lambda: logs() == {"ok"} and {answer.status for answer in asking.seen[-80:]} == {200}, 20)
        back = time.time()
        service.until(lambda: sum(answer.sent > back for answer in asking.seen) > 20)
    assert {answer.status for answer in asking.seen} == {200, 503}
    assert {answer.status for answer in asking.seen if answer.sent > back} == {200}
    ids = {answer.body["prediction_id"] for answer in asking.seen if answer.status == 200}
    assert set(find(service.database, ids)) == ids
    return len(ids)


def _require_away(answer: tuple[int, Any, Message]) -> None:
    status, told, headers = answer
    assert (status, headers["Retry-After"], told["detail"][0]["type"]) == (503, "2", "log_unavailable"), told


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another writer holds the lock of an SQLite file."""
    other = sqlite3.connect(file, isolation_level=None, timeout=30)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """No byte is left on a disk."""
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(4_096)):
                pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
    try:
        yield
    finally:
        filler.unlink()


def test_a_database_that_another_holds_is_waited_for_and_then_said(service: Service, wine: Release, disk: Path) -> None:
    failures = total(service, "gauntlet_log_failures_total")
    assert away_and_back(service, WINE, wine, locked(disk / "gauntlet.db")) > 20
    assert total(service, "gauntlet_log_failures_total") > failures
    outcome = [{"prediction_id": new_id(time.time()), "outcome": wine.schema.labels[0]}]
    with locked(disk / "gauntlet.db"):
        _require_away(service.exchange("POST", f"{WINE}/outcomes", outcome))
    assert service.ask("POST", f"{WINE}/outcomes", outcome)[0] == 200


def test_a_full_disk_is_said_and_got_over(service: Service, wine: Release, disk: Path) -> None:
    if not os.path.ismount(disk):
        pytest.skip("a file system that can be filled cannot be mounted here")
    assert away_and_back(service, WINE, wine, full(disk)) > 20
    assert "full" in service.said.read_text()


def test_best_effort_goes_on_and_counts_what_it_lost(service: Service, easy: Release, disk: Path) -> None:
    def lost() -> float:
        return total(service, "gauntlet_log_lost_total")

    def answered() -> str:
        status, told = service.ask("POST", f"{EASY}/predict", row(easy))
        assert status == 200, told
        return str(told["prediction_id"])

    before = lost()
    with locked(disk / "gauntlet.db"):
        ids = [answered() for _ in range(10)]
        service.until(lambda: lost() == before + 10, 30)
    assert find(service.database, ids) == {}
    service.until(lambda: bool(find(service.database, [answered()])), 20)


@pytest.fixture
def account() -> Iterator[tuple[str, str]]:
    """A user of PostgreSQL and the URL of a schema of its own."""
    for url in postgres_schema():
        name, password = url.rpartition("%3D")[2], secrets.token_hex(8)
        _execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'", f"GRANT ALL ON SCHEMA {name} TO {name}")
        try:
            own = sa.make_url(url).set(username=name, password=password)
            yield name, own.render_as_string(hide_password=False)
        finally:
            _execute(f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


@contextmanager
def shut_out(user: str) -> Iterator[None]:
    """PostgreSQL ends a user's connections and takes no new ones."""
    gone = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'"
    _execute(f"ALTER ROLE {user} NOLOGIN")
    _execute(gone)
    try:
        yield
    finally:
        _execute(f"ALTER ROLE {user} LOGIN")


def _execute(*statements: str) -> None:
    engine = sa.create_engine(POSTGRES, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def test_postgresql_goes_away_and_comes_back(wine: Release, account: tuple[str, str], tmp_path: Path) -> None:
    user, url = account
    crown(Ledger(url), 1, wine)
    outcome = [{"prediction_id": new_id(time.time()), "outcome": wine.schema.labels[0]}]
    with following(tmp_path, url, GAUNTLET_SERVE="wine", GAUNTLET_ACCESS_LOG="off") as service:
        service.until(lambda: is_ready(service) and service.versions() == {1}, 180)
        assert away_and_back(service, "", wine, shut_out(user)) > 20
        with shut_out(user):
            _require_away(service.exchange("POST", "/outcomes", outcome))
        assert service.ask("POST", "/outcomes", outcome)[0] == 200
        assert str(sa.make_url(url).password) not in service.said.read_text()


@pytest.mark.prove
def test_an_artifact_store_that_is_away_at_the_start_is_asked_until_it_is_back(wine: Release, tmp_path: Path) -> None:
    serve = functools.partial(SimpleHTTPRequestHandler, directory=wine.directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), serve, bind_and_activate=False) as store:
        # Bound and not listening: who connects is refused, and nobody else gets the port.
        store.server_bind()
        uri = f"http://127.0.0.1:{store.server_address[1]}"
        crown(Ledger(f"sqlite:///{tmp_path / 'gauntlet.db'}"), 1, wine, uri=uri)
        with following(tmp_path, workers=1, GAUNTLET_SERVE="wine") as service:
            service.until(lambda: "cannot be fetched from where it was registered" in service.said.read_text(), 180)
            assert not is_ready(service)
            assert service.ask("GET", "/livez")[0] == 200
            assert service.ask("GET", "/readyz")[0] == 503
            store.server_activate()
            threading.Thread(target=store.serve_forever, daemon=True).start()
            try:
                service.until(lambda: is_ready(service), 60)
                assert service.ask("POST", "/predict", row(wine))[0] == 200
            finally:
                store.shutdown()
