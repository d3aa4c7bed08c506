"""Sources through the real command: a fault is bounded words, the right exit code and no credential."""

import json
import sqlite3
from pathlib import Path

import pytest

from models.errors import LIMIT
from steps import web
from tests.databases import files_holding
from tests.flows.conftest import Invoke, Place, toy_frame
from tests.steps.services import server
from tests.steps.website import Answer, website

PASSWORD = "hunter2-password"


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("GAUNTLET_MODELS", str(place.models))
    monkeypatch.setenv("GAUNTLET_DATA", str(place.data))
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("API_TOKEN", PASSWORD)
    monkeypatch.setattr(web, "BACKOFF", 0.01)
    return place


def _source(**keys: object) -> list[str]:
    return ["run", "toy", "--set", f"sources={json.dumps([{'name': 'bad', **keys}])}"]


SQL = {"kind": "sql", "query": "SELECT * FROM toy"}
PINNED = {"kind": "url", "sha256": "0" * 64, "retries": 1}
CASES: dict[str, tuple[dict[str, object], int, str]] = {
    "database down": ({**SQL, "url": "postgresql://me:${DB_PASSWORD}@127.0.0.1:9/x"}, 1, "cannot be reached (refused)"),
    "wrong password": ({**SQL, "url": "mysql://nobody:${DB_PASSWORD}@127.0.0.1:3306/test"}, 1, "check DB_PASSWORD"),
    "literal password": ({**SQL, "url": f"mysql://me:{PASSWORD}@127.0.0.1/x"}, 2, "write ${VARIABLE}"),
    "no variable": ({**SQL, "url": "mysql://me:${NOT_SET}@127.0.0.1/x"}, 2, "not set: NOT_SET"),
    "no rows": ({**SQL, "url": "sqlite:///toy.db"}, 1, "the query returned no rows"),
    "bad query": ({**SQL, "url": "sqlite:///toy.db", "query": "SELECT FROM"}, 1, "syntax error"),
    "no file": ({**PINNED, "url": "{site}/none.csv"}, 1, "answers 404"),
    "wrong sum": ({**PINNED, "url": "{site}/toy.csv"}, 1, "000000000000"),
    "redirect to a file": ({**PINNED, "url": "{site}/moved"}, 1, "only http and https"),
    "no json": (
        {"kind": "http", "url": "{site}/toy.csv", "headers": {"X-Token": "${API_TOKEN}"}},
        1,
        "page 1 is no JSON",
    ),
}


def _site(path: str) -> Answer:
    content = toy_frame().to_csv(index=False).encode()
    answers = {"/toy.csv": Answer(content), "/moved": Answer(status=302, headers={"Location": "file:///etc/passwd"})}
    return answers.get(path, Answer(status=404))


@pytest.mark.parametrize("case", CASES)
def test_a_source_that_fails_is_told_in_words(case: str, here: Place, invoke: Invoke) -> None:
    keys, code, word = CASES[case]
    if case == "wrong password":
        server("mariadb")
    with sqlite3.connect(here.data / "toy.db") as database:
        database.execute("CREATE TABLE IF NOT EXISTS toy (age, pressure, ward, ill)")
    with website(lambda asked: _site(asked.path)) as site:
        filled = {k: v.replace("{site}", site.url) if isinstance(v, str) else v for k, v in keys.items()}
        done = invoke(_source(**filled))
        debugged = invoke([*_source(**filled), "--debug"]) if case in ("wrong password", "no json") else done
    assert done.code == code and done.json is not None, done.printed[-2000:]
    assert word in done.json["error"] and len(done.json["error"]) <= LIMIT
    assert "Traceback" not in done.printed
    assert PASSWORD not in done.printed + debugged.printed


def test_no_credential_of_a_failed_run_is_on_the_disk(here: Place, home: Path, invoke: Invoke) -> None:
    server("mariadb")
    assert invoke(_source(**CASES["wrong password"][0])).code == 1
    assert files_holding(PASSWORD, home) == []


def test_bad_rows_of_a_query_are_set_aside_and_the_rest_is_learnt(
    here: Place, home: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = toy_frame().astype({"age": object})
    frame.loc[:4, "age"] = "old"
    frame.loc[7, "ill"] = None
    with sqlite3.connect(here.data / f"{PASSWORD}.db") as database:
        frame.to_sql("toy", database, index=False, if_exists="replace")
    monkeypatch.setenv("TOY_DATABASE", f"{PASSWORD}.db")
    keys = {**SQL, "url": "sqlite:///${TOY_DATABASE}"}
    stopped = invoke(_source(**keys))
    assert stopped.code == 1 and stopped.json is not None and "on_bad_row: quarantine" in stopped.json["error"]
    settings = ["--set", "on_bad_row=quarantine", "--set", "tuning.trials=0"]
    done = invoke([*_source(**keys), *settings, "--why", "it costs ${5}"])
    assert done.code == 0 and done.json is not None, done.printed[-2000:]
    assert done.json["quarantined_rows"] == 6
    assert files_holding(PASSWORD, home) == [], "ZenML would put the variable's value into the parameters that it keeps"
    assert "it costs ${5}" in invoke(["history", done.json["model"]]).printed
    assert "quarantined 6 of 240 rows: 'age' 5 times no whole number, 'ill' 1 times no value" in done.printed
    few = invoke([*_source(**keys), *settings, "--set", "validation.min_rows=235"])
    assert few.code == 1 and "235" in few.printed, "the rows that are left must be enough"
