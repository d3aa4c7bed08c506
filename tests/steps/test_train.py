import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from bentos.frame import to_frame
from bentos.release import Release
from models.errors import ConfigError, DataError, WorkError
from stacks import registry
from steps import train as train_module
from steps.families import build_pipeline
from steps.partitions import Partitions
from steps.train import cv_metrics, draft_directory, fit, fit_family, train_release
from steps.tune import TuningResult, search, tune_model
from tests.steps.learning import configured, noise, quick, rows_of, searching, toy

CHOICES: list[tuple[str, str, dict[str, Any]]] = [
    ("wine", "logistic_regression", {"C": 0.1}),
    ("wine", "random_forest", {"n_estimators": 8, "max_depth": None}),
    ("wine", "xgboost", {"n_estimators": 8, "learning_rate": 0.3}),
    ("heart_disease", "xgboost", {"n_estimators": 8, "subsample": 0.7}),
    ("houses", "linear_regression", {}),
    ("houses", "linear_regression", {"alpha": 1.0}),
    ("houses", "random_forest", {"n_estimators": 8}),
    ("houses", "xgboost", {"n_estimators": 8}),
]


def chosen(model: str, family: str, params: dict[str, Any], run_id: str = "") -> TuningResult:
    config = configured(model)
    return TuningResult(
        family=family,  # type: ignore[arg-type]
        params=params,
        metric=config.metric,
        cv_score=0.9,
        linear_cv_score=0.8,
        dummy_cv_score=0.5,
        folds=5,
        trials=3,
        stopped_by="trials",
        history=(),
        mlflow_run_id=run_id,
    )


@pytest.mark.parametrize(("model", "family", "params"), CHOICES)
def test_every_family_goes_to_a_release_and_back(model: str, family: str, params: Any, tmp_path: Path) -> None:
    config, rows = configured(model), rows_of(model)
    tuning = chosen(model, family, params)
    train_release(config, rows.train, tuning, "d" * 64, tmp_path / "release")
    release = Release.open(tmp_path / "release")
    pipeline = fit(config, tuning, rows.train)
    answers = release.answer(rows.test)
    if config.task == "regression":
        np.testing.assert_array_equal(answers.values, pipeline.predict(rows.test))
    else:
        np.testing.assert_array_equal(answers.probabilities, pipeline.predict_proba(rows.test))
    assert release.family == family
    assert params.items() <= release.pipeline.steps[-1][1].get_params().items()
    assert release.metrics == pytest.approx(cv_metrics(tuning))
    assert [name for name, _ in release.pipeline.steps] == ["features", "prepare", "model"]


def test_the_same_data_and_seed_give_the_same_release_in_two_processes_and_with_one_core() -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pin = "import os, sys; os.sched_setaffinity(0, eval(sys.argv[1])) if eval(sys.argv[1]) else None; "
    code = f"{pin}from tests.steps.learning import main; main('wine')"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, repr(allowed)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for allowed in (cores[:1], cores)
    ]
    ended = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert first == second
    assert len(first["digest"]) == 64


def test_the_same_data_and_seed_give_the_same_release_twice_and_another_seed_another(tmp_path: Path) -> None:
    train = rows_of("heart_disease").train
    digests = []
    for number, seed in enumerate((42, 42, 43)):
        config = quick("heart_disease", trials=4).model_copy(update={"seed": seed})
        tuning = tune_model(config, train)
        digests.append(Release.open(train_release(config, train, tuning, "d" * 64, tmp_path / str(number))).digest)
    assert digests[0] == digests[1] != digests[2]


def test_training_never_receives_test_rows() -> None:
    """Neither step has a parameter that could carry them: a leak would need another signature."""
    from steps.tune import tune

    rows = {pd.DataFrame, Partitions}
    frames = {
        name: [
            p.name
            for p in inspect.signature(step.entrypoint).parameters.values()
            if rows & {p.annotation, *get_args(p.annotation)}
        ]
        for name, step in (("tune", tune), ("train", train_module.train))
    }
    assert frames == {"tune": ["train"], "train": ["train"]}


def test_a_run_shows_params_data_and_digests(tmp_path: Path) -> None:
    config, train = quick().model_copy(update={"name": "shown"}), rows_of("wine").train
    tuning = tune_model(config, train)
    release = Release.open(train_release(config, train, tuning, "d" * 64, tmp_path / "release"))
    run = registry.client().get_run(tuning.mlflow_run_id)
    assert run.data.params["family"] == tuning.family
    assert run.data.params["train_rows"] == str(len(train))
    assert run.data.tags["gauntlet.release_digest"] == release.digest
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("shown", "d" * 36)
    assert {column["name"] for column in json.loads(entry.dataset.schema)["mlflow_colspec"]} == set(config.columns)
    assert release.evidence["mlflow_run"] == {"run_id": tuning.mlflow_run_id}
    assert len(release.evidence["tuning"]["history"]) == tuning.trials == release.training.trials


