"""Real and invented rows to learn from; run as a script, it tunes, trains and prints the Release digest."""

import json
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.config import Layer, ModelConfig, Tuning, load_model, resolve
from steps.ingest import ingest_frame
from steps.split import Split, split_frame
from steps.train import train_release
from steps.tune import tune_model
from tests.bentos.samples import HOUSES, frame_of

QUICK: dict[str, Any] = {
    "logistic_regression": {"C": {"loguniform": [0.01, 30]}},
    "random_forest": {"n_estimators": 10, "max_depth": {"integer": [2, 4]}},
    "xgboost": {"n_estimators": 10, "max_depth": {"choice": [2, 3]}},
}


def configured(model: str, **keys: Any) -> ModelConfig:
    """A shipped model, or the invented `houses`, with keys replaced."""
    over = Layer("test", keys)
    return resolve([Layer("test", HOUSES), over]).config if model == "houses" else load_model(model, [over]).config


def quick(model: str = "wine", trials: int = 6, **tuning: Any) -> ModelConfig:
    """A shipped model whose tuning takes a second or two, and does not end by the clock."""
    return searching(configured(model, tuning={"trials": trials, "folds": 3, "seconds": 100_000, **tuning}), QUICK)


def searching(config: ModelConfig, candidates: dict[str, Any]) -> ModelConfig:
    """A model with other candidates: layers would be merged with those of its YAML."""
    tuning = {**config.tuning.model_dump(mode="json"), "candidates": candidates}
    return config.model_copy(update={"tuning": Tuning.model_validate_json(json.dumps(tuning))})


@lru_cache
def rows_of(model: str) -> Split:
    """Train and test rows of a model's first source."""
    config = configured(model)
    return split_frame(config, frame_of(model) if model == "houses" else ingest_frame(config).frame)


def noise(rows: int = 120, seed: int = 1) -> tuple[ModelConfig, pd.DataFrame]:
    """Rows of two numbers that say nothing about a class of two."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"])
    frame["y"] = np.where(rng.random(rows) < 0.5, "no", "yes").astype(object)
    return toy({"a": {"type": "number"}, "b": {"type": "number"}}), frame


def toy(columns: dict[str, Any], **keys: Any) -> ModelConfig:
    """A model of two classes over the given columns."""
    described = {
        "name": "toy",
        "target": {"column": "y", "labels": ["no", "yes"]},
        "sources": [{"name": "none", "kind": "synthetic", "generator": "none", "rows": 1}],
        "columns": columns,
        "tuning": {"candidates": QUICK, "trials": 3, "folds": 3, "seconds": 100_000},
    }
    return resolve([Layer("test", described), Layer("test", keys)]).config


def main(model: str) -> None:
    """Tune and train in this process, print the digest and the choice as JSON."""
    config = quick(model)
    train = rows_of(model).train
    tuning = tune_model(config, train)
    with tempfile.TemporaryDirectory() as folder:
        from bentos.release import Release

        release = Release.open(train_release(config, train, tuning, "d" * 64, Path(folder) / "release"))
        told = {"digest": release.digest, "family": tuning.family, "params": tuning.params, "score": tuning.cv_score}
        print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
