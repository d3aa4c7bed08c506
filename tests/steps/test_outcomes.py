"""Late labels from files: recorded once, contradicting, unknown, impossible, ahead of time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from bentos.outcomes import read_outcomes
from bentos.prediction_log import DirectLog, Record, new_id
from bentos.release import Release
from models.errors import ConfigError, DataError, WorkError
from steps.outcomes import Told, tell_outcomes
from steps.table import Table
from tests.bentos.samples import write
from tests.steps.scoring import MODEL, crowned, strange_id

EVER = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
LATELY = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write(tmp_path_factory.mktemp("outcomes") / "release", MODEL, "logistic_regression")


@pytest.fixture
def ids(url: str, release: Release, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of three predictions of the model, in one batch, and of one of another model."""
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    crowned(url, release)
    moment, log = LATELY.timestamp(), DirectLog(url)
    mine, other = new_id(moment), new_id(moment + 1)
    content = b'{"columns":[],"inputs":[[],[],[]],"answers":[{},{},{}]}'
    log.write(Record(mine, moment, MODEL, 1, "champion", None, None, 3, content))
    log.write(Record(other, moment + 1, "wine", 1, "champion", None, None, None, b'{"inputs":{},"answer":{}}'))
    log.close()
    return [*(f"{mine}-{row}" for row in range(3)), other]


def tell(path: Path, **columns: object) -> Told:
    frame = pd.DataFrame(columns)
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return tell_outcomes(MODEL, Table.of(str(path)))


def stored(url: str) -> list[tuple[str, object]]:
    return [(one.prediction_id, one.outcome) for one in read_outcomes(url, MODEL, *EVER)]


def test_outcomes_are_recorded_once(url: str, ids: list[str], tmp_path: Path) -> None:
    outcome = ["disease", "healthy", "disease"]
    told = tell(tmp_path / "o.csv", prediction_id=ids[:3], outcome=outcome, at=[LATELY.isoformat(), "", None])
    assert (told.rows, told.recorded, told.repeated, told.refused, told.named) == (3, 3, 0, 0, {})
    again = tell_outcomes(MODEL, Table.of(str(tmp_path / "o.csv")))
    assert (again.recorded, again.repeated) == (0, 3)
    assert stored(url) == list(zip(ids[:3], outcome, strict=True))
    assert next(read_outcomes(url, MODEL, *EVER)).at == LATELY


def test_raw_values_of_the_target_become_the_classes_they_mean(url: str, ids: list[str], tmp_path: Path) -> None:
    assert tell(tmp_path / "o.parquet", prediction_id=ids[:3], outcome=[0.0, 1.0, 4.0]).recorded == 3
    assert [value for _, value in stored(url)] == ["healthy", "disease", "disease"]


def test_what_cannot_be_taken_is_counted_and_named(url: str, ids: list[str], tmp_path: Path) -> None:
    ahead = datetime.now(UTC) + timedelta(minutes=7)
    unknown = strange_id()
    told = tell(
        tmp_path / "o.csv",
        prediction_id=[ids[0], ids[1], ids[2], ids[3], unknown, "x" * 60, ids[1], ids[1]],
        outcome=["disease", "maybe", "healthy", "disease", "disease", "disease", None, "healthy"],
        at=["", "", ahead.isoformat(), "", "", "", "", "2026-01-01T10:00:00"],
    )
    assert (told.rows, told.recorded, told.unknown, told.unacceptable, told.future, told.untimed) == (8, 1, 2, 3, 1, 1)
    assert told.refused == 7
    assert told.named == {
        "unknown": (unknown,),
        "unacceptable": (ids[1], ids[1], ids[3]),
        "future": (ids[2],),
        "untimed": (ids[1],),
    }
    assert stored(url) == [(ids[0], "disease")]


def test_contradictions_are_kept_and_told(url: str, ids: list[str], tmp_path: Path) -> None:
    tell(tmp_path / "o.csv", prediction_id=ids[:1], outcome=["disease"])
    told = tell(tmp_path / "o.csv", prediction_id=ids[:2], outcome=["healthy", "healthy"])
    assert (told.recorded, told.contradicted, told.named) == (2, 1, {"contradicted": (ids[0],)})
    assert stored(url) == [(ids[0], "disease"), (ids[0], "healthy"), (ids[1], "healthy")]


def test_a_clock_that_is_a_little_ahead_is_forgiven(url: str, ids: list[str], tmp_path: Path) -> None:
    soon = pd.Timestamp(datetime.now(UTC) + timedelta(minutes=3))
    assert tell(tmp_path / "o.parquet", prediction_id=ids[:1], outcome=["disease"], at=[soon]).recorded == 1


def test_when_nothing_can_be_taken_it_fails(ids: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 2 outcomes can be taken \(1 unknown, 1 unacceptable\)"):
        tell(tmp_path / "o.csv", prediction_id=[strange_id(), ids[0]], outcome=["disease", "7"])


def test_files_that_hold_no_outcomes(ids: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'outcome'.*There is: 'prediction_id', 'outcme'"):
        tell(tmp_path / "o.csv", prediction_id=ids[:1], outcme=["disease"])
    with pytest.raises(DataError, match="no rows"):
        tell(tmp_path / "o.csv", prediction_id=[], outcome=[])
    with pytest.raises(DataError, match="there is no such file"):
        tell_outcomes(MODEL, Table.of(str(tmp_path / "nowhere.csv")))
    with pytest.raises(ConfigError, match="give a CSV or Parquet file"):
        tell_outcomes(MODEL, Table.of("sqlite:///x.db", "SELECT 1"))
    with pytest.raises(WorkError, match="'wine' has no champion"):
        tell_outcomes("wine", Table.of(str(tmp_path / "o.csv")))
