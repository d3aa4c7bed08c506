"""Whole runs of the real command on the real engines: terminal state, artifacts, links, second runs, rollback."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import Done, Place, toy_frame

SETTING = "promotion.min_improvement.value=0.01"
INTERVAL = re.compile(r"\| [+-]\S+ \([+-]\S+ to [+-]\S+\) \|")
TRAIN_STEPS = ["ingest", "validate", "split", "tune", "train", "evaluate", "package"]


@pytest.fixture(scope="module")
def first(place: Place) -> Done:
    done = place.gauntlet("run", "toy", "--why", "the first one", GAUNTLET_LOG_FORMAT="json")
    assert done.code == 0, done.printed[-3000:]
    return done


@pytest.fixture(scope="module")
def second(place: Place, first: Done) -> Done:
    done = place.gauntlet("run", "toy", "--require-promotion")
    assert done.code == 3, done.printed[-3000:]
    return done


def test_first_run_promotes_and_says_all(first: Done) -> None:
    result = first.json
    assert result is not None
    assert (result["verdict"], result["version"], result["champion"]) == ("promoted", 1, 1)
    assert result["bento"] == "toy:000001"
    assert result["metrics"]["roc_auc"] > 0.8
    assert {gate["name"] for gate in result["gates"]} >= {"quality_score", "smoke_test"}
    assert all(len(result[key]) == 64 for key in ("release_digest", "data_digest"))
    assert result["answer"]["version"] == 1
    for key in ("zenml_run_id", "prefect_flow_run_id", "mlflow_run_id", "seconds"):
        assert result[key]
    assert "toy: source 'file' (csv file toy.csv)" in first.printed
    assert "Traceback" not in first.printed, "at exit neither: Python 3.12 starts no thread there"


def test_stderr_is_json_and_what_steps_say_carries_all_ids(first: Done) -> None:
    assert first.json is not None
    lines = [json.loads(line) for line in first.stderr.splitlines()]
    said = [line for line in lines if line["logger"].startswith("steps.")]
    assert {line["step"] for line in said} >= {"ingest", "validate", "tune", "promote", "deploy"}
    for line in said:
        assert (line["model"], line["prefect_flow_run_id"]) == ("toy", first.json["prefect_flow_run_id"])
        assert (line["zenml_run_id"] == first.json["zenml_run_id"]) == (line["step"] in TRAIN_STEPS)
        if line["step"] not in ("ingest", "validate", "split"):
            assert line["mlflow_run_id"] == first.json["mlflow_run_id"], "known since tuning began it"
    assert len({(line["step"], line["message"]) for line in said}) == len(said), "nothing is said twice"


def test_steps_tell_what_they_used(first: Done, second: Done, place: Place) -> None:
    assert first.json is not None and second.json is not None
    steps = first.json["steps"]
    assert [step["name"] for step in steps] == [*TRAIN_STEPS, "promote", "deploy"]
    for step in steps:
        assert step["status"] == "completed"
        assert 0 < step["seconds"] < first.json["seconds"]
        assert step["cpu_seconds"] > 0 and step["peak_mib"] > 100
    again = {step["name"]: step for step in second.json["steps"]}
    assert again["tune"] == {**dict.fromkeys(again["tune"]), "name": "tune", "status": "cached"}
    assert again["deploy"]["seconds"] > 0
    with sqlite3.connect(place.home / "mlflow" / "mlflow.db") as database:
        query = "select key, value from latest_metrics where run_uuid = ?"
        logged = dict(database.execute(query, (first.json["mlflow_run_id"],)).fetchall())
    train = next(step for step in steps if step["name"] == "train")
    figures = [logged[f"{figure}_train"] for figure in ("seconds", "cpu_seconds", "peak_mib")]
    assert figures == [train["seconds"], train["cpu_seconds"], train["peak_mib"]]
    with sqlite3.connect(next((place.home / "zenml").rglob("zenml.db"))) as database:
        kinds = (
            "select distinct resource_type from run_metadata_resource r join run_metadata m on r.run_metadata_id = m.id"
        )
        assert {row[0] for row in database.execute(f"{kinds} where m.key = 'resources'")} == {
            "step_run",
            "artifact_version",
        }


def test_second_run_keeps_the_champion_uses_the_cache_and_ends_with_3(first: Done, second: Done, place: Place) -> None:
    result = second.json
    assert result is not None and first.json is not None
    assert (result["verdict"], result["champion"], result["version"]) == ("kept", 1, 1)
    assert result["release_digest"] == first.json["release_digest"]
    assert result["answer"] is None, "nothing was published, so nothing is served again"
    assert re.findall(r"✓ (\w+) +cached", second.printed) == TRAIN_STEPS[:5]


def test_the_records_know_of_each_other(first: Done, second: Done, place: Place) -> None:
    assert first.json is not None
    database = sqlite3.connect(next((place.home / "zenml").rglob("zenml.db")))
    statuses = {row[0] for row in database.execute("select status from pipeline_run")}
    assert statuses == {"completed"}
    prefect = sqlite3.connect(place.home / "prefect" / "prefect.db")
    states = {row[0] for row in prefect.execute("select state_type from flow_run")}
    assert states == {"COMPLETED"}
    tasks = prefect.execute(
        "select name from task_run where flow_run_id = ? order by start_time", (first.json["prefect_flow_run_id"],)
    )
    assert [row[0] for row in tasks] == [*TRAIN_STEPS, "promote", "deploy"]


def test_nothing_is_left_running(first: Done, second: Done, place: Place) -> None:
    left = []
    for process in psutil.process_iter(["environ", "pid"]):
        environ = process.info["environ"] or {}
        if environ.get("GAUNTLET_HOME") == str(place.home) and process.pid != os.getpid():
            left.append(process.cmdline())
    assert left == []


def test_the_decision_is_reported_and_has_its_card(first: Done, second: Done, place: Place) -> None:
    told = place.gauntlet("report", "toy", "--format", "md").json
    assert told is not None and first.json is not None
    text = told["text"]
    assert "**v1 kept**" in text and "this Release is the champion" in text
    for part in ("Figures", "Gates", "Explanations", "Lineage"):
        assert f"### {part}" in text
    assert re.search(r"\| \*\*roc_auc\*\* \| 0\.\d+ .*\| 0\.\d+ .*\|", text), "champion and challenger"
    assert re.search(r"\| pressure \| \d+\.\d% \|", text)
    assert "Importance drift against v1: 0," in text, "the same Release"
    for name in ("source: file", f"MLflow run: {first.json['mlflow_run_id']}", "Prefect flow run: ", "seed: 42"):
        assert f"- {name}" in text
    page = place.gauntlet("report", "toy", "--output", str(place.data / "toy.html"))
    assert page.json is not None and page.json["path"] == str(place.data / "toy.html")
    loads = re.findall(r'(?:src|href)="([^"]*)', (place.data / "toy.html").read_text())
    assert len(loads) >= 4 and all(load.startswith("data:image/png;base64,") for load in loads)
    cards = sorted(path.name for path in place.home.rglob("evidence/card-*"))
    assert cards == ["card-000001.html", "card-000001.md", "card-000002.html", "card-000002.md"]
    card = next(place.home.rglob("card-000002.md")).read_text()
    assert "### Data" in card and "| age | integer | feature |" in card and "Nobody has written them" in card


@pytest.mark.usefixtures("server")
def test_show_history_doctor_and_rollback(first: Done, second: Done, place: Place) -> None:
    shown = place.gauntlet("show", "toy")
    assert shown.json is not None and shown.json["champion"] == 1
    assert shown.json["data_digest"] == first.json["data_digest"]  # type: ignore[index]
    assert shown.json["metrics"]["roc_auc"] == first.json["metrics"]["roc_auc"]  # type: ignore[index]
    assert {step["name"] for step in shown.json["steps"]} == {*TRAIN_STEPS, "promote", "deploy"}
    past = place.gauntlet("history", "toy", "--at", "2001-01-01")
    assert past.json is not None and past.json["champion"] is None
    entries = place.gauntlet("history", "toy")
    assert entries.json is not None and entries.json["entries"][0]["why"].endswith("the first one")
    nothing = place.gauntlet("rollback", "toy")
    assert nothing.code == 1
    assert nothing.json is not None and "nothing to roll back to" in nothing.json["error"]
    changed = toy_frame(900, seed=5)
    changed["ill"] = changed["ill"].map({"yes": "no", "no": "yes"})
    changed.to_csv(place.data / "toy.csv", index=False)
    asked = ("--set", "logging.format=json", "--set", SETTING)
    promoted = place.gauntlet("run", "toy", "--why", "the world turned round", *asked)
    assert promoted.json is not None, promoted.printed[-2000:]
    assert "Step `ingest` has started" in promoted.printed, "the CSV is another one"
    assert (promoted.json["verdict"], promoted.json["champion"]) == ("promoted", 2)
    assert promoted.json["compared_rows"] > 100
    assert promoted.json["answer"]["version"] == 2
    back = place.gauntlet("rollback", "toy", "--why", "as a test")
    assert back.code == 0 and back.json is not None and back.json["champion"] == 1
    health = place.gauntlet("doctor")
    assert health.code == 0, health.printed


def _report(place: Place, versions: str) -> tuple[str, list[str]]:
    """A report as Markdown, and the lines of its table of figures."""
    done = place.gauntlet("report", "toy", "--format", "md", "--versions", versions)
    assert done.json is not None, done.printed[-3000:]
    figures = done.json["text"].partition("### Figures")[2].partition("\n### ")[0].splitlines()
    return done.json["text"], [line for line in figures if line.startswith("| ") and " better by " not in line]


def test_versions_stand_side_by_side_with_intervals_whether_they_met_or_not(place: Place, second: Done) -> None:
    if len(place.gauntlet("history", "toy").json["versions"]) < 2:  # type: ignore[index]
        pytest.skip("there is no v2: the test before this one was not run")
    text, figures = _report(place, "1,2")
    assert "was not judged against" not in text
    assert len(figures) == 9 and all(INTERVAL.search(line) for line in figures), figures
    text, figures = _report(place, "2,1")
    assert "v1 was not judged against v2: this report put both on the test rows of v1." in text
    assert "| figure | champion v2 | challenger v1 | better by |" in text
    assert len(figures) == 9 and all(INTERVAL.search(line) for line in figures), figures
    assert re.search(r"\| \*\*roc_auc\*\* \| 0\.\d+ \| 0\.\d+ \(\S+ to \S+\) \| \+0\.\d+ \(\+", figures[0]), figures[0]
    (split,) = (place.home / "zenml").glob("local_stores/*/split")
    away = split.rename(split.with_name("away"))
    text, figures = _report(place, "2,1")
    away.rename(split)
    assert "no interval of a paired difference because the test rows of v1 are not at hand any more (" in text
    assert len(figures) == 9 and not any(INTERVAL.search(line) for line in figures), figures


@pytest.mark.usefixtures("server")
def test_settings_of_a_run_are_shown_and_go_with_what_is_decided_by_hand(place: Place, second: Done) -> None:
    if len(place.gauntlet("history", "toy").json["versions"]) < 2:  # type: ignore[index]
        pytest.skip("there is no v2: the test before this one was not run")
    assert f"- judged with --set: {SETTING}" in _report(place, "2")[0].replace("\\", "")
    done = place.gauntlet("promote", "toy", "2", "--override", "improvement", "--why", "it is the better one")
    assert done.code == 0, done.printed[-3000:]
    last = place.gauntlet("history", "toy").json["entries"][-1]  # type: ignore[index]
    assert (last["action"], last["why"]) == ("promote", "it is the better one")
    assert last["payload"]["settings"] == [SETTING]
    env = place.env | {"COLUMNS": "400"}
    command = [sys.executable, "-m", "flows", "history", "toy"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True).stdout
    assert shown.count(f"(judged with --set {SETTING})") == 2, shown
    assert place.gauntlet("rollback", "toy", "--to", "1").code == 0


@pytest.mark.usefixtures("server")
def test_editing_a_plain_function_makes_its_step_run_again(place: Place, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for room in ("models", "stacks", "bentos", "steps", "flows"):
        shutil.copytree(root / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "requirements.lock", tmp_path)

    def run() -> str:
        done = place.gauntlet("run", "toy", "--set", "logging.format=json", code=tmp_path)
        assert done.code == 0, done.printed[-3000:]
        return done.printed

    assert "Using cached version of step `validate`" in run(), "the same code, wherever it lies"
    leak = tmp_path / "steps" / "leak.py"
    leak.write_text(leak.read_text().replace("def ", "def  ", 1))
    edited = run()
    assert "Step `validate` has started" in edited
    assert "Step `ingest` has started" not in edited
    assert "Using cached version of step `tune`" in edited


@pytest.mark.usefixtures("server")
def test_promoting_by_hand_overrides_by_name_and_history_shows_it(place: Place, second: Done) -> None:
    shown = place.gauntlet("show", "toy").json
    assert shown is not None
    if shown["champion"] == 1:
        pytest.skip("v1 is champion: the tests before this one were not run")
    done = place.gauntlet("promote", "toy", "1", "--override", "improvement", "--why", "the old one, by name")
    assert done.code == 0, done.printed[-3000:]
    assert done.json is not None
    assert (done.json["verdict"], done.json["champion"], done.json["overridden"]) == ("promoted", 1, ["improvement"])
    assert done.json["answer"]["version"] == 1
    last = place.gauntlet("history", "toy").json["entries"][-1]  # type: ignore[index]
    assert (last["action"], last["why"]) == ("promote", "the old one, by name")
    assert last["payload"]["overridden"] == ["improvement"]
    assert "overridden: improvement" in last["payload"]["verdict"]["reason"]
