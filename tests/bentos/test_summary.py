"""`GET /monitoring/summary`: as a function on both engines, and as the route of an app."""

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bentos import summary as module
from bentos.messages import Refusal
from bentos.outcomes import OutcomeItem, record
from bentos.prediction_log import DirectLog, Record, new_id
from bentos.predictions import count, limited
from bentos.summary import KEPT_SECONDS, Summaries, Summary, summarise
from models.errors import WorkError
from stacks.findings import record_findings
from stacks.ledger import Ledger
from tests.bentos.samples import client_of, write
from tests.bentos.watched import NOW, WEEK, finding, watched

SECRET = "Zq7-private"
HOUR = timedelta(hours=1)


def _answer(url: str, at: datetime, *, version: int = 2, variant: str = "champion", rows: int | None = None) -> str:
    """Log an answered row, or a batch of them."""
    moment = at.timestamp()
    content = f'{{"inputs": {{"owner": "{SECRET}"}}, "answer": {{}}}}'.encode()
    made = Record(new_id(moment), moment, "wine", version, variant, None, None, rows, content)
    log = DirectLog(url)
    log.write(made)
    log.close()
    return made.id


def test_a_summary_counts_and_tells_the_newest(url: str) -> None:
    ledger = Ledger(url)
    watched(ledger)
    ids = [_answer(url, NOW - HOUR), _answer(url, NOW - 2 * HOUR, rows=500), _answer(url, NOW - 40 * 24 * HOUR)]
    _answer(url, NOW - HOUR, version=3, variant="canary")
    told = [OutcomeItem(prediction_id=identity, outcome=SECRET) for identity in (ids[0], ids[2])]
    record(url, told, (NOW - HOUR).timestamp())

    found = summarise(ledger, "wine", "accuracy", 24, NOW)
    assert [(t.version, t.variant, t.answers, t.rows) for t in found.traffic] == [
        (2, "champion", 2, 501),
        (3, "canary", 1, 1),
    ]
    assert found.outcomes == 2
    assert found.champion and found.champion.version == 2
    assert {seen.check: seen.state for seen in found.findings} == {
        "performance": "found",
        "quality": "held",
        "drift": "found",
        "prediction_drift": "unjudged",
        "fairness": "held",
    }
    drift = next(seen for seen in found.findings if seen.check == "drift")
    assert (drift.named, drift.figures["drifted_share"], drift.age_seconds) == (["ash"], 0.5, -300)
    assert drift.columns == {"ash": pytest.approx(0.3), "hue": 0.02}
    assert [point.until for point in found.trend] == [NOW - ago * WEEK for ago in reversed(range(8))]
    newest = found.trend[-1]
    assert (newest.value, newest.low, newest.estimate) == pytest.approx((0.75, 0.71, 0.77))
    assert (newest.holdout, newest.limit, newest.labels, newest.state) == (0.93, 0.8, 300, "found")
    assert [(alert.subject, alert.severity) for alert in found.alerts] == [("performance", "critical")]
    assert SECRET not in found.model_dump_json()

    whole = summarise(ledger, "wine", "accuracy", 8_760, NOW)
    assert sum(t.rows for t in whole.traffic) == count(url, "wine", NOW - 8_760 * HOUR, NOW) == 503
    assert summarise(ledger, "wine", "accuracy", 1, NOW - HOUR).traffic[0].rows == 500, "the hour before the last"


def test_where_nothing_is_nothing_is_told_and_nothing_made(url: str, tmp_path: Path) -> None:
    found = summarise(Ledger(url), "wine", "accuracy", 24, NOW)
    assert (found.champion, found.traffic, found.outcomes, found.findings) == (None, [], 0, [])
    assert (found.trend, found.alerts) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_figures_that_are_missing_are_null_and_columns_without_end_are_cut(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 2, actor="ada")
    many = {f"c{number:03}": number / 1_000 for number in range(400)}
    of_windows = {
        "performance": {"figures": {"answers": 9.0}},
        "drift": {"columns": many, "named": tuple(many)},
        "quality": {"columns": many},
    }
    record_findings(ledger, [finding(0, check, "unjudged", **more) for check, more in of_windows.items()])  # type: ignore[arg-type]
    found = summarise(ledger, "wine", "accuracy", 24, NOW)
    (point,) = found.trend
    assert (point.value, point.low, point.estimate, point.limit, point.labels) == (None, None, None, None, None)
    columns = {seen.check: list(seen.columns) for seen in found.findings}
    assert columns["drift"] == [f"c{number:03}" for number in range(399, 349, -1)]
    assert columns["quality"] == [f"c{number:03}" for number in range(50)]
    assert all(len(seen.named) <= 50 for seen in found.findings)


def test_the_trend_is_bounded(url: str) -> None:
    ledger = Ledger(url)
    days = [finding(0, "performance", until=NOW - ago * 6 * HOUR) for ago in range(300)]
    record_findings(ledger, [finding(20, "performance"), *days])
    found = summarise(ledger, "wine", "accuracy", 1, NOW)
    assert (len(found.trend), found.trend[-1].until) == (100, NOW)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("summary")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GAUNTLET_DATABASE", f"sqlite:///{folder / 'ledger.db'}")
        yield client_of(write(folder / "wine", "wine", "logistic_regression"))


def _fresh(client: TestClient) -> Any:
    client.desk._summaries = Summaries()  # type: ignore[attr-defined]
    return client