def awkward() -> tuple[Any, pd.DataFrame]:
    columns = {
        "empty": {"type": "number", "missing": 1.0},
        "blank": {"type": "category", "missing": 1.0},
        "gaps": {"type": "number", "missing": 0.5},
        "flag": {"type": "boolean", "missing": 0.5},
        "still": {"type": "integer"},
        "kind": {"type": "category", "missing": 0.5},
        "many": {"type": "category"},
        "a": {"type": "number"},
    }
    config, frame = toy(columns), noise(400)[1]
    rng = np.random.default_rng(3)
    raw = frame.assign(
        empty=None,
        blank=None,
        gaps=np.where(rng.random(400) < 0.3, np.nan, rng.normal(size=400)),
        flag=rng.choice(np.array([True, False, None], dtype=object), 400),
        still=7,
        kind=rng.choice(np.array(["x", "y", None], dtype=object), 400),
        many=[f"m{number % 250}" for number in range(400)],
    )
    typed = to_frame(raw, config.columns)
    assert typed.problems == ()
    return config, typed.frame.assign(y=frame["y"])


@pytest.mark.parametrize("family", ["logistic_regression", "random_forest", "xgboost"])
def test_awkward_columns_are_learnt_from_and_answered(family: Any, tmp_path: Path) -> None:
    config, frame = awkward()
    pipeline = fit_family(config, family, {}, frame)
    odd = frame.head(3).copy()
    odd["kind"] = np.array(["never seen", np.nan, "x"], dtype=object)
    odd["many"] = np.array(["m1", "never seen", "m2"], dtype=object)
    odd["blank"] = np.array(["now there", np.nan, np.nan], dtype=object)
    odd["empty"] = [1e6, np.nan, -3.0]
    odd["still"] = [np.nan, 8.0, 7.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = pipeline.predict_proba(odd)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_missing_values_are_told_apart_from_the_median() -> None:
    config, frame = awkward()
    prepared = build_pipeline(config, "logistic_regression", {})[:-1].fit(frame)
    row = frame[frame["gaps"].notna()].head(1)
    median = row.assign(gaps=float(frame["gaps"].median()))
    missing = row.assign(gaps=np.nan)
    assert not np.allclose(prepared.transform(median), prepared.transform(missing))


def test_many_categories_stay_a_bounded_number_of_columns() -> None:
    config, frame = awkward()
    prepared = build_pipeline(config, "random_forest", {})[:-1].fit_transform(frame)
    assert isinstance(prepared, np.ndarray) and prepared.dtype == np.float64
    assert prepared.shape[1] < 120


def test_a_booster_is_fitted_and_scored_the_same_in_any_order_of_imports(tmp_path: Path) -> None:
    config = searching(quick(), {"xgboost": {"n_estimators": 10, "max_depth": 3}})
    tuning = search(config, rows_of("wine").train)
    assert {trial.family for trial in tuning.history} == {"xgboost"}
    assert len({trial.score for trial in tuning.history}) == 1


def test_what_cannot_be_trained_is_said() -> None:
    _, frame = noise(60)
    words = toy({"a": {"type": "number"}, "essay": {"type": "text"}})
    with pytest.raises(DataError, match="column 'essay': no term occurs in 2 of 60 texts"):
        fit_family(words, "xgboost", {}, frame.assign(essay=""))
    nothing = toy({"a": {"type": "number", "feature": False}})
    with pytest.raises(ConfigError, match="no column is left that the model may see"):
        fit_family(nothing, "xgboost", {}, frame)
    config = toy({"a": {"type": "number"}, "b": {"type": "number"}})
    with pytest.raises(DataError, match="1 class"):
        fit_family(config, "xgboost", {}, frame.assign(y="no"))
    with pytest.raises(WorkError, match="logistic_regression cannot be fitted: The 'C' parameter"):
        fit_family(config, "logistic_regression", {"C": -1.0}, frame)


def test_drafts_of_yesterday_are_removed(home: Path) -> None:
    old, young = draft_directory(), draft_directory()
    os.utime(old, (0, 0))
    assert old.parent == young.parent == home / "drafts"
    draft_directory()
    assert (old.exists(), young.exists()) == (False, True)
