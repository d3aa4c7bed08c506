"""What one request may cost, and that every failure is counted and taken down, whoever answered it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from prometheus_client import REGISTRY
from starlette.requests import ClientDisconnect

from bentos import bodies, connections, desk, served
from bentos.access import Access
from bentos.access_log import AccessLog
from bentos.bodies import Bodies, holds_more, most_held
from bentos.connections import CUT_OFF
from bentos.desk import Desk
from bentos.fleet import Fleet
from bentos.front import Front, take_down_refusal
from bentos.lifecycle import DRAIN_SECONDS, Lifecycle, LifecycleMiddleware
from bentos.metrics import metrics
from bentos.release import Release
from bentos.reply import MAX_LISTED, Refused, fault
from bentos.served import Served
from bentos.service import TIMEOUT_SECONDS
from models.errors import ConfigError
from stacks.handover import Crown
from tests.bentos.samples import client_of, write

BODY = b'{"features": {}}'


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("releases") / "wine", "wine", "logistic_regression")


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the access log holds."""
    taken_down = AccessLog(str(tmp_path / "access.log"))
    monkeypatch.setattr("bentos.front.access_log", lambda: taken_down)

    def read() -> list[dict[str, Any]]:
        taken_down.flush()
        return [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]

    yield read


def scope(path: str = "/predict", **more: Any) -> dict[str, Any]:
    """A POST of JSON from this machine."""
    headers = [(b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("127.0.0.1", 5), **more}


async def ask(app: Any, receive: Callable[[], Awaitable[Any]] | None = None, **more: Any) -> int:
    """Status of the answer to one request; 0 where there was none."""
    sent: list[Any] = []

    async def whole() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.suppress(ClientDisconnect):
        await app(scope(**more), receive or whole, send)
    return sent[0]["status"] if sent else 0


async def nothing(*_: Any) -> None:
    raise AssertionError("it is answered before")


def desk_of(*names: str) -> Desk:
    """A desk that answers for models that have no version yet."""
    made = Desk(Fleet())
    for name in names:
        made.open(name, "")
    return made


def counted(model: str, status: str, version: str = "-") -> float:
    metrics()
    labels = {"model": model, "version": version, "variant": "-", "route": "predict", "status": status}
    return REGISTRY.get_sample_value("gauntlet_requests_total", labels) or 0.0


def test_a_slow_body_is_refused_long_before_the_service_gives_up() -> None:
    assert DRAIN_SECONDS + 5 <= connections.BODY_SECONDS <= TIMEOUT_SECONDS - 5


def test_what_bentoml_cuts_off_is_counted_and_taken_down(lines: Any) -> None:
    waits = desk_of("cut")
    before = counted("cut", "504")

    async def never() -> Any:
        await asyncio.Event().wait()

    front = Front(nothing, Access(), waits)
    assert asyncio.run(ask(TimeoutMiddleware(front, 0.01), never)) == 504  # type: ignore[arg-type]
    assert counted("cut", "504") == before + 1
    assert [(line["status"], line["refusal"], line["model"]) for line in lines()] == [(504, "timeout", "cut")]


@pytest.mark.parametrize(("cut_off", "status", "kind"), [(408, 408, "too_slow"), (None, 0, None)])
def test_a_connection_s_own_refusal_is_taken_down(lines: Any, cut_off: int | None, status: int, kind: Any) -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    assert asyncio.run(ask(Front(nothing, Access(), desk_of("slow")), gone, **{CUT_OFF: cut_off})) == 0
    assert [(line["status"], line["refusal"]) for line in lines()] == [(status, kind)]


def test_failures_without_a_version_count(lines: Any) -> None:
    for kind, served_by in (("not_ready", desk_of("lost")), ("loading", desk_of("lost"))):
        if kind == "loading":
            served_by.fleet.refuse("lost", fault(503, "still being loaded", "loading", retry_after=1))
        before = counted("lost", "503")
        assert asyncio.run(ask(Front(nothing, Access(), served_by))) == 503
        assert counted("lost", "503") == before + 1
    assert [line["refusal"] for line in lines()] == ["not_ready", "loading"]


def test_a_bad_request_without_a_version_does_not_count() -> None:
    before = counted("lost", "415")
    assert asyncio.run(ask(Front(nothing, Access(), desk_of("lost")), headers=[])) == 415
    assert counted("lost", "415") == before


def test_what_the_lifecycle_refuses_counts_too(lines: Any) -> None:
    life, asked = Lifecycle(most=0), desk_of("busy")
    before = counted("busy", "503")
    app = LifecycleMiddleware(nothing, life, partial(take_down_refusal, asked))
    assert asyncio.run(ask(app)) == 503
    life.draining = True
    assert asyncio.run(ask(app)) == 503
    assert counted("busy", "503") == before + 2
    assert [(line["status"], line["refusal"]) for line in lines()] == [(503, "overloaded"), (503, "draining")]


def test_bodies_in_memory_have_an_end(lines: Any) -> None:
    """Two requests that have sent half of what may be held: the third one's next piece is refused, and then fits."""
    held, asked = Bodies(most=300), desk_of("large")
    asked.bodies = held
    front, before = Front(nothing, Access(), asked), counted("large", "503")

    async def run() -> list[int]:
        more = asyncio.Event()

        def sender() -> Callable[[], Awaitable[Any]]:
            pieces = iter([True, False])

            async def receive() -> Any:
                if not next(pieces):
                    await more.wait()
                    return {"type": "http.request", "body": b"", "more_body": False}
                return {"type": "http.request", "body": b" " * 150, "more_body": True}

            return receive

        waiting = [asyncio.create_task(ask(front, sender())) for _ in range(2)]
        while held.held < 300:
            await asyncio.sleep(0)
        refused = await ask(front, sender())
        more.set()
        return [refused, *await asyncio.gather(*waiting)]

    assert asyncio.run(run()) == [503, 503, 503]
    assert [line["refusal"] for line in lines()] == ["overloaded", "not_ready", "not_ready"]
    assert (held.held, counted("large", "503")) == (0, before + 3)


def test_a_body_that_is_refused_gives_its_room_back() -> None:
    room = Bodies(most=10)
    with pytest.raises(Refused), room.claim() as claim:
        claim.take(8)
        claim.take(3)
    assert room.held == 0


@pytest.mark.parametrize(("given", "mib"), [(None, 256), ("64", 64), ("1000", 1_000), ("63", 0), ("much", 0)])
def test_the_room_for_bodies_is_set_in_mebibytes(given: str | None, mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(bodies.VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(bodies.VARIABLE, given)
    with contextlib.nullcontext() if mib else pytest.raises(ConfigError, match=r"GAUNTLET_BODIES .* 64 or more"):
        assert most_held() == mib * 2**20


def test_large_requests_that_wait_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "LARGE_WAITING", 1)
    asked = Desk(Fleet())

    async def run() -> None:
        done = [asyncio.create_task(asked._large(lambda: held.wait(30))) for _ in range(desk.LARGE_AT_ONCE + 1)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await asked._large(lambda: True)
        held.set()
        assert (refused.value.reply.status, refused.value.reply.kind, refused.value.reply.retry_after) == (
            503, "overloaded", 1,
        )  # fmt: skip
        assert await asyncio.gather(*done) == [True] * len(done)
        assert await asked._large(lambda: "again") == "again"

    held = threading.Event()
    asyncio.run(run())


def test_a_large_body_is_read_in_a_thread(wine: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    client, threads = client_of(wine), list[bool]()
    ask_of = Served.ask

    def noted(self: Served, body: bytes, batch: bool) -> Any:
        threads.append(asyncio._get_running_loop() is None)
        return ask_of(self, body, batch)

    monkeypatch.setattr(Served, "ask", noted)
    row = json.dumps({"features": wine.golden[0].inputs}).encode()
    for padding in (0, desk.LARGE):
        told = client.post("/predict", content=row + b" " * padding, headers={"content-type": "application/json"})
        assert told.status_code == 200
    assert threads == [False, True]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"[1,2,3]", 4),
        (b'{"a,b": "{[,", "c": 1}', 3),
        (rb'["\",\\", ",\\\",", "\\"]', 4),
        (b'{"instances": [' + b"{}," * 99 + b"{}]}", 202),
    ],
)
def test_values_are_counted_outside_of_texts(text: bytes, values: int) -> None:
    assert [holds_more(text, most) for most in (values - 1, values)] == [True, False]


@pytest.mark.parametrize("tail", [b"", rb"\"", b'"'])
def test_what_is_no_json_is_counted_up_to_its_fault(tail: bytes) -> None:
    """A parser comes as far as the fault: a quote there must not hide what lies before it."""
    assert holds_more(b"[" + b"{}," * 1_000 + tail, 1_000)
    assert holds_more(b'["' + b'","' * 100_000, 1_000)


def test_a_body_of_too_many_keys_is_refused_before_it_is_parsed(wine: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread:
        @property
        def requests(self) -> None:
            raise AssertionError("it was parsed")

    client = client_of(wine, max_batch=100)
    monkeypatch.setattr(Served, "requests", Unread.requests)
    unknown = {f"k{number}": number for number in range(50_000)}
    for path, body, status in (
        ("/predict", {"features": unknown}, 422),
        ("/predict/batch", {"instances": [unknown]}, 413),
        ("/predict/batch", {"instances": [{}] * 5_000}, 413),
        ("/outcomes", [unknown] * 2, 413),
    ):
        told = client.post(path, json=body)
        assert (told.status_code, told.json()["detail"][0]["type"]) == (status, "too_many_values")


def test_more_faults_than_can_be_listed_are_counted(wine: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_VALUES_BESIDES", 100_000)
    unknown = {f"k{number}": number for number in range(2 * MAX_LISTED)}
    told = client_of(wine).post("/predict", json={"features": unknown})
    (only,) = told.json()["detail"]
    assert (told.status_code, only["type"], only["loc"]) == (422, "too_many_faults", ["body"])
    assert only["msg"].startswith("2,013 things are wrong")


@pytest.mark.parametrize("route", ["outcomes", "predict"])
def test_an_error_that_nobody_expected_is_answered(wine: Release, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("Zq7-private")

    client = client_of(wine)
    monkeypatch.setattr(Desk, "_large" if route == "outcomes" else "_answered", fail)
    told = client.post(f"/{route}", json=[])
    assert (told.status_code, told.json()["detail"][0]["type"]) == (500, "internal")
    assert "Zq7" not in told.text


def test_a_model_that_cannot_come_back_is_an_answer_too(wine: Release) -> None:
    asked = desk_of("wine")

    def load(_: Crown) -> Served:
        raise RuntimeError("Zq7-private")

    asked.fleet.bring_back_with(load, 1)
    asked.fleet.switch(Crown("wine", 1, 1, 0.0, None, None), None)
    assert asyncio.run(ask(Front(nothing, Access(), asked))) == 500
    assert asyncio.run(ask(Front(nothing, Access(), asked), path="/outcomes")) == 500


def test_health_of_a_model_that_left_memory_leaves_it_there(wine: Release) -> None:
    asked = desk_of("wine")
    asked.fleet.switch(crown := Crown("wine", 4, 1, 0.0, None, None), None)
    told = asked.health("wine")
    assert (told.status, json.loads(told.body)) == (
        200,
        {
            "status": "ok", "model": "wine", "version": 4, "variant": "champion", "since": None, "digest": None,
            "log": "ok",
        },
    )  # fmt: skip
    asked.fleet.keep(crown, Served.load(wine, 4))
    asked.fleet.switch(crown, None)
    assert json.loads(asked.health("wine").body)["digest"] == wine.digest
    asked.fleet.refuse("wine", fault(503, "still being loaded", "loading", retry_after=1))
    assert [asked.health(name).kind for name in ("wine", "unknown")] == ["loading", "not_ready"]
