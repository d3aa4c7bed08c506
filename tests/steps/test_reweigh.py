"""Reweighing: its arithmetic, that weights reach every fit, and that it closes a gap."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.release import Release, write_release
from flows.train import step_parts
from models.config import ModelConfig
from models.errors import ConfigError
from steps.crossval import cross_validation
from steps.evaluate import Evaluation, evaluate_release
from steps.families import build_estimator, build_preparation
from steps.ingest import ingest_frame
from steps.metrics import figure
from steps.record import fingerprint
from steps.reweigh import reweighing_groups, training_weights, unweighed, weigh
from steps.split import Split, split_frame
from steps.train import fit_family
from tests.steps.learning import configured, toy

PARAMETERS: dict[Any, dict[str, Any]] = {
    "logistic_regression": {},
    "random_forest": {"n_estimators": 10, "max_depth": 4},
    "xgboost": {"n_estimators": 20, "max_depth": 3},
}
UNFAIR = {"name": "made", "kind": "synthetic", "generator": "heart_disease", "rows": 2400, "seed": 5}


def _config(*columns: str, **keys: Any) -> ModelConfig:
    """Patients of whom 70 % of the ill women are called healthy."""
    source = {**UNFAIR, "knobs": {"women": 0.5, "bias": 0.7}}
    return configured(
        "heart_disease", sources=[source], fairness={"reweigh": list(columns), "intersections": 1}, **keys
    )


@lru_cache
def _rows() -> Split:
    return split_frame(_config(), ingest_frame(_config()).frame)


def _codes(frame: pd.DataFrame) -> "np.ndarray[Any, Any]":
    return (frame["num"] == "disease").to_numpy().astype(np.int64)


def test_weights_are_expected_over_observed_shares() -> None:
    """The table of Kamiran & Calders' idea: 6 of 10 men and 2 of 10 women are hired."""
    groups = np.repeat([0, 0, 1, 1], [6, 4, 2, 8])
    target = np.repeat([1, 0, 1, 0], [6, 4, 2, 8])
    expected = np.repeat([0.5 * 0.4 / 0.3, 0.5 * 0.6 / 0.2, 0.5 * 0.4 / 0.1, 0.5 * 0.6 / 0.4], [6, 4, 2, 8])
    np.testing.assert_allclose(weigh(groups, target), expected)
    assert weigh(groups, target).sum() == pytest.approx(20)


def test_with_weights_every_group_has_the_same_share_of_each_class() -> None:
    config, train = _config("sex", "age_group"), _rows().train
    weights = training_weights(config, train, _codes(train))
    groups = reweighing_groups(config, train)
    assert weights is not None and groups is not None and groups.max() == 7
    for code in range(8):
        inside = groups == code
        share = np.average(_codes(train)[inside], weights=weights[inside])
        assert share == pytest.approx(_codes(train).mean())


def test_without_reweigh_nothing_is_weighed() -> None:
    config, train = _config(), _rows().train
    assert training_weights(config, train, _codes(train)) is None
    assert cross_validation(config, train).groups is None
    assert unweighed(_config("sex")) == config


@pytest.mark.parametrize("family", PARAMETERS)
def test_weights_reach_the_estimator_in_the_final_fit(family: Any) -> None:
    config, train = _config("sex"), _rows().train
    fitted = fit_family(config, family, PARAMETERS[family], train)
    estimator: Any = build_estimator(config, family, PARAMETERS[family])
    matrix = fitted[:-1].transform(train)
    by_hand = estimator.fit(matrix, _codes(train), sample_weight=training_weights(config, train, _codes(train)))
    np.testing.assert_array_equal(fitted.predict_proba(train), by_hand.predict_proba(matrix))
    plain = fit_family(unweighed(config), family, PARAMETERS[family], train)
    assert np.abs(plain.predict_proba(train) - fitted.predict_proba(train)).max() > 0.05


