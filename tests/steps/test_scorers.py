import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from bentos.release import Release
from models.config import ModelConfig
from models.errors import WorkError
from stacks import registry, runs
from steps import record, scorers, tune
from steps.crossval import cross_validation
from steps.families import candidates
from steps.scorers import Scorers
from steps.train import train_release
from steps.trials import Task
from steps.tune import search, tune_model
from tests.stacks.test_tether import alive, wait_for
from tests.steps.learning import configured, quick, rows_of, searching, toy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes however small the search is."""
    monkeypatch.setattr(tune, "WORTH_SECONDS", -1.0)


def offspring() -> list[str]:
    """Command lines of the scorers that live below this process."""
    alive = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [line for child in alive if "steps.scorers" in (line := " ".join(child.cmdline()))]


def workers(count: int, **tuning: Any) -> ModelConfig:
    return quick(trials=12, workers=count, **tuning)


def test_a_search_is_the_same_with_one_two_and_four_workers(at_once: None) -> None:
    train = rows_of("wine").train
    results = [search(workers(count), train) for count in (1, 2, 4)]
    assert results[0] == results[1] == results[2]
    assert results[0].dropped > 0
    assert not offspring()


def test_text_columns_are_scored_alike_in_other_processes(at_once: None) -> None:
    """Sparse matrices, mapped from a file."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(4)
    words = np.array(["disk", "full", "timeout", "refused", "denied", "quota"])
    rows = pd.DataFrame({"log": [" ".join(rng.choice(words, 6)) for _ in range(120)], "a": rng.normal(size=120)})
    rows["y"] = ["yes" if "disk" in text else "no" for text in rows["log"]]
    config = toy({"log": {"type": "text"}, "a": {"type": "number"}}, tuning={"trials": 9, "lag": 4})
    here, there = (
        search(config.model_copy(update={"tuning": config.tuning.model_copy(update={"workers": n})}), rows)
        for n in (1, 2)
    )
    assert here == there
    assert not [trial for trial in here.history if trial.failure]
    prepared = cross_validation(config, rows)._prepared(0, False)
    assert prepared.size == sum(
        part.nbytes for x in (prepared.x_fit, prepared.x_score) for part in (x.data, x.indices, x.indptr)
    )


def test_a_killed_worker_costs_a_second_attempt_and_two_are_a_failed_trial() -> None:
    config = quick("heart_disease")
    folds = cross_validation(config, rows_of("heart_disease").train)
    slow = {"n_estimators": 4000, "max_depth": 12}
    with Scorers(folds, candidates(config), 1) as pool:
        pool.begin()
        pids = []
        pool.submit(Task(7, "random_forest", slow))  # type: ignore[arg-type]
        done = []
        while not done:
            done = pool.collect(0.05)
            worker = pool._workers[0]
            if worker.task is not None and worker.process.pid not in pids:
                pids.append(worker.process.pid)
                os.kill(worker.process.pid, signal.SIGKILL)
        (scored,) = done
        assert (len(pids), scored.trial.number, scored.trial.score) == (2, 7, None)
        assert scored.trial.failure.startswith("the process that scored it was killed by signal SIGKILL, 2 times")
        # The next task finds a worker again.
        pool.submit(Task(8, "logistic_regression", {"C": 1.0}))
        while not (done := pool.collect(1.0)):
            pass
        assert done[0].trial.score == folds.score("logistic_regression", {"C": 1.0})
        folder = Path(pool._folder.name)
    assert not folder.exists() and not offspring()


def test_no_limit_on_time_is_too_large(at_once: None) -> None:
    assert search(quick(trials=2, workers=2, seconds=1e12), rows_of("wine").train).stopped_by == "trials"


