"""Batch scoring on real Releases and both engines: answers, log, restart, bad input."""

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa

from bentos import predictions
from bentos.prediction_log import is_sampled, new_id, table_of
from bentos.release import Release
from models.config import PredictionLogging
from models.errors import ConfigError, DataError, WorkError
from stacks.home import home_dir
from stacks.ledger import Ledger, parse_url
from steps import batch
from steps.batch import InputChanged, predict
from steps.publish import DatabaseTable
from steps.resume import Order
from tests.bentos.following import crown
from tests.bentos.samples import config_of, frame_of, write
from tests.steps.scoring import MODEL, crowned, kill_when, order, patients, served_answers, started, sum_of

EVER = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("batch") / "release"
    return write(folder, MODEL, "xgboost", evidence={"fast_path": {"used": True}})


@pytest.fixture
def database(url: str, release: Release, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    crowned(url, release)
    return url


@pytest.fixture
def local(tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'gauntlet.db'}"
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    crowned(url, release)
    return url


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROWS", 100)


def configured(url: str, folder: Path, log: PredictionLogging) -> None:
    """Have a version 2 answer that logs in a way of its own."""
    config = config_of(MODEL)
    config = config.model_copy(update={"serving": config.serving.model_copy(update={"log": log})})
    crown(Ledger(url), 2, write(folder, MODEL, "logistic_regression", config=config))


def logged(url: str) -> list[predictions.Prediction]:
    return list(predictions.read(url, MODEL, *EVER))


def test_answers_are_those_of_the_service_and_lie_in_the_log(database: str, release: Release, tmp_path: Path) -> None:
    rows = patients(300)
    rows.to_csv(tmp_path / "in.csv", index=False)
    done = predict(order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",)))
    assert (done.rows, done.version, done.logged, done.bad_rows, done.lost) == (300, 1, 300, 0, 0)
    out = pd.read_csv(tmp_path / "out.csv")
    expected = served_answers(release, rows)
    assert out["patient"].tolist() == rows["patient"].tolist()
    assert out["prediction"].tolist() == [one["prediction"] for one in expected]
    assert out["risk"].tolist() == [one["risk"] for one in expected]
    assert out["probability"].to_numpy() == pytest.approx([one["probability"] for one in expected], abs=1e-6)
    assert out["probability_healthy"].to_numpy() == pytest.approx(
        [one["probabilities"]["healthy"] for one in expected], abs=1e-6
    )
    assert set(out["version"]) == {1}
    kept = logged(database)
    assert [one.id for one in kept] == out["prediction_id"].tolist()
    assert [one.answer["prediction"] for one in kept] == out["prediction"].tolist()
    assert kept[0].answer.keys() == expected[0].keys()
    assert kept[7].inputs["age"] == rows["age"][7]


def test_csv_and_parquet_say_the_same(local: str, tmp_path: Path) -> None:
    rows = patients(150)
    rows.to_csv(tmp_path / "in.csv", index=False)
    rows.to_parquet(tmp_path / "in.parquet", index=False)
    predict(order(tmp_path / "in.csv", tmp_path / "a.parquet"))
    predict(order(tmp_path / "in.parquet", tmp_path / "b.parquet"))
    one, other = (pd.read_parquet(tmp_path / f"{name}.parquet").drop(columns="prediction_id") for name in "ab")
    pd.testing.assert_frame_equal(one, other)


def test_a_second_time_does_nothing(database: str, tmp_path: Path) -> None:
    patients(120).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv")
    predict(wanted)
    before = sum_of(tmp_path / "out.csv")
    again = predict(wanted)
    assert again.repeated and again.rows == 120
    (tmp_path / "out.csv").unlink()
    assert not predict(wanted).repeated
    assert sum_of(tmp_path / "out.csv") == before
    assert len(logged(database)) == 120


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_goes_on_with_the_same_ids_and_version(
    database: str, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients(550).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",))
    said: list[int] = []

    def stop(rows: int) -> None:
        said.append(rows)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(wanted, tell=stop)
    assert not (tmp_path / "out.csv").exists()
    crown(Ledger(database), 2, release)
    done = predict(wanted)
    assert (done.rows, done.version, done.resumed) == (550, 1, 3)
    kept = logged(database)
    assert [one.id for one in kept] == pd.read_csv(tmp_path / "out.csv")["prediction_id"].tolist()
    assert {one.version for one in kept} == {1}
    other = order(tmp_path / "in.csv", tmp_path / "new.csv")
    assert predict(other).version == 2


@pytest.mark.usefixtures("small")
def test_other_rows_than_before_are_noticed(local: str, tmp_path: Path) -> None:
    rows = patients(350)
    rows.to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv")
    predict(wanted)
    before = sum_of(tmp_path / "out.csv")
    for changed in (rows.assign(age=rows["age"].where(rows.index != 340, 33.0)), rows.head(200), patients(351)):
        changed.to_csv(tmp_path / "in.csv", index=False)
        with pytest.raises(InputChanged, match=r"other rows than when the run .* --force"):
            predict(wanted)
        assert sum_of(tmp_path / "out.csv") == before
    assert predict(wanted, force=True).rows == 351
    assert len(logged(local)) == 350 + 351


def test_outputs_of_others_are_left_alone(local: str, tmp_path: Path) -> None:
    patients(50).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(DataError, match=r"out\.csv exists already; .* --force"):
        predict(wanted)
    assert (tmp_path / "out.csv").read_text() == "mine"
    predict(wanted, force=True)
    with pytest.raises(DataError, match="belongs to a run with other settings"):
        predict(order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",)))
    (tmp_path / "out.csv").write_text("edited")
    with pytest.raises(DataError, match="was changed after it was written"):
        predict(wanted)


def test_a_run_that_answered_nothing_is_in_nobodys_way(local: str, tmp_path: Path) -> None:
    patients(50).drop(columns="age").to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataError, match="declared columns are missing"):
        predict(order(tmp_path / "in.csv", tmp_path / "out.csv"))
    patients(50).to_csv(tmp_path / "in.csv", index=False)
    corrected = order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",))
    assert predict(corrected).rows == 50
    assert len(logged(local)) == 50


@pytest.mark.usefixtures("small")
def test_bad_rows_stop_or_are_reported_without_values(database: str, tmp_path: Path) -> None:
    rows = patients(250).astype({"age": object, "chol": object})
    rows.loc[120, "age"] = "secret-age"
    rows.loc[120, "chol"] = 99_999
    rows.loc[240, "sex"] = None
    rows.to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",))
    said = r"row 121, column 'age': no whole number; of 100 rows there 1 cannot .*--on-bad-row skip"
    with pytest.raises(DataError, match=said) as stopped:
        predict(wanted)
    assert "secret" not in str(stopped.value) and not (tmp_path / "out.csv").exists()
    done = predict(wanted, "skip")
    assert (done.rows, done.bad_rows, done.logged, done.resumed) == (248, 2, 248, 1)
    report = pd.read_csv(str(done.report))
    assert report.to_dict("list") == {
        "row": [121, 121, 241],
        "column": ["age", "chol", "sex"],
        "reason": ["no whole number", "outside the range 60 to 700", "missing, and a value is needed"],
    }
    out = pd.read_csv(tmp_path / "out.csv")
    assert out["patient"].tolist() == [p for n, p in enumerate(rows["patient"]) if n not in (120, 240)]
    assert [one.id for one in logged(database)] == out["prediction_id"].tolist()


def test_unseen_categories_are_flagged_as_by_the_service(local: str, release: Release, tmp_path: Path) -> None:
    rows = patients(30).astype({"cp": object})
    rows.loc[4, "cp"] = "9"
    rows.to_csv(tmp_path / "in.csv", index=False)
    predict(order(tmp_path / "in.csv", tmp_path / "out.csv"))
    out = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert out["flags"].tolist() == ["cp" if row == 4 else "" for row in range(30)]
    expected = served_answers(release, rows)
    assert [one.answer["flags"] for one in logged(local)] == [one["flags"] for one in expected]
    assert out["probability"].to_numpy() == pytest.approx([one["probability"] for one in expected], abs=1e-6)


def test_personal_columns_leave_as_pseudonyms_unless_they_are_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'gauntlet.db'}"
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    houses = write(tmp_path / "release", "houses", "linear_regression")
    crown(Ledger(url), 1, houses)
    frame = frame_of("houses").head(40).drop(columns="price")
    frame["heated"] = frame["heated"].map({0.0: "no", 1.0: "yes"})
    frame.to_csv(tmp_path / "in.csv", index=False)
    same = {"model": "houses", "input": str(tmp_path / "in.csv")}
    predict(Order(**same, output=str(tmp_path / "hidden.csv"), keep=("owner", "kind")))
    predict(Order(**same, output=str(tmp_path / "clear.parquet"), key=("owner",)))
    hidden, clear = pd.read_csv(tmp_path / "hidden.csv"), pd.read_parquet(tmp_path / "clear.parquet")
    assert hidden["owner"].str.fullmatch(r"p\.[0-9a-f]{64}").all()
    assert clear["owner"].tolist() == frame["owner"].tolist()
    assert hidden["kind"].tolist() == frame["kind"].tolist()
    assert "probability" not in clear and clear["prediction"].to_numpy() == pytest.approx(hidden["prediction"])
    assert "pseudonym-" not in (tmp_path / "hidden.csv").read_text()


def test_from_a_query_into_a_table(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE", database)
    shutil.rmtree(home_dir() / "batch", ignore_errors=True)  # of the other engine, whose order is the same
    rows = patients(230)
    engine = sa.create_engine(parse_url(database))
    rows.to_sql("patients", engine, index=False)
    query = "SELECT * FROM patients ORDER BY patient"
    same: dict[str, Any] = {"model": MODEL, "input": "${WAREHOUSE}", "keep": ("patient", "age")}
    wanted = Order(**same, query=query, output="${WAREHOUSE}", table="scores")
    assert predict(wanted).rows == 230
    again = predict(wanted)
    assert again.repeated
    scores = pd.read_sql("SELECT * FROM scores ORDER BY patient", engine)
    assert scores["patient"].tolist() == sorted(rows["patient"])
    assert sorted(scores["prediction_id"]) == sorted(one.id for one in logged(database))
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM scores"))
    assert not predict(wanted).repeated
    pd.testing.assert_frame_equal(pd.read_sql("SELECT * FROM scores ORDER BY patient", engine), scores)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM patients WHERE patient = (SELECT min(patient) FROM patients)"))
    assert predict(wanted, force=True).rows == 229
    anew = pd.read_sql("SELECT * FROM scores ORDER BY patient", engine)
    assert anew["patient"].tolist() == sorted(rows["patient"])[1:], "a corrected partition replaces itself"
    shutil.rmtree(home_dir() / "batch")  # as another home, which remembers nothing of it
    assert not predict(wanted).repeated
    assert len(pd.read_sql("SELECT * FROM scores", engine)) == 229
    other = Order(**same, query=f"{query} LIMIT 10", output="${WAREHOUSE}", table="scores")
    assert predict(other).rows == 10
    assert len(pd.read_sql("SELECT * FROM scores", engine)) == 239, "another partition is beside it"
    engine.dispose()


def test_a_table_from_before_orders_were_named_in_it_is_added_to(url: str) -> None:
    engine = sa.create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE scores (prediction_id VARCHAR(48) PRIMARY KEY, x BIGINT)"))
        connection.execute(sa.text("INSERT INTO scores VALUES ('old', 1)"))
    table = DatabaseTable(url, "scores", "run-a")
    for identity in ("new", "newer"):
        part = pa.table({"prediction_id": [identity], "x": [2]})
        assert table.publish([part], part.schema) == identity
        assert table.holds(identity)
    with engine.connect() as connection:
        told = connection.execute(sa.text("SELECT prediction_id, batch_run FROM scores ORDER BY x")).all()
    assert [tuple(row) for row in told] == [("old", None), ("newer", "run-a")]
    assert table.publish([part.slice(0, 0)], part.schema) == ""
    assert not table.holds("newer")
    engine.dispose()


def test_a_table_that_does_not_fit_is_left_as_it_is(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAREHOUSE", f"sqlite:///{tmp_path / 'warehouse.db'}")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'warehouse.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE scores (prediction_id TEXT, other TEXT)"))
    patients(20).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", Path("${WAREHOUSE}"), table="scores")
    with pytest.raises(DataError, match=r"table scores: the database refused: .*; nothing was written"):
        predict(wanted)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM scores")) == 0
    engine.dispose()


def test_a_sample_of_the_chunks_is_logged_as_configured(
    local: str, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "ROWS", 10)
    configured(local, tmp_path / "half", PredictionLogging(sample=0.5))
    patients(400).to_csv(tmp_path / "in.csv", index=False)
    done = predict(order(tmp_path / "in.csv", tmp_path / "out.csv"))
    assert done.rows == 400
    ids = pd.read_csv(tmp_path / "out.csv")["prediction_id"]
    assert {one.id for one in logged(local)} == {i for i in ids if is_sampled(i.partition("-")[0], 0.5)}


@pytest.mark.parametrize("mode", ["required", "best_effort"])
def test_a_log_that_cannot_be_written(mode: Any, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(local, tmp_path / "other", PredictionLogging(mode=mode))
    patients(20).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv")
    # The month may end meanwhile.
    tables = {table_of(new_id(time.time() + later)) for later in (0, 3_600)}
    with sqlite3.connect(tmp_path / "gauntlet.db") as connection:
        for table in tables:
            connection.execute(f"CREATE VIEW {table} AS SELECT 1 AS id")
    if mode == "best_effort":
        done = predict(wanted)
        assert (done.rows, done.logged, done.lost) == (20, 0, 20)
        return
    with pytest.raises(WorkError, match=r"log cannot be written: .*; the same command goes on from here"):
        predict(wanted)
    assert not (tmp_path / "out.csv").exists()
    with sqlite3.connect(tmp_path / "gauntlet.db") as connection:
        for table in tables:
            connection.execute(f"DROP VIEW {table}")
    assert predict(wanted).logged == 20


def test_one_run_at_a_time_writes_an_output(local: str, tmp_path: Path) -> None:
    patients(20).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv")
    refused: list[str] = []

    def again(_: int) -> None:
        with pytest.raises(WorkError) as error:
            predict(wanted)
        refused.append(str(error.value))

    predict(wanted, tell=again)
    assert refused == ["another run is writing to out.csv; wait for its end"]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (lambda path: None, "there is no such file"),
    "missing column": (
        lambda path: patients(5).drop(columns="age").to_csv(path, index=False),
        "'age'.*There is: 'sex'",
    ),
    "empty file": (lambda path: path.write_bytes(b""), "no column names"),
    "only a header": (lambda path: patients(5).head(0).to_csv(path, index=False), "no rows"),
    "ragged": (lambda path: path.write_text(patients(5).to_csv(index=False) + "1,2,3\n"), "line 7 has 3 fields"),
    "binary": (lambda path: patients(5).to_parquet(path), "binary data"),
    "no UTF-8": (
        lambda path: path.write_bytes(patients(5).to_csv(index=False).encode().replace(b"\n", b"\n\xff", 2)),
        "is no UTF-8 text",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_reason(case: str, local: str, tmp_path: Path) -> None:
    make, said = BAD[case]
    make(tmp_path / "in.csv")
    with pytest.raises(DataError, match=rf"(?s)input .*in\.csv.*{said}"):
        predict(order(tmp_path / "in.csv", tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_orders_that_make_no_sense(local: str, tmp_path: Path) -> None:
    patients(5).assign(flags=1).to_csv(tmp_path / "in.csv", index=False)
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    for wanted, said in (
        (order(source, tmp_path / "out.xlsx"), "ends in none of"),
        (order(source, target, table="scores"), "takes no --table"),
        (order(source, target, query="SELECT 1"), "takes no --query"),
        (order(source, target, keep=("flags",)), "'flags' cannot be kept"),
        (Order(model=MODEL, input="sqlite:///x.db", output=str(target)), "needs --query"),
        (Order(model=MODEL, input="postgresql://u:secret@h/d", query="-", output=str(target)), "password"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            predict(wanted, force=True)
        assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="'nowhere'"):
        predict(order(source, target, keep=("nowhere",)), force=True)
    with pytest.raises(WorkError, match="no such folder"):
        predict(order(source, tmp_path / "nowhere" / "out.csv"))
    with pytest.raises(WorkError, match=r"'wine' has no champion.*gauntlet run wine"):
        predict(Order(model="wine", input=str(source), output=str(target)), force=True)


@pytest.mark.usefixtures("small")
def test_killed_in_the_middle_the_same_order_ends_with_the_same_file(local: str, tmp_path: Path) -> None:
    patients(1_000).to_csv(tmp_path / "in.csv", index=False)
    wanted = order(tmp_path / "in.csv", tmp_path / "out.csv", keep=("patient",))
    chunks = tmp_path / "out.csv.run" / "chunks"
    process = started(tmp_path, local, 100, tmp_path / "in.csv", tmp_path / "out.csv", 4)
    _, said = process.communicate(timeout=250)
    assert process.returncode == -signal.SIGKILL, said.decode()
    assert not (tmp_path / "out.csv").exists()
    begun = json.loads((chunks.parent / "run.json").read_text())
    done = predict(wanted)
    assert (done.rows, done.resumed >= 3) == (1_000, True)
    ids = pd.read_csv(tmp_path / "out.csv")["prediction_id"].tolist()
    assert [one.id for one in logged(local)] == ids
    begun["order"]["output"] = str(tmp_path / "whole.csv")
    (tmp_path / "whole.csv.run").mkdir()
    (tmp_path / "whole.csv.run" / "run.json").write_text(json.dumps(begun))
    assert predict(wanted.model_copy(update={"output": str(tmp_path / "whole.csv")})).resumed == 0
    assert sum_of(tmp_path / "whole.csv") == sum_of(tmp_path / "out.csv")
    assert [one.id for one in logged(local)] == ids


def killed_and_finished(folder: Path, url: str, rows: int, count: int, source: Path, target: Path) -> int:
    """Kill a run when it has begun, in its first, middle and last chunks and while it writes out; how often."""
    run = target.with_name(f"{target.name}.run")
    chunks = -(-count // rows)
    points: list[Callable[[], bool]] = [(run / "run.json").exists]
    for share in (0.0, 0.5, 0.99):
        due = max(1, int(share * chunks))
        points.append(lambda due=due: len(list(run.glob("chunks/*.arrow"))) >= due)  # type: ignore[misc]
    points.append((run / "draft").exists)
    for come in points:
        kill_when(started(folder, url, rows, source, target), come)
        assert not target.exists()
    last = started(folder, url, rows, source, target)
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said.decode()
    return len(points)


def uninterrupted(folder: Path, url: str, rows: int, source: Path, like: Path) -> Path:
    """The output of a run that began at the same moment as another and was never killed."""
    target = folder / f"whole{like.suffix}"
    run = target.with_name(f"{target.name}.run")
    run.mkdir()
    begun = json.loads(like.with_name(f"{like.name}.run").joinpath("run.json").read_text())
    begun["finished"], begun["order"]["output"] = None, str(target)
    (run / "run.json").write_text(json.dumps(begun))
    whole = started(folder, url, rows, source, target)
    _, said = whole.communicate(timeout=600)
    assert whole.returncode == 0, said.decode()
    return target


@pytest.mark.prove
def test_a_million_rows_killed_in_the_middle(
    local: str, tmp_path: Path, proof: Callable[[str, object, str], None]
) -> None:
    count = 1_000_000
    patients(count).to_csv(tmp_path / "in.csv", index=False)
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    begun = time.monotonic()
    points = killed_and_finished(tmp_path, local, batch.ROWS, count, source, target)
    seconds = time.monotonic() - begun
    ids = pd.read_csv(target, usecols=["prediction_id"])["prediction_id"]
    assert len(ids) == ids.nunique() == count
    assert predictions.count(local, MODEL, *EVER) == count
    whole = uninterrupted(tmp_path, local, batch.ROWS, source, target)
    assert sum_of(whole) == sum_of(target)
    assert predictions.count(local, MODEL, *EVER) == count
    records = {i.partition("-")[0] for i in ids}
    with sqlite3.connect(f"file:{tmp_path / 'gauntlet.db'}?mode=ro", uri=True) as connection:
        stored = connection.execute(f"SELECT id FROM {table_of(ids[0])}").fetchall()
    assert sorted(identity for (identity,) in stored) == sorted(records)
    proof(
        f"gauntlet predict, a million rows, kill -9 at {points} points: the same file, every id in the log once",
        f"{count:,} rows",
        f"equal, {seconds:.0f} s with all restarts",
    )
