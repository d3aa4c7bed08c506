"""Small fitted pipelines on real and generated data; run as a script, it writes their Releases and prints digests."""

import hashlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastapi.testclient import TestClient
from sklearn.pipeline import Pipeline

from bentos.access import Access
from bentos.app import add_model, new_app
from bentos.desk import Desk
from bentos.fleet import Fleet
from bentos.front import Front
from bentos.release import Release, write_release
from bentos.schema import encode, labels_of
from bentos.served import Served
from models.config import Family, Layer, ModelConfig, load_model, resolve
from steps.families import build_pipeline, one_thread
from steps.ingest import ingest_frame

PARAMETERS: dict[Family, dict[str, Any]] = {
    "logistic_regression": {"C": 0.5},
    "linear_regression": {},
    "random_forest": {"n_estimators": 20, "max_depth": 6},
    "xgboost": {"n_estimators": 25, "max_depth": 3, "subsample": 0.8},
}

HOUSES: dict[str, Any] = {
    "name": "houses",
    "task": "regression",
    "metric": "r2",
    "target": {"column": "price"},
    "sources": [{"name": "none", "kind": "synthetic", "generator": "none", "rows": 1}],
    "columns": {
        "size m²": {"type": "number", "range": [10, 1000], "on_range": "flag"},
        "rooms": {"type": "integer", "range": [1, 20]},
        "heated": {"type": "boolean", "missing": 0.5},
        "kind": {"type": "category", "categories": ["flat", "house"], "on_unseen": "reject"},
        "sold": {"type": "datetime"},
        "owner": {"type": "text", "personal": True},
        "income": {"type": "number", "missing": 0.5},
    },
    "derived": {
        "space": {"ratio": ["size m²", "rooms"]},
        "per_income": {"ratio": ["size m²", "income"]},
        "year": {"date": "sold", "part": "year"},
    },
}


@lru_cache
def config_of(model: str) -> ModelConfig:
    """The shipped model of that name, or the invented `houses` (regression, every column type, a personal column)."""
    return resolve([Layer("test", HOUSES)]).config if model == "houses" else load_model(model).config


def client_of(release: Release, max_batch: int | None = None, at_root: bool = True) -> TestClient:
    """A client on this machine of a service that answers with a Release, as its version 12, by the way that all go."""
    if max_batch is not None:
        serving = release.config.serving.model_copy(update={"max_batch": max_batch})
        release = Release(release.directory, release.manifest)
        release.__dict__["config"] = release.config.model_copy(update={"serving": serving})
    desk = Desk(Fleet())
    app = new_app(desk)
    add_model(app, release, at_root)
    desk.fleet.put(release.schema.model, Served.load(release, 12))
    front = Front(app, Access(), desk)  # type: ignore[arg-type]
    client = TestClient(front, raise_server_exceptions=False, client=("127.0.0.1", 50_000))
    client.release, client.desk = release, desk  # type: ignore[attr-defined]
    return client


@lru_cache
def frame_of(model: str) -> pd.DataFrame:
    """Typed frame with the target."""
    if model == "houses":
        return _houses()
    frame = ingest_frame(config_of(model)).frame
    return frame.head(600) if model == "pipeline_errors" else frame


def _houses(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    size = np.round(rng.uniform(20, 400, rows), 1)
    return pd.DataFrame(
        {
            "size m²": size,
            "rooms": np.ceil(size / 30),
            "heated": np.where(rng.random(rows) < 0.2, np.nan, rng.integers(0, 2, rows)),
            "kind": rng.choice(np.array(["flat", "house"], dtype=object), rows),
            "sold": pd.Timestamp("2011-03-04T05:06:07") + pd.to_timedelta(rng.integers(0, 3000, rows), unit="D"),
            "owner": [f"pseudonym-{row}" for row in range(rows)],
            "income": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(1e3, 1e5, rows)),
            "price": size * 1_000 + rng.normal(0, 10_000, rows),
        }
    )


def fitted(model: str, family: Family, n_jobs: int = 1) -> Pipeline:
    """A pipeline fitted on all rows of the model's first source."""
    config, frame = config_of(model), frame_of(model)
    pipeline = build_pipeline(config, family, PARAMETERS[family])
    if n_jobs != 1:
        pipeline.steps[-1][1].set_params(n_jobs=n_jobs)
    labels = labels_of(config, frame)
    target = encode(labels, frame[config.target.column]) if labels else frame[config.target.column]
    with one_thread():
        return pipeline.fit(frame, target.to_numpy())


def write(directory: Path, model: str, family: Family, **changes: Any) -> Release:
    """A Release of `fitted(model, family)`; `changes` replace arguments of `write_release`."""
    given: dict[str, Any] = {
        "pipeline": changes.pop("pipeline", None) or fitted(model, family),
        "config": config_of(model),
        "train": frame_of(model),
        "metrics": {"accuracy": 0.9123456789123},
        "data_digest": "d" * 64,
        "trials": 7,
        "evidence": {"times": {"seconds": 1.5}},
    }
    return write_release(directory, **given | changes)


def sums(release: Release) -> dict[str, str]:
    """SHA-256 of the fitted pipeline's files."""
    names = ("pipeline.skops", "booster.ubj", "booster.json", "golden.json", "schema.json")
    found = {name: release.directory / name for name in names if (release.directory / name).exists()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


def main(folder: Path, pairs: list[str]) -> None:
    """Write Releases of `model:family` pairs and print their digests and sums as JSON."""
    told = {}
    for pair in pairs:
        model, family = pair.split(":")
        release = write(folder / pair.replace(":", "-"), model, family)  # type: ignore[arg-type]
        told[pair] = {"digest": release.digest, **sums(release)}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
