import json
from typing import Any

import numpy as np
import pytest

from bentos.release import Answers
from models.config import ModelConfig
from steps.measure import calibration, cross_validated, measure
from steps.metrics import class_codes, classification_metrics, compute_metrics
from tests.steps.learning import configured, toy
from tests.steps.test_bootstrap import scores


def answered(config: ModelConfig, rows: int, seed: int = 0) -> tuple[Any, Answers]:
    labels = np.array(config.target.labels, dtype=object)
    truth, probabilities = scores(rows, len(labels), seed)
    return labels[truth], Answers(labels[probabilities.argmax(axis=1)], probabilities)


@pytest.mark.parametrize("model", ["heart_disease", "wine", "obesity"])
def test_every_figure_has_an_interval_around_it(model: str) -> None:
    config = configured(model)
    truth, answers = answered(config, 400)
    figures = compute_metrics(config, config.target.labels, truth, answers)
    measured = measure(config, config.target.labels, truth, answers)
    assert set(measured.intervals) == set(figures)
    for name, ends in measured.intervals.items():
        # The calibration error of a resample is larger than that of the rows: noise is never well calibrated.
        assert ends.low < ends.high and (name == "ece" or ends.low < figures[name] < ends.high)
    assert [one.label for one in measured.classes] == list(config.target.labels)
    assert sum(one.rows for one in measured.classes) == 400
    for one in measured.classes:
        assert set(one.figures) == set(one.intervals) == {"precision", "recall", "f1", "roc_auc", "pr_auc"}
        assert all(one.intervals[name].low < value < one.intervals[name].high for name, value in one.figures.items())
    json.dumps([one.model_dump() for one in measured.classes], allow_nan=False)
    assert measure(config, config.target.labels, truth, answers) == measured


def test_what_rows_do_not_allow_has_no_interval() -> None:
    config = toy({"a": {"type": "number"}})
    truth, answers = answered(config, 60)
    inside = truth == "no"
    measured = measure(config, ("no", "yes"), truth[inside], _some(answers, inside))
    assert {"roc_auc", "pr_auc"}.isdisjoint(measured.intervals) and "accuracy" in measured.intervals
    yes = measured.classes[1]
    assert yes.rows == 0 and set(yes.figures) == {"precision"} == set(yes.intervals)
    strange = np.where(np.arange(60) < 5, "maybe", truth).astype(object)
    unknown = measure(config, ("no", "yes"), strange, answers)
    assert sum(one.rows for one in unknown.classes) == 55
    assert unknown.intervals["accuracy"].high < 0.95


def test_one_row_of_each_class() -> None:
    config = configured("wine")
    truth = np.array(config.target.labels, dtype=object)
    measured = measure(config, config.target.labels, truth, Answers(truth, np.eye(3) * 0.7 + 0.1))
    assert measured.intervals["accuracy"].low == measured.intervals["accuracy"].high == 1.0
    assert [one.rows for one in measured.classes] == [1, 1, 1]


def _some(answers: Answers, rows: Any) -> Answers:
    assert answers.probabilities is not None
    return Answers(answers.values[rows], answers.probabilities[rows])


def test_regressions() -> None:
    config = configured("houses")
    rng = np.random.default_rng(0)
    truth = rng.normal(100, 20, 300)
    answers = Answers(truth + rng.normal(0, 5, 300), None)
    figures = compute_metrics(config, (), truth, answers)
    measured = measure(config, (), truth, answers)
    assert set(measured.intervals) == {"mae", "rmse", "r2"} and measured.classes == measured.calibration == ()
    assert all(measured.intervals[name].low < value < measured.intervals[name].high for name, value in figures.items())
    constant = measure(config, (), np.full(30, 0.1), Answers(np.linspace(0, 1, 30), None))
    assert set(constant.intervals) == {"mae", "rmse"}


def test_many_rows_have_exact_figures_and_intervals_around_them() -> None:
    config = configured("heart_disease")
    truth, answers = answered(config, 60_000)
    measured = measure(config, config.target.labels, truth, answers)
    assert answers.probabilities is not None
    area = classification_metrics(class_codes(config.target.labels, truth), answers.probabilities)["roc_auc"]
    assert measured.classes[1].figures["roc_auc"] == pytest.approx(area, abs=1e-12)
    ends = measured.intervals["roc_auc"]
    assert ends.low < area < ends.high < ends.low + 0.01


def test_calibration_bins_hold_every_row_and_make_the_error() -> None:
    for classes in (2, 4):
        truth, probabilities = scores(500, classes)
        bins = calibration(truth, probabilities)
        assert sum(one.rows for one in bins) == 500
        assert all(one.low <= one.said <= one.high and 0 <= one.happened <= 1 for one in bins)
        error = sum(one.rows * abs(one.said - one.happened) for one in bins) / 500
        assert error == pytest.approx(classification_metrics(truth, probabilities)["ece"])


def test_cross_validation_is_that_of_the_chosen_configuration() -> None:
    told = cross_validated({"fold_scores": [0.8, None, 0.9]})
    assert told is not None and (told.mean, told.folds) == (pytest.approx(0.85), (0.8, None, 0.9))
    assert told.spread == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert cross_validated(None) is None
    assert cross_validated({"fold_scores": []}) is None
    assert cross_validated({}) is None
