import itertools
import math
from typing import Any

import numpy as np
import pytest

from steps import trials
from steps.course import Course
from steps.crossval import CrossValidation, cross_validation
from steps.trials import Rival, Task, Trial, attempt, rival
from tests.steps.learning import configured, noise, quick, rows_of, searching


def whole(number: int, scores: list[float], family: str = "xgboost") -> Trial:
    return Trial(number=number, family=family, params={}, score=float(np.mean(scores)), folds=tuple(scores))  # type: ignore[arg-type]


def dropped_after(monkeypatch: pytest.MonkeyPatch, against: Rival | None, scores: list[float], metric: str) -> Trial:
    """What a trial with these scores fold by fold comes to against a rival."""
    config, train = noise(len(scores) * 8)
    tuning = config.tuning.model_copy(update={"folds": len(scores)})
    folds = cross_validation(config.model_copy(update={"tuning": tuning, "metric": metric}), train)
    monkeypatch.setattr(CrossValidation, "fold_score", lambda _, number, family, params: scores[number])
    return attempt(folds, Task(0, "random_forest", {}, against)).trial


def test_what_cannot_win_even_with_perfect_folds_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    perfect = Rival(1.0, (1.0, 1.0, 1.0))
    assert dropped_after(monkeypatch, perfect, [1.0, 1.0, 1.0], "accuracy").dropped_after == 1
    losses = Rival(0.3, (0.3, 0.3, 0.3))
    trial = dropped_after(monkeypatch, losses, [0.5, 0.5, 0.1], "log_loss")
    assert (trial.dropped_after, trial.score, trial.estimate) == (2, None, pytest.approx(0.5))
    close = dropped_after(monkeypatch, losses, [0.5, 0.3, 0.0], "log_loss")
    assert (close.dropped_after, close.score, close.estimate) == (0, pytest.approx(0.8 / 3), None)


def test_the_upper_limit_is_that_of_a_finite_population() -> None:
    """With s * t = 0.1 and 2 of 5 folds the mean may end 0.1 * sqrt((1 - 2/5) / 2) above where it points to."""
    kin = (0.7, 0.6, 0.7, 0.6, 0.9)
    against = Rival(0.8, (0.8,) * 5, kin, 0.1)
    needed = 0.8 - float(np.mean(kin)) - 0.1 * math.sqrt((1 - 2 / 5) / 2)
    for gap, beaten in ((1e-9, False), (-1e-9, True)):
        scores = [score + needed + gap for score in kin[:2]]
        assert trials._beaten("accuracy", against, scores) is beaten
        assert not trials._beaten("accuracy", Rival(0.8, (0.8,) * 5, kin), scores)
        assert not trials._beaten("accuracy", None, scores)


def test_spread_is_pooled_over_a_familys_own_trials() -> None:
    rng = np.random.default_rng(1)
    fold_effect = np.array([0.1, 0.0, -0.1, 0.05, -0.05])
    history = [whole(n, list(0.7 + fold_effect + rng.normal(0, 0.01, 5))) for n in range(12)]
    history.append(whole(12, [0.9, 0.1, 0.9, 0.1, 0.9], "random_forest"))
    against = rival("accuracy", history, "xgboost", history[0].folds)
    assert against is not None
    # A difference of two has sqrt(2) times the noise; t(44 degrees, 99.5 %) is 2.69.
    assert against.spread == pytest.approx(2.69 * 0.01 * math.sqrt(2), rel=0.35)
    assert np.mean(against.kin) == max(trial.score for trial in history[:12])  # type: ignore[type-var]
    few = rival("accuracy", history[:2], "xgboost", history[0].folds)
    assert few is not None and math.isinf(few.spread)
    none = rival("accuracy", history, "logistic_regression", history[0].folds)
    assert none is not None and none.kin == ()
    assert rival("accuracy", history, "xgboost", (0.5, None)) is None


def test_no_race_drops_what_would_have_won() -> None:
    """Every configuration of a small grid, in many orders: the best one of all is never among the dropped."""
    config = searching(configured("wine", tuning={"trials": 1, "folds": 5}), {"xgboost": {}})
    folds = cross_validation(config, rows_of("wine").train)
    grid = [
        {"n_estimators": n, "max_depth": d, "learning_rate": r}
        for n, d, r in itertools.product((3, 8), (1, 2, 3), (0.1, 0.5))
    ]
    known = [attempt(folds, Task(n, "xgboost", params)).trial for n, params in enumerate(grid)]
    score = [trial.score or 0.0 for trial in known]
    rng = np.random.default_rng(2)
    dropped = 0
    for _ in range(60):
        order = rng.permutation(len(grid))
        history: list[Trial] = []
        best = known[order[0]]
        for place in order:
            trial = replayed(known[place], rival("accuracy", history, "xgboost", best.folds) if history else None)
            history.append(trial)
            dropped += trial.dropped_after > 0
            if (trial.score or 0.0) > (best.score or 0.0):
                best = trial
        assert best.score == max(score)
    assert dropped > 60


