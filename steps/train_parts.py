"""Training by partition: XGBoost on all of them at once, on Dask workers; the other families on a sample."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bentos.release import Whole, column_figures
from bentos.schema import encode, labels_of
from models.config import ModelConfig
from models.errors import GauntletError, WorkError, bounded
from steps.cluster import Cluster, WorkerLost, cluster
from steps.families import build_pipeline, one_thread
from steps.partitions import Part, Partitions
from steps.train import record_release, train_release
from steps.tune import TuningResult, search_sample

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.5
GRACE_LOOKS = 10


def train_partitions(
    config: ModelConfig, train: Partitions, tuning: TuningResult, data_digest: str, directory: Path
) -> Path:
    """Fit on Dask workers, write the Release into `directory`, and record it with the tuning's MLflow run.

    XGBoost sees all training rows; the preparation before it (medians, categories, which columns have missing values)
    is fitted on the sample that tuning saw. Any other family is fitted on that sample alone, and the log says so.

    Raises:
        ConfigError: There is no feature at all.
        DataError: The target has one class, or one that the YAML does not declare.
        WorkError: The estimator or MLflow refuses; workers do not start or are lost.
    """
    with cluster("train") as dask:
        sample = search_sample(dask.each, config, train)
        if tuning.family != "xgboost":
            log.warning("%s", sampled_only(tuning.family, len(sample), len(train)))
            return train_release(config, sample, tuning, data_digest, directory)
        pipeline = fit_boosted(dask, config, tuning.params, train, sample)
        whole = describe(dask, config, train)
    return record_release(config, pipeline, sample, tuning, data_digest, directory, whole)


def sampled_only(family: str, sampled: int, rows: int) -> str:
    """What is said of a family that does not train on partitions."""
    return f"{family} trains in memory: it was fitted on {sampled:,} sampled of {rows:,} training rows (search_rows)"


def fit_boosted(
    dask: Cluster, config: ModelConfig, params: Mapping[str, Any], train: Partitions, sample: pd.DataFrame
) -> "Pipeline":
    """One fitted pipeline whose booster was learnt from all partitions by `xgboost.dask`.

    Raises:
        WorkError: XGBoost refuses, or a worker was lost; the next run begins anew.
    """
    pipeline = build_pipeline(config, "xgboost", params)
    with one_thread():
        pipeline[:-1].fit(sample)
    labels = labels_of(config, sample)
    estimator: Any = pipeline.steps[-1][1]
    given = dict(estimator.get_xgb_params())
    for ours in ("n_jobs", "random_state"):
        given.pop(ours, None)
    given |= {"seed": config.seed, "nthread": 1}
    if len(labels) > 2:
        given |= {"objective": "multi:softprob", "num_class": len(labels)}
    booster = _boost(dask, given, estimator.get_num_boosting_rounds(), pipeline, config, train, labels)
    booster.feature_names = booster.feature_types = None
    kept = estimator.get_params(deep=False)
    estimator.load_model(booster.save_raw("ubj"))
    estimator.set_params(**kept)  # loading overwrites some with what the booster came to
    return pipeline


def describe(dask: Cluster, config: ModelConfig, train: Partitions) -> Whole:
    """Exact figures of all training rows, one column at a time."""
    kinds = {name: config.columns[name].type if name in config.columns else "" for name in train.columns}
    names = [name for name in train.columns if name not in config.columns or not config.columns[name].personal]
    figures = dask.each(_described, names, train, kinds)
    return Whole(len(train), dict(zip(names, figures, strict=True)))


def _described(name: str, train: Partitions, kinds: Mapping[str, str]) -> dict[str, Any]:
    return column_figures(train.column(name), kinds[name])


def _boost(
    cluster: Cluster,
    params: Mapping[str, Any],
    rounds: int,
    pipeline: "Pipeline",
    config: ModelConfig,
    train: Partitions,
    labels: Sequence[str],
) -> Any:
    import dask.dataframe as frames
    from dask import delayed
    from xgboost import dask as boosting

    preparation = delayed(pipeline[:-1], pure=False)
    seen = [delayed(_prepared)(part, train, preparation) for part in train.parts]
    told = [delayed(_target)(part, train, config.target.column, labels) for part in train.parts]
    first = _prepared(train.parts[0], train, pipeline[:-1]).head(0)

    def learn() -> Any:
        x = frames.from_delayed(seen, meta=first, verify_meta=False)
        y = frames.from_delayed(told, meta=("target", np.float32), verify_meta=False)
        matrix = boosting.DaskQuantileDMatrix(cluster.client, x, y, max_bin=params.get("max_bin") or 256)
        return boosting.train(cluster.client, dict(params), matrix, num_boost_round=rounds)["booster"]

    with cluster.telling():
        return _watched(cluster, learn)


def _watched(dask: Cluster, learn: Any) -> Any:
    """What `learn` comes to, unless a worker goes meanwhile: the others would wait for it for ever.

    Raises:
        WorkerLost: One is gone.
        WorkError: XGBoost refuses.
    """
    there = set(dask.workers)
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with dask.client.as_current():
                found.append(learn())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="gauntlet-xgboost", daemon=True)
    thread.start()
    while thread.is_alive() and there <= set(dask.workers):
        thread.join(LOOK_SECONDS)
    if found:
        return found[0]
    for _ in range(GRACE_LOOKS):
        if not there <= set(dask.workers):
            raise WorkerLost
        thread.join(LOOK_SECONDS)
    error = failed[0]
    if isinstance(error, GauntletError | MemoryError):
        raise error
    raise WorkError(f"xgboost cannot be fitted: {bounded(' '.join(str(error).split()), 300)}") from error


def _prepared(part: Part, train: Partitions, preparation: "Pipeline") -> pd.DataFrame:
    """A partition as the booster sees it: numbers in single precision, which it computes with, flags in a byte."""
    with one_thread():
        matrix = preparation.transform(train.read(part))
    flags = preparation.steps[-1][1].output_indices_.get("category", slice(0, 0))
    kinds = np.full(matrix.shape[1], np.float32, dtype=object)
    kinds[flags] = np.int8
    return pd.DataFrame({f"f{at}": matrix[:, at].astype(kind) for at, kind in enumerate(kinds)})


def _target(part: Part, train: Partitions, name: str, labels: Sequence[str]) -> "pd.Series[Any]":
    target = train.read(part, [name])[name]
    return (encode(labels, target) if labels else target).astype(np.float32).rename("target")
