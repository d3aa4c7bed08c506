import io
import logging
import sys
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.errors import ConfigError, DataError
from stacks import registry, runs
from steps import crossval, tune
from steps.crossval import CrossValidation
from steps.families import build_estimator, candidates
from steps.sampler import Sampler, trial_seed
from steps.tune import TuningResult, search, tune_model
from tests.steps.learning import configured, noise, quick, rows_of, searching


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced here is not replaced in other processes; test_scorers shows that those change nothing."""
    monkeypatch.setattr(tune, "WORTH_SECONDS", 1e9)


def score_by(monkeypatch: pytest.MonkeyPatch, score: Any) -> None:
    """Let configurations score on every fold what `score(family, params)` says; the search itself is real."""
    monkeypatch.setattr(CrossValidation, "fold_score", lambda _, number, family, params: score(family, params))


def test_the_same_seed_gives_the_same_search_and_another_seed_another() -> None:
    train = rows_of("wine").train
    first = search(quick(), train)
    assert search(quick(), train) == first
    other = search(quick().model_copy(update={"seed": 7}), train)
    assert [trial.params for trial in other.history] != [trial.params for trial in first.history]
    assert first.trials == len(first.history) == 6
    assert TuningResult.model_validate_json(first.model_dump_json()) == first


def test_one_space_holds_all_families_and_their_ranges() -> None:
    config = configured("heart_disease")
    sampler = Sampler(candidates(config), config.seed, maximise=True)
    drawn = []
    for number in range(40):
        drawn.append(sampler.propose(number))
        sampler.tell(number, None if number == 3 else 0.5)
    assert set(Counter(family for family, _ in drawn)) == {"logistic_regression", "random_forest", "xgboost"}
    for family, params in drawn:
        if family == "logistic_regression":
            assert 0.01 <= params["C"] <= 30
        if family == "random_forest":
            assert params["n_estimators"] in (100, 200) and 3 <= params["max_depth"] <= 12
            assert all(type(params[name]) is int for name in ("n_estimators", "max_depth", "min_samples_leaf"))
        build_estimator(config, family, params)


def test_proposals_depend_on_what_was_told() -> None:
    """After its random start the search goes where scores were good: it is no random search."""
    config = searching(configured("wine"), {"logistic_regression": {"C": {"loguniform": [0.01, 30]}}})
    late = {}
    for sign in (1, -1):
        sampler = Sampler(candidates(config), config.seed, maximise=True)
        told: list[float] = []
        for number in range(45):
            _, params = sampler.propose(number)
            told.append(np.log(params["C"]))
            sampler.tell(number, sign * told[-1])
        late[sign] = np.mean(told[30:])
    assert late[1] - late[-1] > 1.0


def test_seeds_of_trials_do_not_repeat() -> None:
    seeds = [trial_seed(seed, number) for seed in range(20) for number in range(100)]
    assert len(set(seeds)) == 2000 and all(0 <= seed < 2**31 for seed in seeds)


def test_the_plain_linear_pipeline_wins_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    score_by(monkeypatch, lambda family, params: 0.75)
    result = search(quick(), rows_of("wine").train)
    assert (result.family, result.params, result.cv_score) == ("logistic_regression", {}, 0.75)


def test_a_tuned_model_is_taken_when_it_scores_better_however_little(monkeypatch: pytest.MonkeyPatch) -> None:
    better = 0.75 + 1e-12
    score_by(monkeypatch, lambda family, params: better if family == "xgboost" else 0.75)
    result = search(quick(trials=12), rows_of("wine").train)
    assert (result.family, result.cv_score, result.linear_cv_score) == ("xgboost", better, 0.75)
    first = next(trial for trial in result.history if trial.family == "xgboost")
    assert result.params == first.params


def test_smaller_is_better_where_the_metric_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    score_by(monkeypatch, lambda family, params: {"xgboost": 0.1, "random_forest": 0.9}.get(family, 0.5))
    config = quick(trials=12).model_copy(update={"metric": "log_loss"})
    assert search(config, rows_of("wine").train).family == "xgboost"


def test_patience_ends_the_search_that_many_trials_after_the_last_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("wine", tuning={"trials": 50, "patience": 4, "early_stopping": None})
    sampler = Sampler(candidates(config), config.seed, maximise=True)
    second = sampler.propose(0), sampler.propose(1)
    gains = {str(family_and_params): 0.6 + 0.1 * place for place, family_and_params in enumerate(second)}
    score_by(monkeypatch, lambda family, params: gains.get(str((family, params)), 0.5))
    result = search(config, rows_of("wine").train)
    assert (result.stopped_by, result.trials, result.cv_score) == ("patience", 6, 0.7)


def test_the_last_trial_ends_by_number_not_by_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    score_by(monkeypatch, lambda family, params: 0.5)
    result = search(configured("wine", tuning={"trials": 4, "patience": 4}), rows_of("wine").train)
    assert (result.stopped_by, result.trials) == ("trials", 4)


def test_no_trials_means_the_plain_linear_pipeline() -> None:
    result = search(quick(trials=0), rows_of("wine").train)
    assert (result.family, result.params, result.trials, result.stopped_by) == ("logistic_regression", {}, 0, "trials")
    assert result.cv_score > result.dummy_cv_score


def test_time_ends_the_search_and_what_it_interrupts_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000_000))
    monkeypatch.setattr(tune.time, "monotonic", lambda: float(next(clock)))
    result = search(quick(trials=50, seconds=30), rows_of("wine").train)
    assert result.stopped_by == "seconds"
    assert 1 <= result.trials < 10
    assert all(trial.score is not None or trial.dropped_after for trial in result.history)


def test_a_configuration_that_cannot_be_fitted_is_a_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    real = crossval.build_estimator

    def refuses(config: Any, family: str, params: Any) -> Any:
        if family == "random_forest":
            raise MemoryError("no room for this forest")
        return real(config, family, params)  # type: ignore[arg-type]

    monkeypatch.setattr(crossval, "build_estimator", refuses)
    result = search(quick(trials=8), rows_of("wine").train)
    failed = [trial for trial in result.history if trial.family == "random_forest"]
    assert failed and result.trials == 8
    assert {(trial.score, trial.failure) for trial in failed} == {(None, "MemoryError: no room for this forest")}
    assert result.family != "random_forest"


def test_a_value_that_the_estimator_refuses_is_a_failed_trial() -> None:
    config = searching(configured("wine", tuning={"trials": 2, "folds": 2}), {"logistic_regression": {"C": -1.0}})
    result = search(config, rows_of("wine").train)
    assert [trial.score for trial in result.history] == [None, None]
    assert "'C' parameter" in result.history[0].failure
    assert result.params == {}


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("wine", {"linear_regression": {}}, "linear_regression does no classification .there is: logistic_regression"),
        ("houses", {"logistic_regression": {}}, "logistic_regression does no regression"),
        ("wine", {"xgboost": {"max_dept": 3}}, "xgboost: no parameter 'max_dept'; did you mean 'max_depth'"),
        ("wine", {"random_forest": {"n_jobs": 4}}, "random_forest: no parameter 'n_jobs'"),
        ("wine", {"xgboost": {"random_state": 4}}, "xgboost: no parameter 'random_state'"),
    ],
)
def test_a_wrong_candidate_is_refused_before_anything_is_fitted(model: str, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        search(searching(configured(model), given), rows_of(model).train)


def test_wrong_targets_and_metrics_are_refused() -> None:
    train = rows_of("wine").train
    with pytest.raises(ConfigError, match="'pr_auc' is no figure of a classification with 3 classes"):
        search(quick().model_copy(update={"metric": "pr_auc"}), train)
    with pytest.raises(DataError, match="1 class in the training rows"):
        search(quick(), train[train["target"] == "class_0"])


def test_without_candidates_every_family_of_the_task_is_tried() -> None:
    houses = configured("houses", tuning={"trials": 5, "folds": 2})
    assert set(candidates(houses)) == {"linear_regression", "random_forest", "xgboost"}
    result = search(houses, rows_of("houses").train)
    assert result.cv_score >= result.linear_cv_score > 0.9 > 0 >= result.dummy_cv_score


def test_every_fit_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.ensemble
    import sklearn.linear_model
    import xgboost
    from threadpoolctl import threadpool_info

    seen: list[tuple[str, int, Any]] = []
    for kind in (
        sklearn.linear_model.LogisticRegression,
        sklearn.ensemble.RandomForestClassifier,
    ):
        real = kind.fit

        def fit(self: Any, *given: Any, real: Any = real, **named: Any) -> Any:
            threads = max(pool["num_threads"] for pool in threadpool_info())
            seen.append((type(self).__name__, threads, self.get_params().get("n_jobs")))
            return real(self, *given, **named)

        monkeypatch.setattr(kind, "fit", fit)
    real_train = xgboost.train

    def learn(params: Any, *given: Any, **named: Any) -> Any:
        seen.append(("XGBClassifier", max(pool["num_threads"] for pool in threadpool_info()), params["n_jobs"]))
        return real_train(params, *given, **named)

    monkeypatch.setattr(xgboost, "train", learn)
    search(quick(trials=10), rows_of("wine").train)
    assert {name for name, _, _ in seen} == {"LogisticRegression", "RandomForestClassifier", "XGBClassifier"}
    assert {(threads, jobs) for name, threads, jobs in seen if name != "LogisticRegression"} == {(1, 1)}
    assert {threads for _, threads, _ in seen} == {1}


def test_the_rows_are_left_as_they_were() -> None:
    train = rows_of("heart_disease").train
    before = train.copy(deep=True)
    search(quick("heart_disease", trials=2), train)
    pd.testing.assert_frame_equal(train, before)


def test_a_search_is_recorded_with_nested_runs(caplog: pytest.LogCaptureFixture) -> None:
    config = quick(trials=10).model_copy(update={"name": "recorded"})
    with caplog.at_level(logging.INFO):
        result = tune_model(config, rows_of("wine").train)
    store = registry.client()
    parent = store.get_run(result.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["cv_accuracy"] == result.cv_score
    assert parent.data.metrics["cv_accuracy_linear"] == result.linear_cv_score
    nested = store.search_runs(
        [runs.experiment_id("recorded")], f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'", max_results=50
    )
    scored = {trial.number: trial.score for trial in result.history if trial.score is not None}
    assert {
        int(run.info.run_name.split("-")[1]): run.data.metrics["cv_accuracy"]
        for run in nested
        if "cv_accuracy" in run.data.metrics
    } == scored
    assert len(nested) == result.trials
    assert {run.data.params["family"] for run in nested} == {t.family for t in result.history}
    assert "tuning: 10 of 10, best accuracy" in caplog.text
    assert "plain linear 0." in caplog.text and "dummy 0." in caplog.text


def test_a_search_that_fails_is_a_failed_run() -> None:
    config, train = noise(60)
    config = config.model_copy(update={"name": "fails", "metric": "no_such"})
    with pytest.raises(ConfigError):
        tune_model(config, train)
    (run,) = registry.client().search_runs([runs.experiment_id("fails")])
    assert run.info.status == "FAILED"


def test_a_terminal_sees_a_bar_on_stderr_and_nothing_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    config = quick(trials=3)
    with tune.progress(config) as show:
        search(config, rows_of("wine").train, show)
    assert "3/3" in terminal.getvalue() and "accuracy 0." in terminal.getvalue()
    assert capsys.readouterr().out == ""
