"""Metrics of the user's own, from a module on Python's path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentos.release import Answers
from flows.train import step_parts
from models.config import ModelConfig
from models.errors import ConfigError, DataError
from steps import own
from steps.caching import parse_config
from steps.metrics import best_value, compute_metrics, greater_is_better, is_better, metric_names, require_metric
from steps.own import own_metrics, pin_metrics, resample_own
from steps.tune import search
from steps.verdict import require_gates
from tests.steps.learning import configured, quick, rows_of, searching

COSTS = """
import numpy as np


def cost(truth, predicted, probabilities):
    return float(np.mean(np.where(truth == predicted, 0, np.where(truth == "class_0", 5, 1))))


def off(truth, predicted, probabilities):
    assert probabilities is None
    return np.mean(np.abs(predicted - truth) > 1)


def changes(truth, predicted, probabilities):
    truth[:] = predicted
    probabilities[:] = 0
    return 1.0


def words(truth, predicted, probabilities):
    return "good"


def infinite(truth, predicted, probabilities):
    return float("inf")


def nothing(truth, predicted, probabilities):
    return float("nan")


def fails(truth, predicted, probabilities):
    raise KeyError(str(truth[0]))


def later(truth, predicted, probabilities):
    if len(set(truth)) < 3:
        raise KeyError(str(truth[0]))
    return 0.5


number = 3
"""


@pytest.fixture(autouse=True)
def costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own_costs.py"
    path.write_text(COSTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(own.importlib.sys.modules, "own_costs", raising=False)
    return path


def with_own(model: str = "wine", function: str = "own_costs:cost", **keys: Any) -> ModelConfig:
    metrics = {"cost": {"function": function, "greater_is_better": False}}
    return configured(model, evaluation={"metrics": metrics}, **keys)


TRUTH = np.array(["class_0", "class_1", "class_2", "class_0"], dtype=object)
SAID = np.array(["class_0", "class_1", "class_1", "class_1"], dtype=object)
SURE = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])


def test_it_is_a_figure_like_any_other() -> None:
    config = with_own(metric="cost", gates={"cost": {"max": 2}})
    labels = config.target.labels
    assert compute_metrics(config, labels, TRUTH, Answers(SAID, SURE))["cost"] == 1.5
    require_metric(config, labels)
    require_gates(config)
    named = config.evaluation.metrics
    assert "cost" in metric_names(config, labels)
    assert not greater_is_better("cost", named) and best_value("cost", named) == -np.inf
    assert is_better("cost", 1, 2, named)
    houses = with_own("houses", "own_costs:off")
    said = compute_metrics(houses, (), np.array([1, 2, 3]), Answers(np.array([1.0, 4.0, 3.0]), None))
    assert said["cost"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("own_kosts:cost", "'own_kosts' cannot be imported (ModuleNotFoundError"),
        ("own_costs:kost", "module 'own_costs' has no function 'kost'"),
        ("own_costs:number", "module 'own_costs' has no function 'number'"),
        ("own_costs:words", "returns a str, no finite number"),
        ("own_costs:infinite", "returns inf, no finite number"),
        ("own_costs:fails", "KeyError in own_costs.py, line 33"),
        ("own_costs:off", "AssertionError in own_costs.py, line 10"),
    ],
)
def test_a_function_that_cannot_be_used_is_said_before_training(function: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pin_metrics(with_own(function=function))
    assert said in str(caught.value) and "evaluation.metrics.cost" in str(caught.value)


def test_one_that_fails_on_the_real_rows_is_said_without_their_values() -> None:
    config = pin_metrics(with_own(function="own_costs:later"))
    two = TRUTH[[0, 1]]
    with pytest.raises(
        DataError, match=r"'cost' \(own_costs:later\) fails on 2 rows: KeyError in own_costs.py"
    ) as caught:
        own_metrics(config, two, two, SURE[:2])
    assert "class_0" not in str(caught.value)
    nan = with_own(function="own_costs:nothing", metric="cost")
    assert own_metrics(nan, TRUTH, SAID, SURE) == {}
    with pytest.raises(DataError, match="cost cannot be computed on 4 rows"):
        compute_metrics(nan, nan.target.labels, TRUTH, Answers(SAID, SURE))


def test_it_cannot_change_what_is_judged() -> None:
    truth, sure = TRUTH.copy(), SURE.copy()
    own_metrics(with_own(function="own_costs:changes"), truth, SAID, sure)
    assert (truth == TRUTH).all() and (sure == SURE).all()


def test_names_and_promotion_that_do_not_go_together() -> None:
    taken = configured("wine", evaluation={"metrics": {"accuracy": {"function": "own_costs:cost"}}})
    with pytest.raises(ConfigError, match="Gauntlet has a figure 'accuracy' already"):
        require_metric(taken, taken.target.labels)
    config = with_own(metric="cost", promotion={"min_improvement": {"value": 0.1, "of": "error"}})
    with pytest.raises(ConfigError, match="what 'cost' is without error is not known"):
        require_metric(config, config.target.labels)


def test_an_edited_function_is_another_configuration(costs: Path) -> None:
    before = pin_metrics(with_own(metric="cost"))
    costs.write_text(COSTS.replace("5, 1", "9, 1"))
    after = pin_metrics(with_own(metric="cost"))
    sums = [config.evaluation.metrics["cost"].source for config in (before, after)]
    assert all(len(found) == 64 for found in sums) and sums[0] != sums[1]
    assert before.shaping() != after.shaping()
    assert step_parts(before)["tune"] != step_parts(after)["tune"]
    assert parse_config(step_parts(after)["tune"]).evaluation == after.evaluation
    other = with_own()
    assert other.shaping() == configured("wine").shaping()
    assert step_parts(other)["tune"] == step_parts(configured("wine"))["tune"]


def test_tuning_goes_by_it() -> None:
    base = quick("wine", trials=4)
    metrics = with_own().evaluation
    config = searching(base, {"random_forest": {"n_estimators": 5, "max_depth": {"integer": [1, 4]}}}).model_copy(
        update={"evaluation": metrics, "metric": "cost"}
    )
    result = search(config, rows_of("wine").train)
    scores = [trial.score for trial in result.history if trial.score is not None]
    assert result.metric == "cost"
    assert result.cv_score == min([result.linear_cv_score, *scores]) < result.dummy_cv_score
    assert result.dummy_cv_score > 1


def test_its_resamples_are_around_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_own()
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array(["class_0", "class_1"], dtype=object), 400)
    said = np.where(rng.random(400) < 0.7, truth, "class_2")
    whole = own_metrics(config, truth, said, SURE[:1])
    values = resample_own(config, truth, said, np.tile(SURE, (100, 1)), whole)["cost"]
    costs = np.where(truth == said, 0, np.where(truth == "class_0", 5, 1))
    assert values.shape == (1_000,) and values.mean() == pytest.approx(whole["cost"], abs=0.02)
    assert values.std() == pytest.approx(costs.std() / 20, rel=0.1)
    monkeypatch.setattr(own, "PLAIN_ROWS", 100)
    fewer = resample_own(config, truth, said, np.tile(SURE, (100, 1)), whole)["cost"]
    assert fewer.std() == pytest.approx(costs.std() / 20, rel=0.1)
