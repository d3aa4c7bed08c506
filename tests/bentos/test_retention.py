"""Forgetting old predictions, from what the served models' configurations say."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bentos import retention
from bentos.prediction_log import PredictionLog, Record, new_id
from bentos.predictions import count, find
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


def _write(url: str, records: list[Record]) -> None:
    import asyncio

    async def write_all() -> None:
        log = PredictionLog(url)
        await asyncio.gather(*(log.write(record) for record in records))
        log.close()

    asyncio.run(write_all())