def replayed(trial: Trial, against: Rival | None) -> Trial:
    """The trial as a race would have left it."""
    for count in range(1, len(trial.folds)):
        if trials._beaten("accuracy", against, trial.folds[:count]):
            taken = trials._taken("accuracy", against, trial.folds[:count])
            return trial.model_copy(
                update={"folds": trial.folds[:count], "score": None, "dropped_after": count, "estimate": taken}
            )
    return trial


def test_a_metric_that_is_no_number_is_a_failed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = dropped_after(monkeypatch, None, [0.5, math.nan, 0.5], "accuracy")
    assert (trial.score, trial.failure) == (None, "ValueError: the metric came out as nan")


class Told:
    """Stands where TPE does and writes down what it was told before each proposal."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.before: list[list[int]] = []

    def propose(self, number: int) -> tuple[str, dict[str, Any]]:
        self.before.append(list(self.told))
        return "logistic_regression", {"C": 1.0 + number}

    def tell(self, number: int, score: float | None) -> None:
        self.told.append(number)


@pytest.mark.parametrize("lag", [1, 3])
def test_a_proposal_rests_on_the_results_up_to_its_lag_in_whatever_order_they_come(lag: int) -> None:
    config = configured("wine", tuning={"trials": 10, "patience": 99, "lag": lag})
    orders = []
    for late in (False, True):
        course = Course(config, whole(0, [0.5, 0.5], "logistic_regression"))
        course._sampler = told = Told()  # type: ignore[assignment]
        running: list[int] = []
        while course.stopped_by is None:
            while task := course.following():
                running.append(task.number)
            assert len(running) <= lag
            number = running.pop(-1 if late else 0)
            course.arrived(whole(number, [0.5, 0.5], "logistic_regression"))
            while course.advance():
                pass
        assert [trial.number for trial in course.history] == list(range(10))
        orders.append(told.before)
    assert orders[0] == orders[1] == [list(range(max(0, number - lag + 1))) for number in range(10)]


def test_patience_counts_numbers_and_what_ran_ahead_is_left_out() -> None:
    config = configured("wine", tuning={"trials": 20, "patience": 3, "lag": 4})
    course = Course(config, whole(0, [0.5, 0.5], "logistic_regression"))
    tasks = [course.following() for _ in range(4)]
    assert [task.number for task in tasks if task] == [0, 1, 2, 3] and course.following() is None
    # Number 3 would be a gain and is there first, but the three before it were none.
    for task in reversed(tasks):
        assert task is not None
        course.arrived(whole(task.number, [0.9 if task.number == 3 else 0.4] * 2, task.family))
    while course.advance():
        pass
    assert (course.stopped_by, len(course.history), course.best.score) == ("patience", 3, 0.5)


def test_rows_binned_once_change_no_answer() -> None:
    for model, metric in (("wine", "log_loss"), ("heart_disease", "roc_auc"), ("houses", "rmse")):
        config = quick(model, early_stopping=None) if model != "houses" else configured(model, tuning={"folds": 3})
        config = config.model_copy(update={"metric": metric})
        folds = cross_validation(config, rows_of(model).train)
        for params in ({"n_estimators": 8}, {"n_estimators": 5, "max_bin": 16, "subsample": 0.7}):
            for number in range(2):
                fold = folds._prepared(number, False)
                ours = folds._boosted(number, fold, params)
                np.testing.assert_array_equal(ours, folds._answer(fold, "xgboost", params))


def test_boosting_ends_where_nothing_is_gained_and_the_score_is_that_of_the_rounds_kept() -> None:
    config = quick("heart_disease", early_stopping=5)
    folds = cross_validation(config, rows_of("heart_disease").train)
    params = {"n_estimators": 150, "max_depth": 4, "learning_rate": 0.3}
    trial = attempt(folds, Task(0, "xgboost", params)).trial  # type: ignore[arg-type]
    assert 1 <= trial.params["n_estimators"] < 100  # type: ignore[operator]
    off = config.model_copy(update={"tuning": config.tuning.model_copy(update={"early_stopping": None})})
    plain = cross_validation(off, rows_of("heart_disease").train)
    assert plain.score("xgboost", trial.params) == trial.score
    assert attempt(plain, Task(0, "xgboost", params)).trial.params == params  # type: ignore[arg-type]
    short = {"n_estimators": 5, "max_depth": 2}
    assert attempt(folds, Task(0, "xgboost", short)).trial.params == short  # type: ignore[arg-type]


def test_rows_that_stop_a_fit_are_none_that_it_is_scored_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fold's rows take no part in finding the rounds: changing their target changes nothing."""
    config = quick("heart_disease", early_stopping=5)
    params = {"n_estimators": 150, "max_depth": 4, "learning_rate": 0.3}
    found = []
    for turned in (False, True):
        folds = cross_validation(config, rows_of("heart_disease").train)
        if turned:
            folds.target[folds.folds == 0] = 1 - folds.target[folds.folds == 0]
        found.append(folds.settle("xgboost", params, lambda: None)["n_estimators"])
    assert found[0] == found[1]
