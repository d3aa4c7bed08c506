import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient

from models.errors import WorkError
from stacks import registry, runs
from stacks.home import clone_dir, environment

ROUNDS = 5
WRITER = f"""
import sys
from stacks import registry, runs
registry.initialise()
for turn in range({ROUNDS}):
    run_id = runs.start_run("crew")
    trial = runs.Attempt("trial-000", {{"C": turn}}, {{"roc_auc": turn}}, 1.0, 0.1)
    runs.log_attempts(run_id, [trial])
    runs.log_run(run_id, params={{"writer": sys.argv[1]}}, metrics={{"turn": turn}}, tags={{"turn": str(turn)}})
    runs.finish_run(run_id)
"""


def test_fifty_trials_are_recorded_in_three_calls_each(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = runs.start_run("fifty", {"gauntlet.data_digest": "d"})
    params = {"family": "xgboost", "max_depth": 3, "learning_rate": 0.1, "n_estimators": 50}
    attempts = [
        runs.Attempt(f"trial-{n:03d}", params, {"cv_accuracy": n / 50}, started=1_000.0 + n, seconds=0.5)
        for n in range(50)
    ]
    store = registry.client()
    counting = Mock(wraps=store)
    monkeypatch.setattr(runs, "client", lambda: counting)
    runs.log_attempts(parent, attempts)
    assert len(counting.method_calls) <= 3 * 50 + 1
    found = store.search_runs([runs.experiment_id("fifty")], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=100)
    assert sorted(run.data.metrics["cv_accuracy"] for run in found) == [n / 50 for n in range(50)]
    assert {run.data.params["max_depth"] for run in found} == {"3"}
    assert {(run.info.end_time - run.info.start_time, run.info.status) for run in found} == {(500, "FINISHED")}


def test_a_failed_attempt_says_why_in_bounded_text() -> None:
    parent = runs.start_run("failed")
    runs.log_attempts(parent, [runs.Attempt("trial-000", {"C": -1}, {}, 1.0, 0.1, failure="x" * 9_000)])
    (run,) = registry.client().search_runs([runs.experiment_id("failed")], "tags.`mlflow.parentRunId` != ''")
    assert run.info.status == "FAILED"
    assert 100 < len(run.data.tags["gauntlet.failure"]) <= 500


def test_a_run_can_be_written_to_twice(tmp_path: Path) -> None:
    run_id = runs.start_run("twice")
    runs.finish_run(run_id)
    (tmp_path / "a.txt").write_text("a")
    for value in (1.0, 2.0):
        runs.log_run(run_id, params={"seed": value}, metrics={"m": value}, tags={"t": str(value)})
        runs.log_files(run_id, tmp_path, "evaluation")
        runs.log_dataset(run_id, name="x", digest="d" * 64, schema={"a": "number"}, rows=3, context="training")
    run = registry.client().get_run(run_id)
    assert (run.data.params["seed"], run.data.metrics["m"], run.data.tags["t"]) == ("1.0", 2.0, "2.0")
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert [file.path for file in registry.client().list_artifacts(run_id, "evaluation")] == ["evaluation/a.txt"]


def test_many_files_of_a_run_are_read_with_one_question_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs.start_run("many")
    names = [f"inner/{number:02d}.png" for number in range(12)]
    (tmp_path / "inner").mkdir()
    for name in (*names, "figures.json"):
        (tmp_path / name).write_text(name)
    runs.log_files(run_id, tmp_path, "evaluation")
    asked: list[str] = []
    get_run = TrackingServiceClient.get_run
    monkeypatch.setattr(
        TrackingServiceClient, "get_run", lambda self, run_id: asked.append(run_id) or get_run(self, run_id)
    )
    found = runs.read_files(run_id, "evaluation", ".png")
    assert list(found.items()) == [(name, name.encode()) for name in names]
    assert asked == [run_id]
    assert runs.read_files("0" * 32, "evaluation", ".png") == runs.read_files(run_id, "nothing", "") == {}


def test_the_same_data_recorded_at_once_are_recorded() -> None:
    found = [runs.start_run("at_once") for _ in range(4)]

    def record(turn: int) -> None:
        run_id = found[turn % 4]
        runs.log_dataset(run_id, name=f"x{turn // 4}", digest="d", schema={"a": "number"}, rows=3, context="training")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(record, range(80)))
    inputs = [registry.client().get_run(run_id).inputs.dataset_inputs for run_id in found]
    assert [len(entries) for entries in inputs] == [20] * 4


def test_a_run_of_another_store_is_replaced() -> None:
    run_id = runs.start_run("same")
    assert runs.same_run("same", run_id) == run_id
    other = runs.same_run("same", "0" * 32)
    run = registry.client().get_run(other)
    assert (run.data.tags["gauntlet.replaces"], run.info.status) == ("0" * 32, "FINISHED")


def test_a_deleted_experiment_is_restored() -> None:
    first = runs.experiment_id("restored")
    registry.client().delete_experiment(first)
    assert runs.experiment_id("restored") == first
    runs.start_run("restored")


def test_artifacts_lie_in_the_home(home: Path) -> None:
    experiment = registry.client().get_experiment(runs.experiment_id("placed"))
    assert Path(experiment.artifact_location).is_relative_to(home)
    assert Path(registry.client().get_experiment("0").artifact_location).is_relative_to(home)


def test_what_mlflow_refuses_is_said() -> None:
    with pytest.raises(WorkError, match="MLflow said"):
        runs.log_run("0" * 32, metrics={"m": 1.0})


@pytest.mark.prove
def test_eight_processes_write_one_sqlite_store(tmp_path: Path, proof: Callable[[str, object, str], None]) -> None:
    env = {**os.environ, **environment(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(writer)], env=env, cwd=clone_dir(), stderr=subprocess.PIPE, text=True
        )
        for writer in range(8)
    ]
    said = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 8, said
    store = MlflowClient(env["MLFLOW_TRACKING_URI"])
    (crew,) = [each.experiment_id for each in store.search_experiments() if each.name == "crew"]
    written = store.search_runs([crew], max_results=1_000)
    parents = [run for run in written if "mlflow.parentRunId" not in run.data.tags]
    expected = sorted((str(writer), float(turn), str(turn)) for writer in range(8) for turn in range(ROUNDS))
    found = [(run.data.params["writer"], run.data.metrics["turn"], run.data.tags["turn"]) for run in parents]
    assert sorted(found) == expected
    nested = sorted(run.data.tags["mlflow.parentRunId"] for run in written if run not in parents)
    assert nested == sorted(run.info.run_id for run in parents)
    assert {run.info.status for run in written} == {"FINISHED"}
    proof(
        "Eight processes at once write runs and trials to MLflow's SQLite store", len(written), "all there, none failed"
    )
