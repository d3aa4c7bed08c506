"""Forgetting old predictions, from what the served models' configurations say."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentos import retention
from bentos.fleet import Fleet
from bentos.follow import Follower
from bentos.prediction_log import PredictionLog, Record, new_id
from bentos.predictions import count, find
from stacks.ledger import Ledger
from tests.bentos.following import crown
from tests.bentos.samples import client_of, config_of, write

DAY = 86_400.0


def test_only_what_may_be_forgotten_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    old, new = time.time() - 100 * DAY, time.time()
    ids = {(model, at): new_id(at) for model in ("kept", "brief") for at in (old, new)}
    _write(url, [Record(i, at, model, 1, "champion", None, None, None, b"{}") for (model, at), i in ids.items()])
    retention.forget({"kept": None, "brief": 1})
    since, until = datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(new + DAY, UTC)
    assert (count(url, "kept", since, until), count(url, "brief", since, until)) == (2, 1)
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path}/nowhere.txt/log.db")
    retention.forget({"brief": 1})


def test_months_come_from_the_configuration_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'log.db'}")
    config = config_of("wine")
    settings = config.serving.log.model_copy(update={"keep_months": 6})
    serving = config.serving.model_copy(update={"log": settings})
    release = write(
        tmp_path / "wine", "wine", "logistic_regression", config=config.model_copy(update={"serving": serving})
    )
    client = client_of(release)
    assert client.desk.fleet.keep_months() == {"wine": 6}  # type: ignore[attr-defined]
    told = client.post("/predict", json={"features": release.golden[0].inputs}).json()
    assert find(f"sqlite:///{tmp_path / 'log.db'}", [told["prediction_id"]])


def test_what_left_memory_is_forgotten_too(tmp_path: Path) -> None:
    """And of what never was in memory here: the Release was fetched, and says how long."""
    config = config_of("wine")
    settings = config.serving.log.model_copy(update={"keep_months": 6})
    config = config.model_copy(update={"serving": config.serving.model_copy(update={"log": settings})})
    release = write(tmp_path / "wine", "wine", "logistic_regression", config=config)
    ledger, fleet = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), Fleet()
    crown(ledger, 1, release)
    follower = Follower(ledger, fleet, tmp_path / "cache", limit=0)
    while not fleet.keep_months():
        time.sleep(min(0.02, follower.step()))
    follower.stop()
    assert (fleet.keep_months(), fleet.resident) == ({"wine": 6}, 0)


def test_the_first_look_is_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, forgotten = threading.Event(), list[object]()

    def forget(keep: object) -> None:
        forgotten.append(keep)
        ended.set()

    monkeypatch.setattr(retention, "forget", forget)
    retention.forget_hourly(lambda: {"wine": 3}, ended)
    assert ended.wait(30)
    assert forgotten == [{"wine": 3}]


def _write(url: str, records: list[Record]) -> None:
    import asyncio

    async def write_all() -> None:
        log = PredictionLog(url)
        await asyncio.gather(*(log.write(record) for record in records))
        log.close()

    asyncio.run(write_all())
