"""Outcomes on both engines: told once, twice, in two ways, of nothing that was predicted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from bentos import predictions
from bentos.outcomes import MOST_ITEMS, OutcomeItem, OutcomesRequest, Report, Value, read_outcomes, record
from bentos.predictions import OUTCOMES
from stacks.ledger import Ledger
from tests.bentos.test_prediction_log import EVER, NOW, batch, single, write

RECEIVED = NOW.timestamp() + 60


@pytest.fixture
def logged(url: str) -> list[str]:
    """Ids that are in the log: two single ones and a batch's three."""
    records = [single(NOW.timestamp()), single(NOW.timestamp() + 1, model="other"), batch(NOW.timestamp() + 2, 3)]
    write(url, *records)
    return [records[0].id, records[1].id, *(f"{records[2].id}-{row}" for row in range(3))]


def tell(url: str, *told: tuple[str, Value], **options: Any) -> Report:
    return record(url, [OutcomeItem(prediction_id=i, outcome=o) for i, o in told], RECEIVED, **options)


def stored(url: str, model: str = "wine") -> list[tuple[str, Value]]:
    return [(o.prediction_id, o.outcome) for o in read_outcomes(url, model, *EVER)]


def test_outcomes_are_recorded_once(url: str, logged: list[str]) -> None:
    told = [(logged[0], "yes"), (logged[2], 1.5), (logged[3], True), (logged[1], "no")]
    report = tell(url, *told)
    assert report.model_dump(exclude_defaults=True) | {"recorded": 4} == report.model_dump()
    assert (report.repeated, report.contradicted, report.unknown) == (0, 0, 0)
    again = tell(url, *told)
    assert (again.recorded, again.repeated, again.contradicted) == (0, 4, 0)
    assert stored(url) == told[:3]
    assert stored(url, "other") == told[3:]


def test_an_outcome_is_read_with_its_times(url: str, logged: list[str]) -> None:
    known = NOW + timedelta(hours=1, microseconds=7)
    record(url, [OutcomeItem(prediction_id=logged[0], outcome=2, at=known)], RECEIVED)
    tell(url, (logged[2], 2))
    first, second = read_outcomes(url, "wine", *EVER)
    assert (first.model, first.outcome, first.at) == ("wine", 2, known)
    assert (second.at, second.received) == (None, datetime.fromtimestamp(RECEIVED, UTC))
    assert [o.prediction_id for o in read_outcomes(url, "wine", NOW, NOW + timedelta(seconds=2))] == logged[:1]
    assert list(read_outcomes(url, "wine", EVER[0], NOW)) == []


@pytest.mark.parametrize("at", ["1970-01-01T00:00:00+14:00", "2199-12-31T23:59:59-14:00"])
def test_the_farthest_times_are_read_back(url: str, logged: list[str], at: str) -> None:
    (item,) = OutcomesRequest.model_validate_json(
        f'[{{"prediction_id": "{logged[0]}", "outcome": 1, "at": "{at}"}}]'
    ).root
    record(url, [item], RECEIVED)
    (read,) = read_outcomes(url, "wine", *EVER)
    assert read.at == datetime.fromisoformat(at)


def test_a_time_that_no_calendar_holds_stops_nobody(url: str, logged: list[str]) -> None:
    tell(url, (logged[0], 1), (logged[2], 2))
    with Ledger(url).writing() as connection:
        connection.execute(sa.update(OUTCOMES).where(OUTCOMES.c.prediction_id == logged[0]).values(at=-6.2136e10))
    assert [(o.outcome, o.at) for o in read_outcomes(url, "wine", *EVER)] == [(1, None), (2, None)]


def test_a_contradiction_is_kept_beside_the_first_and_told(url: str, logged: list[str]) -> None:
    tell(url, (logged[0], "yes"))
    report = tell(url, (logged[0], "no"), (logged[2], "yes"))
    assert (report.recorded, report.contradicted, report.contradicted_ids) == (2, 1, [logged[0]])
    assert stored(url)[:2] == [(logged[0], "yes"), (logged[0], "no")]
    again = tell(url, (logged[0], "yes"))
    assert (again.recorded, again.repeated, again.contradicted_ids) == (0, 1, [logged[0]])
    assert stored(url)[:2] == [(logged[0], "yes"), (logged[0], "no")]


def test_one_request_may_contradict_and_repeat_itself(url: str, logged: list[str]) -> None:
    report = tell(url, (logged[0], "yes"), (logged[0], "no"), (logged[0], "yes"))
    assert (report.recorded, report.repeated, report.contradicted_ids) == (2, 1, [logged[0]])


def test_a_number_is_what_it_is_however_written(url: str, logged: list[str]) -> None:
    assert tell(url, (logged[0], 1), (logged[0], 1.0)).repeated == 1
    assert tell(url, (logged[0], True), (logged[0], "1"), (logged[0], 1e300), (logged[0], "é\x00")).recorded == 4


