"""Other shapes of problem through the same nine steps: a number to predict, and ten classes from 64 columns."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sklearn.datasets import load_diabetes, load_digits

from bentos.release import Release
from stacks import registry

DIABETES: dict[str, Any] = {
    "name": "diabetes_progress",
    "task": "regression",
    "metric": "rmse",
    "target": {"column": "progress"},
    "sources": [{"name": "sklearn", "kind": "sklearn", "dataset": "diabetes"}],
    "columns": {name: {"type": "number", "range": [-1, 1]} for name in load_diabetes().feature_names},
    "gates": {
        "rmse": {"max": 65},
        "r2": {"min": 0.3},
        "beats_linear": {"blocking": False, "min": 0.0},
    },
    "promotion": {"min_improvement": {"value": 0.02, "of": "error"}},
    "tuning": {
        "trials": 3,
        "candidates": {
            "linear_regression": {"alpha": {"loguniform": [0.01, 1]}},
            "xgboost": {"n_estimators": 20, "max_depth": {"integer": [2, 3]}},
        },
    },
}
DIGITS: dict[str, Any] = {
    "name": "digits",
    "metric": "accuracy",
    "target": {"column": "digit", "labels": [str(digit) for digit in range(10)]},
    "sources": [{"name": "sklearn", "kind": "sklearn", "dataset": "digits"}],
    "columns": {name: {"type": "number", "range": [0, 16]} for name in load_digits().feature_names},
    # Pixels at the edge are the same in nearly every picture.
    "validation": {"severity": {"constant": "off", "outliers": "off"}},
    "gates": {"accuracy": {"min": 0.9}},
    "tuning": {
        "trials": 3,
        "candidates": {"random_forest": {"n_estimators": 30, "max_depth": {"integer": [8, 16]}}},
    },
}


def _run(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    from flows.run import run_model

    (folder / f"{model['name']}.yaml").write_text(yaml.safe_dump(model, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNTLET_MODELS", str(folder))
        return run_model(model["name"], None, [], "", quiet=True)


def test_a_number_is_predicted_through_the_same_steps(tmp_path: Path) -> None:
    result = _run(DIABETES, tmp_path)
    assert (result["verdict"], result["champion"]) == ("promoted", 1)
    assert set(result["metrics"]) == {"mae", "rmse", "r2"}
    assert 50 < result["metrics"]["rmse"] < 62 < 72 < result["dummy"] < 85, "the dummy says the mean"
    assert result["metrics"]["mae"] < result["metrics"]["rmse"] and 50 < result["plain_linear"] < 62
    gates = {gate["name"]: gate for gate in result["gates"]}
    assert gates["rmse"]["margin"] == pytest.approx(65 - result["metrics"]["rmse"]), "less is better"
    skipped = {"improvement", "ece", "tpr_gap", "slice_gap"}
    assert {name for name, gate in gates.items() if gate["verdict"] == "skipped"} == skipped, "no slice has 50 rows"
    # A busy machine answers late; the gate only warns.
    assert {gates[name]["verdict"] for name in gates.keys() - skipped - {"beats_linear", "p95_ms"}} == {"passed"}
    assert (gates["ece"]["verdict"], gates["ece"]["reason"]) == ("skipped", "a regression has no ece")
    release = Release.open(registry.release_dir("diabetes_progress", 1))
    assert release.schema.task == "regression" and release.schema.labels == ()
    golden = [kept.prediction for kept in release.golden]
    assert result["answer"]["prediction"] == pytest.approx(golden[0], rel=1e-6)
    assert {"probability", "probabilities", "risk"}.isdisjoint(result["answer"]), "served over HTTP"
    assert 25 <= result["answer"]["prediction"] <= 350


def test_ten_classes_from_64_columns(tmp_path: Path) -> None:
    result = _run(DIGITS, tmp_path)
    assert (result["verdict"], result["champion"]) == ("promoted", 1)
    assert result["metrics"]["accuracy"] > 0.9 and result["dummy"] < 0.2
    assert 0.99 < result["metrics"]["roc_auc"] <= 1, "the mean over ten classes, each against the rest"
    release = Release.open(registry.release_dir("digits", 1))
    assert release.schema.labels == tuple("0123456789") and len(release.schema.inputs) == 64
    answer = result["answer"]
    assert list(answer["probabilities"]) == list("0123456789")
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["probability"] == max(answer["probabilities"].values())
    json.dumps(result, allow_nan=False)
