from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.schema import Schema
from models.config import Column, ModelConfig
from steps.estimate import estimate, estimate_error, measure_of
from steps.performance import Performance, window_performance
from steps.prediction_drift import prediction_drift, target_drift
from steps.window import Labelled
from tests.steps.learning import toy

INPUTS = {"x": Column(type="number")}
TWO = Schema(model="toy", task="classification", target="y", labels=("no", "yes"), inputs=INPUTS)
THREE = TWO.model_copy(update={"labels": ("a", "b", "c")})
NUMBER = Schema(model="toy", task="regression", target="y", inputs=INPUTS)


def config(metric: str = "accuracy", **keys: Any) -> ModelConfig:
    return toy({"x": {"type": "number"}}, metric=metric, **keys)


def regression() -> ModelConfig:
    return toy({"x": {"type": "number"}}, metric="mae").model_copy(update={"task": "regression"})


def scored(rows: int, seed: int = 0, flipped: float = 0.0) -> tuple[Any, Any]:
    """Calibrated scores of two classes, and truths of which a share is turned round."""
    rng = np.random.default_rng(seed)
    yes = rng.beta(0.5, 0.5, rows)
    truth = (rng.random(rows) < yes) ^ (rng.random(rows) < flipped)
    return np.column_stack([1 - yes, yes]), np.where(truth, "yes", "no").astype(object)


def judged(scores: Any, truth: Any, rows: Any = None, model: ModelConfig | None = None, **given: Any) -> Performance:
    chosen = np.arange(len(scores)) if rows is None else np.asarray(rows)
    labelled = Labelled(chosen, truth[chosen])
    return window_performance(model or config(), TWO, scores, labelled, **{"holdout": 0.82, **given})


def test_a_model_that_is_as_good_as_ever_holds_and_one_that_lost_has_degraded() -> None:
    held, lost = judged(*scored(3_000)), judged(*scored(3_000, flipped=0.2))
    assert (held.state, lost.state) == ("held", "degraded")
    assert held.limit == pytest.approx(0.82 * 0.95)
    for found in (held, lost):
        assert found.low is not None and found.value is not None and found.high is not None
        assert found.low < found.value < found.high
        assert found.figures["accuracy"] == pytest.approx(found.value) and "brier" in found.figures
        assert (found.labels, found.answers, found.coverage) == (3_000, 3_000, 1.0)


def test_what_the_labels_leave_open_is_uncertain() -> None:
    scores, truth = scored(2_000, flipped=0.08)
    found = judged(scores, truth, rows=range(0, 2_000, 15))
    assert found.state == "uncertain" and found.labels == 134 and found.coverage == pytest.approx(0.067)


def test_few_labels_are_not_judged_and_the_estimate_stands_in() -> None:
    scores, truth = scored(2_000)
    found = judged(scores, truth, rows=range(99))
    assert (found.state, found.low, found.concept) == ("too_few_labels", None, None)
    assert found.value is not None and found.expected is not None
    assert found.expected.kind == "estimate" and found.expected.rows == 2_000
    none = judged(scores, truth, rows=np.array([], dtype=np.int64))
    assert (none.value, none.coverage, none.estimate_error) == (None, 0.0, None)


def test_more_error_is_worse() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=1_000)
    states = {}
    for spread in (1.0, 1.3):
        answers = truth + rng.normal(0, spread, 1_000)
        labelled = Labelled(np.arange(1_000), truth)
        states[spread] = window_performance(regression(), NUMBER, answers, labelled, holdout=0.82)
    assert (states[1.0].state, states[1.3].state) == ("held", "degraded")
    assert states[1.0].limit == pytest.approx(0.861) and states[1.0].expected is None


def missed(truth: Any, predicted: Any, probabilities: Any) -> float:
    """A figure of the user's: the share of wrong answers; the less the better."""
    assert probabilities is not None and set(truth) <= {"no", "yes"}
    return float(np.mean(truth != predicted))


