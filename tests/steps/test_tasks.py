"""Regression ordered in time, hospitals held out, and targets that nothing can be learnt from."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from bentos.messages import requests_of
from bentos.release import Release
from bentos.schema import schema_of
from models.config import Layer, ModelConfig, load_model, read_yaml, resolve
from models.errors import DataError
from steps.draft import draft_model
from steps.evaluate import draw, evaluate_release
from steps.explanations import draw_explanations, explain
from steps.ingest import ingest_frame
from steps.split import Split, split_frame
from steps.train import train_release
from steps.tune import tune_model
from steps.validate import validate_frame
from tests.steps.tables import BASE

BIKES: dict[str, Any] = {
    "name": "bike_sharing",
    "task": "regression",
    "metric": "rmse",
    "target": {"column": "cnt"},
    "sources": [{"name": "real", "kind": "csv", "path": "bike_sharing/hour.csv"}],
    # casual and registered add up to the target, instant counts the rows: neither is known beforehand.
    "columns": {
        "dteday": {"type": "datetime"},
        "hr": {"type": "integer", "range": [0, 23]},
        "workingday": {"type": "boolean"},
        "weathersit": {"type": "category", "categories": [1, 2, 3, 4]},
        "temp": {"type": "number", "range": [0, 1]},
        "hum": {"type": "number", "range": [0, 1]},
        "windspeed": {"type": "number", "range": [0, 1]},
    },
    "derived": {"weekday": {"date": "dteday", "part": "weekday"}, "month": {"date": "dteday", "part": "month"}},
    "split": {"by": "time", "column": "dteday", "test": 0.2},
    "sample_size": 4000,
    "tuning": {
        "trials": 2,
        "folds": 2,
        "candidates": {"xgboost": {"n_estimators": 80, "max_depth": {"integer": [4, 6]}, "learning_rate": 0.2}},
    },
}


def _released(config: ModelConfig, parts: Split, folder: Path) -> Release:
    tuning = tune_model(config, parts.train)
    return Release.open(train_release(config, parts.train, tuning, "d" * 64, folder / "release"))


def test_demand_for_bikes_is_learnt_from_the_past_and_judged_by_the_newest_days(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared_data / "bike_sharing" / "hour.csv").is_file():
        pytest.skip("no bike_sharing/hour.csv in GAUNTLET_DATA")
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = resolve([Layer("base", read_yaml(BASE)), Layer("bikes", BIKES)]).config
    ingested = ingest_frame(config)
    assert "'casual'" in ingested.notices[0] and "'registered'" in ingested.notices[0]
    report = validate_frame(config, ingested.frame)
    assert report.score > 95
    parts = split_frame(config, ingested.frame)
    assert len(parts.train) == 4000 and 3300 < len(parts.test) < 3500
    assert parts.train["dteday"].max() < parts.test["dteday"].min()
    release = _released(config, parts, tmp_path)
    judged = evaluate_release(release, parts.train, parts.test, report.score)
    figures = judged.challenger
    assert figures["rmse"] < 0.7 * judged.linear < judged.linear < judged.dummy, "riders of 2012 are more than of 2011"
    assert figures["mae"] < figures["rmse"] and 0.5 < figures["r2"] < 0.95
    draw(release, parts.test, tmp_path)
    draw_explanations(explain(release, parts.test), release, tmp_path)
    assert (tmp_path / "residuals.png").stat().st_size > 5_000 and (tmp_path / "importance.png").is_file()


def test_a_hospital_is_held_out_and_never_asked_for(tmp_path: Path) -> None:
    split = {"by": "entity", "column": "site", "held_out": ["va"]}
    quick = {"trials": 1, "folds": 2, "patience": 1}
    config = load_model("heart_disease", [Layer("--set", {"split": split, "tuning": quick})]).config
    frame = ingest_frame(config).frame
    assert "leakage" not in [check.name for check in validate_frame(config, frame).failed()]
    parts = split_frame(config, frame)
    assert set(parts.test["site"]) == {"va"} and set(parts.train["site"]) == {"cleveland", "hungarian", "switzerland"}
    release = _released(config, parts, tmp_path)
    assert "site" not in release.schema.inputs
    judged = evaluate_release(release, parts.train, parts.test, 100.0)
    assert judged.test_rows == len(parts.test) and 0.6 < judged.challenger["roc_auc"] < 0.95


def test_the_real_hospitals_are_split_by_site_with_and_without_names(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared_data / "heart_disease" / "heart_all_920.csv").is_file():
        pytest.skip("no heart_disease/heart_all_920.csv in GAUNTLET_DATA")
    monkeypatch.setenv("GAUNTLET_DATA", str(shared_data))
    config = load_model("heart_disease", [Layer("--set", {"split": {"by": "entity", "column": "site"}})]).config
    frame = ingest_frame(config, "real").frame
    parts = split_frame(config, frame)
    assert len(set(parts.train["site"])) + len(set(parts.test["site"])) == 4
    held = config.model_copy(update={"split": config.split.model_copy(update={"held_out": ("moon",)})})
    with pytest.raises(DataError, match=r"\(there is: 'cleveland', 'hungarian', 'switzerland', 'va'\)"):
        split_frame(held, frame)


@pytest.mark.parametrize("model", ["heart_disease", "obesity_habits"])
def test_a_request_names_features_only(model: str) -> None:
    config = load_model(model).config
    schema = schema_of(config, ingest_frame(config).frame)
    asked = requests_of(schema, 10).features.model_json_schema(by_alias=True)["properties"]
    assert set(asked) == set(config.columns) - {"site", "Height", "Weight"}


def _judged(target: "np.ndarray[Any, Any]", folder: Path, **keys: Any) -> Split:
    """Read, check and split 300 rows of noise with this target."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=300), "b": rng.normal(size=300), "y": target})
    table.to_csv(folder / "rows.csv", index=False)
    described = {
        "name": "noise",
        "target": {"column": "y"},
        "sources": [{"name": "file", "kind": "csv", "path": str(folder / "rows.csv")}],
        "columns": {"a": {"type": "number"}, "b": {"type": "number"}},
    }
    config = resolve([Layer("base", read_yaml(BASE)), Layer("noise", {**described, **keys})]).config
    frame = ingest_frame(config).frame
    validate_frame(config, frame)
    return split_frame(config, frame)


