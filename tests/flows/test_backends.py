"""Back ends of a rehearsal: they ask who is there, say why they do not start, and are gone afterwards."""

import asyncio
import importlib
import os
import socket
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from flows import backends
from flows.backends import HOST, Service, answer, as_user, free_port, missing_programs
from models.errors import WorkError


@pytest.fixture(autouse=True)
def _programs() -> None:
    if (missing := missing_programs()) and os.environ.get("GAUNTLET_REQUIRE_SERVICES") != "1":
        pytest.skip(f"programs of {', '.join(missing)} are missing")


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such option'); sys.exit(3)"]
    with pytest.raises(WorkError, match="oracle ended with code 3: no such option"):
        Service("oracle", command, free_port(), tmp_path).start()


def test_a_server_that_is_not_there_answers_nothing() -> None:
    assert answer(f"http://{HOST}:{free_port()}/health")[0] == 0


def test_servers_drop_root_only_where_they_must() -> None:
    assert as_user(None, ["redis-server"]) == ["redis-server"]
    assert as_user("postgres", ["postgres"])[-1] == "postgres" and "--reuid=postgres" in as_user("postgres", ["x"])


def test_redis_asks_for_its_password_and_is_gone_afterwards() -> None:
    import redis

    with backends.redis("a-password") as service:
        assert redis.Redis(host=HOST, port=service.port, password="a-password").ping()
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(host=HOST, port=service.port).ping()
        folder = service.folder
        assert "a-password" not in " ".join(service.command)
    assert not folder.exists()
    with socket.socket() as probe:
        assert probe.connect_ex((HOST, service.port)) != 0


def test_prefect_s_messages_go_over_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    import redis

    url = os.environ.get("GAUNTLET_TEST_REDIS", "redis://127.0.0.1:6379/0")
    client = redis.Redis.from_url(url, socket_connect_timeout=5)
    try:
        client.ping()
    except redis.exceptions.ConnectionError:
        if os.environ.get("GAUNTLET_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip("no Redis answers: set GAUNTLET_TEST_REDIS")
    monkeypatch.setenv("PREFECT_REDIS_MESSAGING_URL", url)
    modules = {name: importlib.import_module(module) for name, module in backends.ON_REDIS.items()}
    topic = f"gauntlet-test-{uuid4()}"

    async def publish() -> str:
        cache = modules["PREFECT_MESSAGING_CACHE"].Cache()
        async with modules["PREFECT_MESSAGING_BROKER"].Publisher(topic, cache) as publisher:
            await publisher.publish_data(b"an event", {})
        return str(publisher.stream)

    stream = asyncio.run(publish())
    try:
        assert [fields[b"data"] for _, fields in client.xrange(stream)] == [b"an event"]
    finally:
        client.delete(stream)


def _accepts(address: str) -> bool:
    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_stopped_postgresql_has_its_rows_when_it_is_back() -> None:
    with backends.postgres({"someone": "a-password"}) as service:
        address = f"host={HOST} port={service.port} user=someone dbname=someone connect_timeout=5"
        with psycopg.connect(f"{address} password=a-password") as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"{address} password=another")
        service.stop()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"{address} password=a-password")
        service.start(lambda: _accepts(f"{address} password=a-password"))
        with psycopg.connect(f"{address} password=a-password") as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]