def test_the_route_tells_the_summary_of_what_was_answered(client: TestClient) -> None:
    watched(Ledger(module.database_url()))
    inputs = client.release.golden[0].inputs  # type: ignore[attr-defined]
    assert client.post("/predict", json={"features": inputs}).status_code == 200
    told = _fresh(client).get("/monitoring/summary")
    found = Summary.model_validate_json(told.content)
    assert (told.status_code, found.hours, found.model, found.metric) == (200, 24, "wine", "accuracy")
    assert [(t.version, t.answers, t.rows) for t in found.traffic] == [(12, 1, 1)]
    assert len(found.findings) == 5 and len(found.trend) == 8
    assert Summary.model_validate_json(client.get("/monitoring/summary?hours=8760").content).hours == 8_760


@pytest.mark.parametrize("hours", ["0", "8761", "-1", "1.5", "", "24h", "9" * 5_000, "٢٤", SECRET])
def test_other_hours_are_refused_by_place_and_never_repeated(client: TestClient, hours: str) -> None:
    told = client.get("/monitoring/summary", params={"hours": hours})
    assert told.status_code == 422 and SECRET not in told.text and len(told.content) < 300
    (fault,) = Refusal.model_validate_json(told.content).detail
    assert (fault.loc, fault.msg) == (["query", "hours"], "Input should be a whole number from 1 to 8760")


def test_with_several_models_each_has_its_own(tmp_path: Path) -> None:
    own = client_of(write(tmp_path / "wine", "wine", "logistic_regression"), at_root=False)
    assert own.get("/models/wine/monitoring/summary").status_code == 200
    assert own.get("/monitoring/summary").status_code == 404


def test_openapi_describes_it(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/monitoring/summary"]["get"]
    assert described["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Summary")
    (hours,) = described["parameters"]
    assert (hours["name"], hours["schema"]["maximum"], hours["schema"]["default"]) == ("hours", 8_760, 24)
    assert {"401", "403", "422", "429", "503"} <= described["responses"].keys()


def test_a_database_that_is_away_is_a_503_without_its_address(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"postgresql://{SECRET}:{SECRET}@127.0.0.1:9/none")
    told = _fresh(client).get("/monitoring/summary")
    assert (told.status_code, told.headers["retry-after"]) == (503, "5")
    assert SECRET not in told.text


def _counting(monkeypatch: pytest.MonkeyPatch, seconds: float = 0) -> list[tuple[str, int]]:
    asked: list[tuple[str, int]] = []

    def counted(ledger: Ledger, model: str, metric: str, hours: int) -> Summary:
        asked.append((model, hours))
        time.sleep(seconds)
        return summarise(ledger, model, metric, hours)

    monkeypatch.setattr(module, "summarise", counted)
    return asked


def test_asking_often_asks_the_database_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, now = _counting(monkeypatch), [0.0]
    summaries = Summaries(clock=lambda: now[0])

    async def ask(times: int, hours: str) -> None:
        await asyncio.gather(*(summaries.reply("wine", "accuracy", hours) for _ in range(times)))

    asyncio.run(ask(50, "24"))
    assert asked == [("wine", 24)]
    now[0] = KEPT_SECONDS - 0.1
    asyncio.run(ask(5, "24"))
    assert asked == [("wine", 24)]
    now[0] = KEPT_SECONDS
    asyncio.run(ask(5, "24"))
    assert asked == 2 * [("wine", 24)]
    for hours in range(1, 200):
        asyncio.run(ask(1, str(hours)))
    assert len(summaries._kept) == 64


def test_one_that_took_long_is_kept_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def counted(ledger: Ledger, model: str, metric: str, hours: int) -> Summary:
        now[0] += 100
        return summarise(ledger, model, metric, hours)

    monkeypatch.setattr(module, "summarise", counted)
    summaries = Summaries(clock=lambda: now[0])
    asyncio.run(summaries.reply("wine", "accuracy", None))
    (kept,) = summaries._kept.values()
    assert kept.until > now[0] + 100 > now[0] + KEPT_SECONDS


def test_others_are_answered_while_one_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counting, others_answered = threading.Event(), threading.Event()

    def counted(ledger: Ledger, model: str, metric: str, hours: int) -> Summary:
        counting.set()
        assert others_answered.wait(60), "the event loop stands still while a summary is counted"
        return summarise(ledger, model, metric, hours)

    monkeypatch.setattr(module, "summarise", counted)

    async def ask() -> int:
        slow = asyncio.ensure_future(Summaries().reply("wine", "accuracy", None))
        while not counting.is_set():
            await asyncio.sleep(0.001)
        others_answered.set()
        return (await slow).status

    assert asyncio.run(ask()) == 200


def test_counting_ends_when_it_takes_too_long(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 2, actor="ada")
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000000) SELECT count(*) FROM n"
    )
    begun = time.monotonic()
    with pytest.raises(WorkError, match="cannot be used"), ledger.peeking() as connection:
        assert connection is not None
        with limited(connection, 0.2):
            connection.exec_driver_sql(endless).scalar()
    assert time.monotonic() - begun >= 0.2
    with ledger.peeking() as connection, limited(connection, 120):
        assert connection is not None and connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_now_is_utc(url: str) -> None:
    assert abs((summarise(Ledger(url), "wine", "accuracy", 1).at - datetime.now(UTC)).total_seconds()) < 60