def test_a_metric_of_the_user_s_own_is_judged_the_way_that_it_is_better() -> None:
    metrics = {"missed": {"function": f"{__name__}:missed", "greater_is_better": False}}
    model = config("missed", evaluation={"metrics": metrics})
    told = {"model": model, "holdout": 0.22, "holdout_gap": 0.0}
    held, lost = judged(*scored(3_000), **told), judged(*scored(3_000, flipped=0.2), **told)
    assert (held.state, lost.state, held.limit) == ("held", "degraded", pytest.approx(0.22 * 1.05))
    assert held.value is not None and held.value == pytest.approx(1 - held.figures["accuracy"])
    assert held.expected is not None and held.expected.value == pytest.approx(held.value, abs=0.03)
    assert held.concept and lost.concept and (held.concept.drifted, lost.concept.drifted) == (False, True)
    assert lost.concept.gap == pytest.approx(lost.value - lost.expected.value, abs=0.01)


def fails(truth: Any, predicted: Any, probabilities: Any) -> float:
    """A figure that no rows allow."""
    raise KeyError(truth[0])


def test_a_metric_of_the_user_s_own_that_fails_judges_nothing() -> None:
    model = config("fails", evaluation={"metrics": {"fails": {"function": f"{__name__}:fails"}}})
    found = judged(*scored(500), model=model)
    assert (found.state, found.value, found.expected) == ("too_few_labels", None, None)


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "f1_macro"])
def test_an_estimate_from_calibrated_scores_finds_the_truth(metric: str) -> None:
    scores, truth = scored(2_000, seed=3)
    found = estimate_error(
        metric, measure_of(config(metric), TWO.labels), (truth == "yes").astype(np.int64), scores, seed=1
    )
    assert found is not None and found.labels == 2_000
    assert abs(found.error) < 0.03 and found.covered
    assert found.error == pytest.approx(found.estimate.value - found.measured)


def test_an_estimate_of_accuracy_is_the_average_confidence() -> None:
    scores = np.random.default_rng(1).dirichlet(np.ones(3), 5_000)
    measure = measure_of(config(), THREE.labels)
    found = estimate("accuracy", measure, scores, seed=1)
    assert found is not None and found.value == pytest.approx(scores.max(axis=1).mean(), abs=2e-3)
    assert estimate("accuracy", measure, scores[:0], seed=1) is None


def test_concept_drift_is_what_the_scores_did_not_expect() -> None:
    """More hard rows lower the figure as well, and are none."""
    scores, truth = scored(3_000, flipped=0.2)
    changed = judged(scores, truth, holdout_gap=0.0)
    rng = np.random.default_rng(5)
    yes = rng.uniform(0.35, 0.65, 3_000)
    harder = judged(
        np.column_stack([1 - yes, yes]), np.where(rng.random(3_000) < yes, "yes", "no").astype(object), holdout_gap=0.0
    )
    assert changed.concept is not None and harder.concept is not None
    assert (changed.state, changed.concept.drifted) == ("degraded", True)
    assert (harder.state, harder.concept.drifted) == ("degraded", False)
    assert changed.concept.low < changed.concept.gap < changed.concept.high
    assert judged(scores, truth).concept is None


def test_the_same_labels_are_judged_the_same_and_round_trip() -> None:
    one, two = (judged(*scored(500), holdout_gap=0.01) for _ in range(2))
    assert one == two == Performance.model_validate_json(one.model_dump_json())


def test_scores_and_classes_that_moved_are_told() -> None:
    rng = np.random.default_rng(0)
    holdout, same, other = (rng.dirichlet(weights, 600) for weights in ((1, 1, 1), (1, 1, 1), (3, 1, 1)))
    found = prediction_drift(config(), THREE, holdout, other)
    assert [c.column for c in found.columns] == ["class", *(f"probability of {label}" for label in "abc")]
    assert found.drifted and {"class", "probability of a"} <= set(found.drifted_columns)
    assert prediction_drift(config(), THREE, holdout, same).drifted_columns == ()
    two = prediction_drift(config(), TWO, scored(600)[0], scored(600, seed=2)[0])
    assert [c.column for c in two.columns] == ["class", "probability of yes"] and not two.drifted_columns
    numbers = prediction_drift(regression(), NUMBER, rng.normal(size=600), rng.normal(2, 1, 600))
    assert numbers.drifted_columns == ("value",)


def test_outcomes_that_moved_are_target_drift() -> None:
    rng = np.random.default_rng(0)
    before, same, other = (np.where(rng.random(1_000) < p, "yes", "no").astype(object) for p in (0.3, 0.3, 0.6))
    assert target_drift(config(), pd.Series(before), other).drifted_columns == ("y",)
    assert target_drift(config(), pd.Series(before), same).drifted_columns == ()
    assert not target_drift(config(), pd.Series(before), other[:80]).judged