def test_workers_that_do_not_start_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick()
    monkeypatch.setattr(scorers, "ROOT", Path("/nowhere"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Scorers(cross_validation(config, rows_of("wine").train), candidates(config), 1) as pool:
        pool.begin()
        pool.submit(Task(0, "logistic_regression", {"C": 1.0}))
        with pytest.raises(WorkError, match="do not start: gone, with exit code 1"):
            for _ in range(100):
                pool.collect(1.0)


def test_time_ends_a_search_whose_workers_are_busy(at_once: None) -> None:
    config = quick("heart_disease", trials=40, workers=2, seconds=6)
    heavy = {"random_forest": {"n_estimators": 5000, "max_depth": {"integer": [10, 30]}}}
    result = search(searching(config, heavy), rows_of("heart_disease").train)
    assert result.stopped_by == "seconds" and result.trials < 40
    assert not offspring()


def script(folder: Path, text: str) -> list[str]:
    path = folder / "search.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


SEARCH = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from steps import tune
    from tests.steps.learning import quick, rows_of
    tune.WORTH_SECONDS = -1.0
    print("began", flush=True)
    """


def run(folder: Path, text: str, home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "GAUNTLET_HOME": str(home), **variables}
    return subprocess.run(
        script(folder, SEARCH.format(root=str(ROOT)) + text), env=env, capture_output=True, text=True, timeout=280
    )


def test_a_script_without_a_guard_runs_once(tmp_path: Path, home: Path) -> None:
    done = run(
        tmp_path,
        """
    result = tune.search(quick(trials=6, workers=2), rows_of("wine").train)
    print(result.trials, flush=True)
    """,
        home,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("began", "6")] == ["began", "6"]


KILLED = """
    import json, psutil
    from steps import record
    add = record.Record.add
    def add_and_die(self, attempt):
        add(self, attempt)
        if attempt.name.startswith("trial-%03d" % {last}):
            print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    record.Record.add = add_and_die
    config = quick(trials=12, workers=2).model_copy(update={{"name": {name!r}}})
    tune.tune_model(config, rows_of("wine").train)
    """


def test_a_search_killed_midway_goes_on_and_ends_as_one_that_was_not(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, name = 6, "killed"
    done = run(tmp_path, KILLED.format(last=last, name=name), home)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = json.loads(done.stdout.splitlines()[-1])
    assert pids
    wait_for(lambda: not any(map(alive, pids)))
    train = rows_of("wine").train
    config = quick(trials=12).model_copy(update={"name": name})
    with caplog.at_level("INFO"):
        result = tune_model(config, train)
    assert f"tuning: goes on at trial {last + 1} of 12" in caplog.text
    whole = tune_model(config, train)
    assert whole.mlflow_run_id != result.mlflow_run_id
    assert result.model_copy(update={"mlflow_run_id": ""}) == whole.model_copy(update={"mlflow_run_id": ""})
    for finished in (result, whole):
        assert len(runs.nested_runs(finished.mlflow_run_id)) == 12
    parents = [
        found
        for found in registry.client().search_runs([runs.experiment_id(name)])
        if runs.PARENT_TAG not in found.data.tags
    ]
    assert sorted(found.info.status for found in parents) == ["FINISHED", "FINISHED"]


def test_two_searches_at_once_do_not_share_a_run() -> None:
    config = quick().model_copy(update={"name": "shared"})
    train = rows_of("wine").train
    with record.recorded(config, train) as first, record.recorded(config, train) as second:
        assert first.run_id != second.run_id
    with record.recorded(config, train) as third:
        assert third.run_id not in (first.run_id, second.run_id)


def test_what_is_gone_on_with_fits_in_all_that_matters() -> None:
    config, train = quick().model_copy(update={"name": "prints"}), rows_of("wine").train
    same = record.fingerprint(config, train)
    more = config.model_copy(update={"tuning": config.tuning.model_copy(update={"workers": 3})})
    assert record.fingerprint(more, train.copy()) == same
    others = [
        (config.model_copy(update={"seed": 3}), train),
        (config.model_copy(update={"tuning": config.tuning.model_copy(update={"lag": 2})}), train),
        (config, train.iloc[::-1]),
        (config, train.assign(hue=train["hue"] + 1e-9)),
    ]
    assert len({same, *(record.fingerprint(*other) for other in others)}) == 5


def test_half_written_trials_are_redone(caplog: pytest.LogCaptureFixture) -> None:
    config, train = quick().model_copy(update={"name": "halves"}), rows_of("wine").train
    with pytest.raises(KeyboardInterrupt), record.recorded(config, train) as held:
        result = search(config, train)
        for trial in result.history[:3]:
            scored = scorers.Scored(trial, 1.0, 0.1)
            held.add(record.as_attempt(config.metric, scored, 2.0))
        store = registry.client()
        store.create_run(runs.experiment_id("halves"), tags={runs.PARENT_TAG: held.run_id})
        raise KeyboardInterrupt
    with caplog.at_level("INFO"):
        again = tune_model(config, train)
    assert "goes on at trial 3 of 6" in caplog.text
    assert again.mlflow_run_id == held.run_id
    assert again.history == result.history
    assert len(runs.nested_runs(held.run_id)) == 6


def test_another_searchs_trials_are_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    train = rows_of("wine").train
    result = search(quick(), train)
    strange = [record.Restored(trial.model_copy(update={"family": "xgboost"}), 1.0) for trial in result.history]
    assert search(quick(), train, restored=strange) == result
    assert "do not fit this one; it starts anew" in caplog.text
    for count in range(7):
        known = [record.Restored(trial, 1.0) for trial in result.history[:count]]
        assert search(quick(), train, restored=known) == result


@pytest.mark.prove
def test_killed_at_trial_30_of_50_it_starts_at_30_and_ends_the_same(
    tmp_path: Path, home: Path, proof: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """heart_disease as it is shipped, but that patience does not end it before."""
    change = 'configured("heart_disease", tuning={{"trials": 50, "patience": 50, "seconds": 100000}})'
    text = KILLED.replace("quick(trials=12, workers=2)", change).replace('"wine"', '"heart_disease"')
    text = text.replace(
        "from steps import record", "from tests.steps.learning import configured\n    from steps import record"
    )
    done = run(tmp_path, text.format(last=29, name="heart_disease"), home)
    assert done.returncode == -signal.SIGKILL, done.stderr
    config = configured("heart_disease", tuning={"trials": 50, "patience": 50, "seconds": 100000})
    train = rows_of("heart_disease").train
    with caplog.at_level("INFO"):
        resumed = tune_model(config, train)
    assert "tuning: goes on at trial 30 of 50" in caplog.text
    whole = tune_model(config, train)
    assert resumed.model_copy(update={"mlflow_run_id": ""}) == whole.model_copy(update={"mlflow_run_id": ""})
    digests = [
        Release.open(train_release(config, train, tuning, "d" * 64, tmp_path / tuning.mlflow_run_id)).digest
        for tuning in (resumed, whole)
    ]
    counts = [len(runs.nested_runs(tuning.mlflow_run_id)) for tuning in (resumed, whole)]
    assert digests[0] == digests[1] and counts == [50, 50]
    proof(
        "A search killed (kill -9) at trial 30 of 50 starts at 30 and ends as one that was not",
        50,
        f"same 50 trials, same Release digest {digests[0][:12]}, 50 nested runs each",
    )
