"""`gauntlet show`: all models from the ledger, their YAMLs and this home's record, however many there are."""

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from flows.console import span
from flows.overview import next_run, overview
from flows.record import last_runs, recorded
from flows.usage import StepUsage, read_usages, time_line
from models.config import Schedule
from models.errors import ConfigError, DataError
from stacks.home import clone_dir, environment
from stacks.ledger import Ledger, open_ledger
from tests.flows.conftest import TOY, Invoke

RUN = """
import os, signal, sys
from flows.run import use_prefect
from stacks.home import use_home

with use_prefect(use_home(), "flows.record"):
    from prefect import flow
    from prefect.runtime import flow_run
    from flows.record import recorded

    @flow(name="train", validate_parameters=False)
    def train(end):
        print(flow_run.id, flush=True)
        with recorded("toy", str(flow_run.id)) as ended:
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            ended(end)

    train(sys.argv[1])
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger and a folder of models of the test's own: `toy` and what it adds."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("GAUNTLET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GAUNTLET_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    _write(tmp_path, "toy")
    return open_ledger()


def _write(folder: Path, name: str, **changes: object) -> None:
    (folder / "models" / f"{name}.yaml").write_text(yaml.safe_dump({**TOY, "name": name, **changes}, sort_keys=False))


def _promote(ledger: Ledger, model: str, version: int, score: float) -> None:
    ledger.append("promote", model, version, payload={"metrics": {"roc_auc": score, "accuracy": 0.5}})


def test_champion_score_age_last_run_next_run(ledger: Ledger, tmp_path: Path) -> None:
    _write(tmp_path, "daily", schedule={"cron": "0 6 * * *"})
    _write(tmp_path, "broken", metricc="accuracy")
    _promote(ledger, "toy", 1, 0.9)
    _promote(ledger, "toy", 2, 0.95)
    ledger.append("keep", "toy", 3, payload={"metrics": {"roc_auc": 0.1}})
    broken, daily, toy = overview()
    assert (toy.model, toy.champion, toy.metric, toy.score) == ("toy", 2, "roc_auc", 0.95)
    assert (toy.outcome, toy.told_by, toy.next_run, toy.error) == ("kept", "ledger", None, None)
    assert toy.since is not None and datetime.fromisoformat(toy.since) <= datetime.now(UTC)
    assert (daily.champion, daily.score, daily.last_run) == (None, None, None)
    assert daily.next_run is not None and daily.next_run.endswith("T06:00:00+00:00")
    assert broken.error is not None and "unknown key; did you mean 'metric'" in broken.error
    ledger.append("rollback", "toy", 1, payload={"from": 2})
    assert [(row.champion, row.score) for row in overview() if row.model == "toy"] == [(1, 0.9)]


def test_the_table_shows_a_broken_model_as_a_row(ledger: Ledger, tmp_path: Path, invoke: Invoke) -> None:
    _write(tmp_path, "broken", metricc="accuracy")
    _promote(ledger, "toy", 1, 0.9)
    shown = invoke(["show"])
    assert shown.code == 0, shown.printed
    assert shown.json is not None
    assert [model["model"] for model in shown.json["models"]] == ["broken", "toy"]
    assert shown.json["models"][1]["score"] == 0.9
    command = [sys.executable, "-m", "flows", "show"]
    text = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True)
    lines = text.stdout.splitlines()
    assert lines[1].split() == ["model", "champion", "score", "age", "last", "run", "next", "run"]
    assert "metricc: unknown key" in lines[2]
    assert lines[3].split()[:4] == ["toy", "v1", "roc_auc", "0.9"]


def test_a_hundred_models_take_two_queries(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(100):
        _write(tmp_path, f"m{number:03d}")
        _promote(ledger, f"m{number:03d}", 1, number / 100)
    asked: list[str] = []
    overview()  # the table is there, nothing is migrated below
    listen = (sa.Engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    sa.event.listen(*listen)
    try:
        rows = overview()
    finally:
        sa.event.remove(*listen)
    assert [row.score for row in rows if row.model.startswith("m")] == [number / 100 for number in range(100)]
    assert len([statement for statement in asked if "FROM ledger" in statement]) == 2


def test_a_later_run_of_this_home_that_failed_is_told(ledger: Ledger, tmp_path: Path) -> None:
    _promote(ledger, "toy", 1, 0.9)
    with pytest.raises(DataError), recorded("toy", "f-1"):
        assert last_runs()["toy"].outcome == "running"
        raise DataError("no rows in postgresql://me:hunter2@db/x")
    (toy,) = overview()
    assert (toy.outcome, toy.told_by, toy.champion) == ("failed", "home", 1)
    assert last_runs()["toy"].reason == "no rows in postgresql://…@db/x"
    with pytest.raises(ValueError), recorded("toy", "f-2"):
        raise ValueError("Ada Lovelace, 36")
    assert last_runs()["toy"].reason == "ValueError", "what a library says may hold a person's data"
    with recorded("toy", "f-3") as ended:
        ended("kept")
    assert last_runs()["toy"].outcome == "kept"
    assert not list((tmp_path / "home" / "runs" / "running").iterdir())


def test_a_killed_run_is_buried_by_the_next_one(home: Path) -> None:
    """Between two pipelines no ZenML run is under way, and Prefect by itself would hold the flow run for running."""
    env = {**os.environ, **environment(home), "PYTHONPATH": str(clone_dir())}
    runs = []
    for end, code in (("killed", -signal.SIGKILL), ("kept", 0)):
        done = subprocess.run([sys.executable, "-c", RUN, end], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr[-2000:]
        runs.append(done.stdout.split()[0].replace("-", ""))
    with sqlite3.connect(home / "prefect" / "prefect.db") as database:
        rows = dict(database.execute("select replace(id, '-', ''), state_type from flow_run").fetchall())
    assert [rows[run] for run in runs] == ["CRASHED", "COMPLETED"]


def test_next_run_by_cron_and_time_zone() -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    assert next_run(Schedule(cron="30 6 * * 1"), now) == "2026-11-23T06:30:00+00:00"
    assert next_run(Schedule(cron="0 6 * * *", timezone="Europe/Berlin"), now) == "2026-11-22T05:00:00+00:00"
    assert next_run(Schedule(cron="0 6 * * *", active=False), now) is None
    never = Schedule.model_construct(cron="0 6 30 2 *", timezone="UTC", active=True)
    with pytest.raises(ConfigError, match="no time that ever comes"):
        next_run(never, now)


@pytest.mark.parametrize(
    ("past", "said"),
    [
        (timedelta(seconds=40), "40 s"),
        (timedelta(minutes=5), "5 min"),
        (timedelta(hours=3), "3 h"),
        (timedelta(days=2), "2 d"),
    ],
)
def test_spans_as_people_say_them(past: timedelta, said: str) -> None:
    assert span(past.total_seconds()) == said


def test_where_the_time_went() -> None:
    steps = [
        StepUsage("ingest", "cached", None, None, None),
        StepUsage("tune", "completed", 12.34, 20.0, 600.0),
        StepUsage("train", "completed", 1.2, 1.1, 1_500.4),
    ]
    assert time_line(steps) == "tune 12.3 s, train 1.2 s; cached: ingest; most memory: 1,500 MiB in train"
    assert time_line(steps[:1]) == ""
    metrics = {"seconds_train": 1.2, "peak_mib_train": 1_500.4, "cpu_seconds_train": 1.1, "accuracy": 0.9}
    assert read_usages(metrics) == [steps[2]]
