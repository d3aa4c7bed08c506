import numpy as np
import pandas as pd
import pytest

from models.errors import DataError
from steps import crossval
from steps.crossval import assign_folds, cross_validation
from steps.families import build_pipeline
from tests.steps.learning import configured, noise, quick, rows_of, toy


def test_folds_keep_the_shares_of_the_classes() -> None:
    config, train = configured("heart_disease"), rows_of("heart_disease").train
    strata = (train["num"] == "disease").to_numpy().astype(np.int64)
    folds = assign_folds(config, train, strata)
    shares = pd.Series(strata).groupby(folds).agg(["mean", "size"])
    assert len(shares) == 5
    assert shares["mean"].max() - shares["mean"].min() < 0.01
    assert shares["size"].max() - shares["size"].min() <= 3
    assert (folds == assign_folds(config, train, strata)).all()
    assert (folds != assign_folds(config.model_copy(update={"seed": 1}), train, strata)).any()


def test_equal_rows_share_a_fold() -> None:
    config, train = noise(40)
    doubled = pd.concat([train, train, train], ignore_index=True)
    folds = assign_folds(config, doubled, np.zeros(120, dtype=np.int64))
    assert (folds[:40] == folds[40:80]).all() and (folds[:40] == folds[80:]).all()
    assert sorted(np.bincount(folds)) == [39, 39, 42]


def test_an_entity_is_in_one_fold() -> None:
    columns = {"a": {"type": "number"}, "person": {"type": "category", "feature": False}}
    config = toy(columns, split={"by": "entity", "column": "person"})
    _, train = noise(90)
    train["person"] = [f"p{row % 10}" for row in range(90)]
    folds = assign_folds(config, train, np.zeros(90, dtype=np.int64))
    assert pd.Series(folds).groupby(train["person"]).nunique().tolist() == [1] * 10
    assert len(set(folds)) == 3
    with pytest.raises(DataError, match="at least 2 different values of 'person', found 1"):
        assign_folds(config, train[train["person"] == "p1"], np.zeros(9, dtype=np.int64))


def test_few_rows_give_fewer_folds_or_an_error() -> None:
    config, train = noise(2)
    assert sorted(assign_folds(config, train, np.zeros(2, dtype=np.int64))) == [0, 1]
    with pytest.raises(DataError, match="at least 2 different training rows, found 1"):
        assign_folds(config, pd.concat([train[:1]] * 9), np.zeros(9, dtype=np.int64))


def test_a_score_is_that_of_the_whole_pipeline_fitted_fold_by_fold() -> None:
    """What is prepared once and reused must not differ from fitting everything on each fold's rows alone."""
    config, train = quick("heart_disease"), rows_of("heart_disease").train
    folds = cross_validation(config, train)
    from sklearn.metrics import roc_auc_score

    for family in ("logistic_regression", "random_forest"):
        areas = []
        for number in range(folds.count):
            scored = folds.folds == number
            pipeline = build_pipeline(config, family, {}).fit(train[~scored], folds.target[~scored])
            areas.append(roc_auc_score(folds.target[scored], pipeline.predict_proba(train[scored])[:, 1]))
        assert folds.score(family, {}) == pytest.approx(np.mean(areas), abs=1e-9)


def test_rows_are_prepared_once_a_fold_whatever_the_number_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    config, train = quick("wine"), rows_of("wine").train
    prepared: list[bool] = []
    build = crossval.build_preparation
    monkeypatch.setattr(
        crossval, "build_preparation", lambda *given, **how: prepared.append(how["scaled"]) or build(*given, **how)
    )
    folds = cross_validation(config, train)
    for trial in range(1, 5):
        folds.score("logistic_regression", {"C": float(trial)})
        for family in ("random_forest", "xgboost"):
            folds.score(family, {"n_estimators": trial})
    assert sorted(prepared) == [False] * folds.count + [True] * folds.count, "forest and boosting share theirs"


def test_little_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config, train = quick("wine"), rows_of("wine").train
    whole = cross_validation(config, train).score("xgboost", {"n_estimators": 5})
    monkeypatch.setattr(crossval, "MEMORY", 0)
    frugal = cross_validation(config, train)
    assert frugal.score("xgboost", {"n_estimators": 5}) == whole
    assert frugal._kept == {}


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_a_class_with_one_row_does_not_stop_the_search(family: str) -> None:
    config = toy(
        {"a": {"type": "number"}, "b": {"type": "number"}}, target={"column": "y", "labels": ["no", "yes", "rare"]}
    )
    _, train = noise(60)
    train.loc[0, "y"] = "rare"
    assert 0 < cross_validation(config, train).score(family, {"n_estimators": 5} if "reg" not in family else {}) < 1  # type: ignore[arg-type]


def test_the_dummy_knows_the_shares_only() -> None:
    config, train = noise(200)
    assert 0.4 < cross_validation(config, train).dummy_score() < 0.65
    by_area = config.model_copy(update={"metric": "roc_auc"})
    assert cross_validation(by_area, train).dummy_score() == 0.5
    houses = configured("houses")
    assert -0.1 < cross_validation(houses, rows_of("houses").train).dummy_score() <= 0


def test_a_metric_that_no_fold_allows_is_said() -> None:
    config, train = noise(9)
    train["y"] = ["yes", *["no"] * 8]
    lonely = cross_validation(config.model_copy(update={"metric": "roc_auc"}), train)
    lonely.folds[:] = np.arange(9) % 3
    assert lonely.score("logistic_regression", {}) >= 0
    with pytest.raises(DataError, match="roc_auc cannot be computed on any of 3 folds of 9 training rows"):
        lonely.mean([None, None, None])
