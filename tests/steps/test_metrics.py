from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from bentos.release import Answers
from models.errors import ConfigError, DataError
from steps.metrics import (
    best_value,
    classification_metrics,
    compute_metrics,
    figure,
    greater_is_better,
    is_better,
    metric_names,
    regression_metrics,
    require_metric,
)
from tests.steps.learning import configured, toy


def answers(rng: np.random.Generator, rows: int, classes: int) -> tuple[Any, Any]:
    probabilities = rng.dirichlet(np.ones(classes), rows)
    truth = np.array([rng.choice(classes, p=0.5 * p + 0.5 / classes) for p in probabilities])
    truth[:classes] = range(classes)
    return truth, probabilities


def plain_ece(truth: Any, probabilities: Any) -> float:
    """Bin by bin, as the papers write it."""
    two = probabilities.shape[1] == 2
    said = probabilities[:, 1] if two else probabilities.max(axis=1)
    happened = truth == (1 if two else probabilities.argmax(axis=1))
    error = 0.0
    for number in range(15):
        inside = (said > number / 15) & (said <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(said[inside].mean() - happened[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    truth, probabilities = answers(np.random.default_rng(classes), 200, classes)
    said = probabilities.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(truth, said),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "f1_macro": sk.f1_score(truth, said, average="macro"),
        "f1_weighted": sk.f1_score(truth, said, average="weighted"),
        "log_loss": sk.log_loss(truth, probabilities),
        "brier": sk.brier_score_loss(truth, probabilities[:, 1] if classes == 2 else probabilities),
        "ece": plain_ece(truth, probabilities),
    }
    if classes == 2:
        expected["roc_auc"] = sk.roc_auc_score(truth, probabilities[:, 1])
        expected["pr_auc"] = sk.average_precision_score(truth, probabilities[:, 1])
    else:
        expected["roc_auc"] = sk.roc_auc_score(truth, probabilities, multi_class="ovr")
        expected["pr_auc_macro"] = sk.average_precision_score(np.eye(classes)[truth], probabilities, average="macro")
    figures = classification_metrics(truth, probabilities)
    assert figures == pytest.approx(expected, rel=1e-12)
    assert {name: figure(name, truth, probabilities) for name in figures} == figures


def test_figures_of_a_regression_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=50)
    said = truth + rng.normal(size=50)
    expected = {
        "mae": sk.mean_absolute_error(truth, said),
        "rmse": sk.root_mean_squared_error(truth, said),
        "r2": sk.r2_score(truth, said),
    }
    assert regression_metrics(truth, said) == pytest.approx(expected, rel=1e-12)


def test_the_same_rows_in_any_order_of_labels_are_scored_by_label() -> None:
    config = configured("wine")
    labels = ("class_0", "class_1", "class_2")
    truth = np.array(labels * 4, dtype=object)
    probabilities = np.tile(np.eye(3), (4, 1))
    perfect = compute_metrics(config, labels, truth, Answers(truth, probabilities))
    assert {name for name, value in perfect.items() if value == 1.0} == {
        "accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "roc_auc", "pr_auc_macro"
    }  # fmt: skip
    assert (perfect["log_loss"], perfect["brier"], perfect["ece"]) == (0.0, 0.0, 0.0)


def test_a_class_that_the_model_does_not_know_counts_as_missed() -> None:
    config = toy({"a": {"type": "number"}})
    truth = np.array(["no", "yes", "maybe", "yes"], dtype=object)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    said = np.array(["no", "yes", "yes", "yes"], dtype=object)
    figures = compute_metrics(config, ("no", "yes"), truth, Answers(said, probabilities))
    assert figures["accuracy"] == 0.75
    assert figures["log_loss"] > 8
    assert all(np.isfinite(list(figures.values())))


def test_what_the_rows_do_not_allow_is_left_out_or_said() -> None:
    config = toy({"a": {"type": "number"}})
    truth = np.array(["no", "no"], dtype=object)
    one_class = Answers(truth, np.array([[0.9, 0.1], [0.6, 0.4]]))
    figures = compute_metrics(config, ("no", "yes"), truth, one_class)
    assert figures["accuracy"] == 1.0
    assert not {"roc_auc", "pr_auc"} & set(figures)
    by_area = config.model_copy(update={"metric": "roc_auc"})
    with pytest.raises(DataError, match="roc_auc cannot be computed on 2 rows with 1 different target values"):
        compute_metrics(by_area, ("no", "yes"), truth, one_class)
    with pytest.raises(DataError, match="no rows to evaluate on"):
        compute_metrics(config, ("no", "yes"), truth[:0], Answers(truth[:0], np.zeros((0, 2))))
    houses = configured("houses")
    with pytest.raises(DataError, match="r2 cannot be computed"):
        compute_metrics(houses, (), np.array([1.0, 1.0]), Answers(np.array([1.0, 2.0]), None))


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    figures = classification_metrics(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert figures["log_loss"] == pytest.approx(36.04, abs=0.01)
    assert figures["brier"] == 1.0


def test_directions_and_names() -> None:
    assert [name for name in metric_names(configured("houses")) if greater_is_better(name)] == ["r2"]
    assert (best_value("accuracy"), best_value("log_loss"), best_value("r2"), best_value("rmse")) == (1, 0, 1, 0)
    assert is_better("rmse", 1.0, 2.0) and not is_better("accuracy", 0.5, 0.5)
    assert "pr_auc" not in metric_names(configured("wine"), ("a", "b", "c"))
    assert "pr_auc_macro" in metric_names(configured("wine"), ("a", "b", "c"))
    assert "pr_auc_macro" not in metric_names(configured("wine"), ("a", "b"))
    assert (best_value("ece"), greater_is_better("ece")) == (0, False)
    with pytest.raises(ConfigError, match=r"'pr_auc' is no figure of a classification with 3 classes \(there is: accu"):
        require_metric(configured("wine", metric="pr_auc"), ("a", "b", "c"))
    with pytest.raises(ConfigError, match="'accuracy' is no figure of a regression"):
        require_metric(configured("houses", metric="accuracy"))
