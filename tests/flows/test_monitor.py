"""`gauntlet monitor` and the flow `monitor` on the real engines: a small champion that answered, and what is found."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from stacks.findings import Finding, read_findings
from stacks.ledger import Ledger
from tests.flows.conftest import Done, Invoke, Place, toy_frame

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("server")]
CHECKS = ["performance", "quality", "drift", "prediction_drift", "fairness"]


def ledger_of(place: Place) -> Ledger:
    return Ledger(f"sqlite:///{place.home / 'gauntlet.db'}")


@pytest.fixture(scope="module")
def crowned(place: Place) -> Place:
    """A champion that answered nothing yet."""
    done = place.gauntlet("run", "toy")
    assert done.code == 0, done.printed[-3000:]
    return place


def test_a_champion_that_was_never_served_is_unjudged(crowned: Place) -> None:
    done = crowned.gauntlet("monitor", "toy", "--check", "performance")
    assert done.code == 0 and done.json is not None, done.printed[-3000:]
    (finding,) = done.json["findings"]
    assert (finding["state"], finding["said"]) == ("unjudged", "nothing was answered")


def test_a_schedule_of_a_model_that_was_never_trained_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.schemas.objects import State

    from flows.monitor import monitor

    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "5d3f")
    skipped = monitor.fn("never_trained")
    assert isinstance(skipped, State) and skipped.is_completed() and skipped.name == "Skipped"


@pytest.fixture(scope="module")
def served(crowned: Place) -> Place:
    """A champion that answered 600 rows, all pressures of them far too high, 300 with an outcome."""
    place = crowned
    frame = toy_frame(600, seed=9)
    frame.assign(pressure=frame["pressure"] + 40).to_csv(place.data / "in.csv", index=False)
    answers = place.data / "out.csv"
    done = place.gauntlet("predict", "toy", "--input", str(place.data / "in.csv"), "--output", str(answers))
    assert done.code == 0, done.printed[-3000:]
    ids = pd.read_csv(answers)["prediction_id"]
    pd.DataFrame({"prediction_id": ids, "outcome": frame["ill"]})[:300].to_csv(place.data / "truth.csv", index=False)
    done = place.gauntlet("outcomes", "toy", "--input", str(place.data / "truth.csv"))
    assert done.code == 0, done.printed[-3000:]
    return place


@pytest.fixture(scope="module")
def looked(served: Place) -> Done:
    done = served.gauntlet("monitor", "toy")
    assert done.code == 0, done.printed[-3000:]
    return done


def test_all_checks_are_done_and_trouble_is_no_failure(looked: Done) -> None:
    result = looked.json
    assert result is not None
    assert (result["model"], result["version"], result["notes"]) == ("toy", 1, [])
    states = {finding["check"]: finding["state"] for finding in result["findings"]}
    assert list(states) == CHECKS and states["drift"] == states["prediction_drift"] == "found"
    assert states["fairness"] == "unjudged"
    drift, performance = result["findings"][2], result["findings"][0]
    assert drift["named"] == ["pressure"] and drift["columns"]["pressure"] > 0.3 > drift["columns"]["ward"]
    assert performance["figures"]["labels"] == 300 and performance["figures"]["answers"] == 600
    assert "holdout" in performance["figures"] and "concept_gap" in performance["figures"]
    assert result["zenml_run_id"] and result["prefect_flow_run_id"] and result["seconds"] > 0
    assert "Traceback" not in looked.printed


def test_findings_are_in_the_ledgers_database_with_zenml_and_with_mlflow(looked: Done, served: Place) -> None:
    result = looked.json
    assert result is not None
    kept = read_findings(ledger_of(served), "toy")
    kept = tuple(finding for finding in kept if finding.run == result["zenml_run_id"])
    told = {finding["check"]: finding for finding in result["findings"]}
    assert {finding.check for finding in kept} == set(told) == set(CHECKS)
    for finding in kept:
        assert finding == Finding(**told[finding.check], model="toy", version=1, run=result["zenml_run_id"])
    zenml = sqlite3.connect(next((served.home / "zenml").rglob("zenml.db")))
    names = {
        row[0] for row in zenml.execute("select a.name from artifact_version v join artifact a on a.id = v.artifact_id")
    }
    assert {"findings", "drift_page", "report"} <= names
    pages = list((served.home / "mlflow").rglob(f"monitoring/{kept[0].until.date()}/*/drift.html"))
    assert len(pages) == 1 and "pressure" in pages[0].read_text()
    shown = pages[0].with_name("report.html").read_text()
    assert "Decision" in shown and "Live" in shown and "trouble in" in shown
    prefect = sqlite3.connect(served.home / "prefect" / "prefect.db")
    query = "select name from task_run where flow_run_id = ? order by start_time"
    tasks = [row[0] for row in prefect.execute(query, (result["prefect_flow_run_id"],))]
    assert tasks == ["monitor", "respond", "alert", "show"]


def test_a_look_at_the_past_says_that_later_windows_are_on_record(looked: Done, served: Place) -> None:
    past = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    done = served.gauntlet("monitor", "toy", "--check", "drift", "--window", "12h", "--at", past)
    assert done.code == 0 and done.json is not None, done.printed[-3000:]
    (finding,) = done.json["findings"]
    assert (finding["check"], finding["state"]) == ("drift", "unjudged")
    assert "dated in the future" not in finding["said"], "the past has later answers, whatever its clock"
    (note,) = done.json["notes"]
    assert "windows that end later" in note and "(6 findings)" in note and "a clock was set back" in note
    assert datetime.fromisoformat(finding["until"]) - datetime.fromisoformat(finding["since"]) == timedelta(hours=12)


def test_two_monitors_at_once_both_keep_what_they_saw(looked: Done, served: Place) -> None:
    before = len(read_findings(ledger_of(served), "toy"))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: served.gauntlet("monitor", "toy", "--check", "quality"), range(2)))
    assert [done.code for done in both] == [0, 0], both[0].printed[-2000:] + both[1].printed[-2000:]
    runs = {done.json["zenml_run_id"] for done in both if done.json}
    kept = read_findings(ledger_of(served), "toy", checks=["quality"])
    assert len(read_findings(ledger_of(served), "toy")) == before + 2
    assert {finding.run for finding in kept} >= runs and len(runs) == 2


def test_a_person_sees_a_table(
    looked: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import watch

    monkeypatch.setattr(watch, "out", Console(width=140))
    assert looked.json is not None
    watch.print_look(looked.json, False)
    said = capsys.readouterr().out
    assert "toy v1" in said and "300 of 600 labels" in said and "pressure" in said
    assert said.index("performance ") < said.index("drift ")
    assert "alert raised: " in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["wien"], 2, "did you mean 'wine'?"),
        (["wine", "--check", "dirft"], 2, "did you mean 'drift'"),
        (["wine", "--window", "a week"], 2, "write it like 7d, 12h or 30m"),
        (["wine", "--at", "2999-01-01"], 2, "lies ahead"),
        (["wine"], 1, "'wine' has no champion to watch; train one: gauntlet run wine"),
    ],
)
def test_exit_codes_say_whose_fault_it_is(
    arguments: list[str], code: int, said: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'gauntlet.db'}")
    done = invoke(["monitor", *arguments])
    assert (done.code, said in done.printed) == (code, True), done.printed