def test_unknown_ids_are_told_and_not_stored(url: str, logged: list[str]) -> None:
    batch_id = logged[2].partition("-")[0]
    wrong = [
        f"{batch_id}-3",
        batch_id,
        f"{logged[0]}-0",
        "0" * 32,
        "nonsense",
        "' OR 1=1 --",
        "0" * 48,
        f"{batch_id}-٣",
    ]
    report = tell(url, *((identity, "yes") for identity in wrong), (logged[2], "yes"))
    assert (report.recorded, report.unknown, report.unknown_ids) == (1, len(wrong), wrong)
    assert stored(url) == [(logged[2], "yes")]


def test_a_hundred_ids_are_named_and_all_counted(url: str) -> None:
    report = tell(url, *((f"unknown-{n}", "yes") for n in range(250)))
    assert (report.unknown, len(report.unknown_ids), report.unknown_ids[0]) == (250, 100, "unknown-0")


def test_what_a_model_cannot_have_is_told_and_not_stored(url: str, logged: list[str]) -> None:
    labels = {"wine": ("yes", "no"), "other": (1,)}
    told = [(logged[0], "Yes"), (logged[1], 1), (logged[2], "no")]
    report = tell(url, *told, acceptable=lambda model, outcome: outcome in labels[model])
    assert (report.recorded, report.unacceptable, report.unacceptable_ids) == (2, 1, [logged[0]])
    assert stored(url) == [(logged[2], "no")]


def test_ten_thousand_at_once(url: str) -> None:
    big = batch(NOW.timestamp(), MOST_ITEMS)
    write(url, big)
    told = [(f"{big.id}-{row}", row % 2 == 0) for row in range(MOST_ITEMS)]
    assert tell(url, *told).recorded == MOST_ITEMS
    assert tell(url, *told).repeated == MOST_ITEMS
    assert len(stored(url)) == MOST_ITEMS


def test_of_several_that_tell_at_once_each_is_counted_right(url: str, logged: list[str]) -> None:
    tell(url, ("unknown", 0))
    barrier = threading.Barrier(4)

    def contradict(value: int) -> Report:
        barrier.wait()
        return tell(url, (logged[0], value), (logged[2], "same"))

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(contradict, range(4)))
    assert sum(r.recorded for r in reports) == 5
    assert sum(r.repeated for r in reports) == 3
    assert sorted(r.contradicted for r in reports) == [0, 1, 1, 1]


def test_outcomes_expire_with_their_predictions(url: str, logged: list[str]) -> None:
    later = single(datetime(2026, 12, 2, tzinfo=UTC).timestamp())
    write(url, later)
    tell(url, (logged[0], "yes"), (logged[1], "yes"), (later.id, "yes"))
    predictions.drop_expired(url, "wine", 1, datetime(2027, 1, 5, tzinfo=UTC))
    assert stored(url) == [(later.id, "yes")]
    assert stored(url, "other") == [(logged[1], "yes")]


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{}",
        "[{}]",
        '[{"prediction_id": "a"}]',
        '[{"prediction_id": "", "outcome": 1}]',
        '[{"prediction_id": 7, "outcome": 1}]',
        '[{"prediction_id": "a", "outcome": null}]',
        '[{"prediction_id": "a", "outcome": [1]}]',
        '[{"prediction_id": "a", "outcome": NaN}]',
        '[{"prediction_id": "a", "outcome": 1e999}]',
        '[{"prediction_id": "a", "outcome": ""}]',
        '[{"prediction_id": "a", "outcome": 1, "at": 5}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "2026-11-21T10:00:00"}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "yesterday"}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "0001-01-01T00:00:00+14:00"}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "1969-12-31T23:59:59Z"}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "2200-01-01T00:00:00Z"}]',
        '[{"prediction_id": "a", "outcome": 1, "at": "9999-12-31T23:59:59-14:00"}]',
        '[{"prediction_id": "a", "outcome": 1, "more": 1}]',
        f'[{{"prediction_id": "{"a" * 49}", "outcome": 1}}]',
        f'[{{"prediction_id": "a", "outcome": "{"x" * 201}"}}]',
        "[" + ",".join(['{"prediction_id": "a", "outcome": 1}'] * (MOST_ITEMS + 1)) + "]",
        '[{"prediction_id": "a", "outcome": ' + "1" * 5_000 + "}]",
    ],
)
def test_a_wrong_body_is_refused(body: str) -> None:
    with pytest.raises(ValidationError):
        OutcomesRequest.model_validate_json(body)


def test_types_are_kept_as_sent() -> None:
    body = '[{"prediction_id": "a", "outcome": %s, "at": "2026-11-21T10:00:00+01:00"}]'
    sent = [OutcomesRequest.model_validate_json(body % v).root[0] for v in ("true", "1", "1.5", '"1"')]
    assert [(type(item.outcome), item.outcome) for item in sent] == [(bool, True), (float, 1), (float, 1.5), (str, "1")]
    assert sent[0].at == datetime(2026, 11, 21, 9, tzinfo=UTC)
