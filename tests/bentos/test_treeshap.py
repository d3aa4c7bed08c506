from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shap
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

import bentos.treeshap
from bentos.treeshap import ForestShap
from models.errors import WorkError

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(200, 6))
NUMBERS = ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2]
CLASSES = np.digitize(NUMBERS, [-1, 1])
FORESTS = {
    "as deep as it goes": RandomForestRegressor(30, random_state=0),
    "shallow": RandomForestRegressor(30, max_depth=1, random_state=0),
    "leaves only": RandomForestRegressor(3, max_depth=1, min_samples_leaf=150, bootstrap=False, random_state=0),
    "one tree": RandomForestRegressor(1, random_state=0),
    "medians": RandomForestRegressor(10, criterion="absolute_error", random_state=0),
    "classes": RandomForestClassifier(30, random_state=0),
    "two classes, weighted": RandomForestClassifier(30, max_depth=9, class_weight={0: 1, 1: 30}, random_state=0),
}


def _fitted(name: str) -> Any:
    target = NUMBERS if isinstance(FORESTS[name], RandomForestRegressor) else CLASSES
    return FORESTS[name].fit(ROWS, CLASSES > 0 if name.startswith("two") else target)


@pytest.mark.parametrize("most", [1 << 15, 100, 1])
@pytest.mark.parametrize("name", FORESTS)
def test_values_are_those_of_shap_and_add_up(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bentos.treeshap, "GROVE_NODES", most)
    forest, rows = _fitted(name), np.concatenate([ROWS[:8], 10 * ROWS[8:12]])
    told = ForestShap.of(forest)
    values = shap.TreeExplainer(forest, feature_perturbation="tree_path_dependent").shap_values(rows)
    values = values if values.ndim == 3 else values[:, :, None]
    answers = forest.predict_proba(rows) if hasattr(forest, "classes_") else forest.predict(rows)[:, None]
    for place, row in enumerate(rows):
        for code in range(len(told.base)):
            effects = told.effects(row, code)
            np.testing.assert_allclose(effects, values[place, :, code], rtol=0, atol=1e-9)
            assert told.base[code] + effects.sum() == pytest.approx(answers[place, code], abs=1e-9)


def test_by_hand() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    forest = RandomForestRegressor(1, bootstrap=False, max_features=None, random_state=0).fit(rows, [0, 0, 0, 8])
    told = ForestShap.of(forest)
    assert told.base.tolist() == [2]
    # Of both orders: knowing either alone gives 4, both 8, hence (4 - 2 + 8 - 4) / 2 each.
    assert told.effects(np.array([1.0, 1.0]), 0).tolist() == pytest.approx([3, 3])


def test_a_branch_that_no_weight_went_is_refused() -> None:
    names = ("node_count", "children_left", "children_right", "feature", "threshold", "value")
    grown = _fitted("one tree").estimators_[0].tree_
    weights = np.where(np.arange(grown.node_count) == 1, 0.0, grown.weighted_n_node_samples)
    tree = SimpleNamespace(**{name: getattr(grown, name) for name in names}, weighted_n_node_samples=weights)
    with pytest.raises(WorkError, match="no training weight"):
        ForestShap.of(SimpleNamespace(estimators_=[SimpleNamespace(tree_=tree)]))