@pytest.mark.parametrize("family", PARAMETERS)
def test_weights_reach_every_fold_from_the_rows_that_are_fitted(family: Any) -> None:
    config, train = _config("sex", tuning={"folds": 3}), _rows().train
    folds = cross_validation(config, train)
    fit, scored = folds.folds != 0, folds.folds == 0
    preparation = build_preparation(config, scaled=family == "logistic_regression")
    matrix = preparation.fit_transform(folds.features[fit])
    assert folds.groups is not None
    weights = weigh(folds.groups[fit], folds.target[fit])
    estimator: Any = build_estimator(config, family, PARAMETERS[family])
    estimator.fit(matrix, folds.target[fit], sample_weight=weights)
    said = estimator.predict_proba(preparation.transform(folds.features[scored]))
    by_hand = figure("roc_auc", folds.target[scored], said)
    assert folds.fold_score(0, family, PARAMETERS[family]) == by_hand
    assert cross_validation(unweighed(config), train).fold_score(0, family, PARAMETERS[family]) != by_hand


def test_weights_decide_how_many_rounds_of_boosting_are_worth_having() -> None:
    train, params = _rows().train, {"n_estimators": 200, "learning_rate": 0.3}
    tuning = {"folds": 3, "early_stopping": 5}
    rounds = []
    for config in (_config("sex", tuning=tuning), _config(tuning=tuning)):
        settled = cross_validation(config, train).settle("xgboost", params, lambda: None)
        rounds.append(settled["n_estimators"])
    assert rounds[0] != rounds[1] and max(map(int, rounds)) < 200  # type: ignore[arg-type]


def _release(folder: Path, config: ModelConfig, family: Any = "logistic_regression") -> Release:
    rows = _rows()
    return write_release(
        folder,
        pipeline=fit_family(config, family, PARAMETERS[family], rows.train),
        config=config,
        train=rows.train,
        metrics={"cv": 0.5},
        data_digest="d" * 64,
        trials=1,
        evidence={},
    )


@pytest.mark.parametrize("family", ["logistic_regression", "xgboost"])
def test_reweighing_closes_the_gap_and_is_shown_beside_the_plain_model(family: Any, tmp_path: Path) -> None:
    """The selection rates: true labels of the women are wrong, so that a fairer model finds ill ones among them."""
    rows = _rows()
    judged = evaluate_release(_release(tmp_path / "r", _config("sex"), family), rows.train, rows.test, 100)
    plain = evaluate_release(_release(tmp_path / "p", _config(), family), rows.train, rows.test, 100)
    assert judged.fairness is not None and plain.fairness is not None
    assert plain.fairness.plain is None
    beside = judged.fairness.plain
    assert beside is not None and beside.gaps == plain.fairness.gaps
    assert (beside.metric, beside.reweighed) == (plain.challenger["roc_auc"], judged.challenger["roc_auc"])
    for rate in ("selection_rate", "tpr"):
        before, after = (
            next(gap.value for gap in gaps if gap.rate == rate and gap.columns == ("sex",))
            for gaps in (beside.gaps, judged.fairness.gaps)
        )
        assert after < before - 0.1, rate
    figures = judged.fairness.figures()
    assert figures["tpr_gap"] < figures["tpr_gap_plain"] == plain.fairness.figures()["tpr_gap"]
    assert Evaluation.model_validate_json(judged.model_dump_json()) == judged


def test_the_step_that_tunes_sees_what_is_reweighed() -> None:
    plain, sex = _config(), _config("sex")
    assert step_parts(plain)["tune"] != step_parts(sex)["tune"]
    assert fingerprint(plain, _rows().test) != fingerprint(sex, _rows().test)
    assert plain.shaping() != sex.shaping()


def test_a_regression_is_not_reweighed() -> None:
    keys = {"task": "regression", "metric": "mae", "target": {"column": "y", "labels": []}}
    with pytest.raises(ConfigError, match="a regression has no classes to weigh"):
        toy({"a": {"type": "category", "sensitive": True}}, fairness={"reweigh": ["a"]}, **keys)