REGRESSION = {"task": "regression", "metric": "rmse"}


def test_infinite_targets_are_counted(tmp_path: Path) -> None:
    target = np.arange(300).astype(object)
    target[[3, 9, 11]] = ["inf", "-inf", "1e999"]
    with pytest.raises(DataError, match=r"column 'y': 3 of 300 values: infinite \(first in row 4"):
        _judged(target, tmp_path, **REGRESSION)


def test_a_constant_target_stops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="constant:y: 1, expected at least 2 different values"):
        _judged(np.full(300, 4.0), tmp_path, **REGRESSION)


def test_a_class_with_one_member_is_refused_where_there_are_two(tmp_path: Path) -> None:
    target = np.array(["many"] * 299 + ["lonely"], dtype=object)
    with pytest.raises(DataError, match=r"class 'lonely' is missing in the (test|training) rows"):
        _judged(target, tmp_path)


def test_a_drafted_regression_asks_for_a_share_of_the_error(tmp_path: Path) -> None:
    """0.02 in the target's own units would be nothing for house prices and everything for shares."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=80), "y": rng.normal(300_000, 90_000, 80)})
    table.to_csv(tmp_path / "rows.csv", index=False)
    drafted = resolve([Layer("drafted", yaml.safe_load(draft_model("prices", tmp_path / "rows.csv", "y")))]).config
    assert drafted.task == "regression" and drafted.promotion.min_improvement.of == "error"
