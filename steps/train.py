"""Training: one fitted pipeline, raw row in, answer out, written as a Release."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from zenml import step

from bentos.release import Whole, write_release
from bentos.schema import encode, labels_of
from models.config import Family, ModelConfig
from models.errors import WorkError, bounded
from stacks import runs
from stacks.home import home_dir
from steps.caching import cached_by, parse_config
from steps.families import Params, build_pipeline, one_thread
from steps.partitions import Partitions
from steps.reweigh import training_weights
from steps.tune import TuningResult

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

DRAFT_SECONDS = 24 * 3600


def fit(config: ModelConfig, tuning: TuningResult, train: pd.DataFrame) -> "Pipeline":
    """Fit the pipeline that tuning chose on all training rows, on one thread.

    Args:
        config: The model.
        tuning: What the search came to.
        train: Typed frame with the target; rows of the test set never come here.

    Raises:
        ConfigError: There is no feature at all.
        DataError: The target has one class, or one that the YAML does not declare.
        WorkError: The estimator refuses.
    """
    return fit_family(config, tuning.family, tuning.params, train)


def fit_family(config: ModelConfig, family: Family, params: Params, train: pd.DataFrame) -> "Pipeline":
    """Fit one family's pipeline, on class codes 0..k-1 in the order of the labels, or on numbers.

    Raises:
        ConfigError: There is no feature at all.
        DataError: The target has one class, or one that the YAML does not declare.
        WorkError: The estimator refuses.
    """
    return fit_pipeline(config, family, build_pipeline(config, family, params), train)


def fit_pipeline(config: ModelConfig, family: Family, pipeline: "Pipeline", train: pd.DataFrame) -> "Pipeline":
    """Fit an unfitted pipeline of a family, with weights where `fairness.reweigh` asks for them.

    Raises:
        DataError: The target has one class, or one that the YAML does not declare.
        WorkError: The estimator refuses.
    """
    target = train[config.target.column]
    labels = labels_of(config, train)
    wanted = encode(labels, target).to_numpy() if labels else target.to_numpy(np.float64)
    weights = training_weights(config, train, wanted)
    try:
        with one_thread():
            pipeline.fit(train, wanted, **({} if weights is None else {"model__sample_weight": weights}))
    except (ValueError, ArithmeticError) as error:
        raise WorkError(f"{family} cannot be fitted: {bounded(' '.join(str(error).split()), 300)}") from error
    return pipeline


def train_release(
    config: ModelConfig, train: pd.DataFrame, tuning: TuningResult, data_digest: str, directory: Path
) -> Path:
    """Fit, write the Release into `directory`, and record it with the tuning's MLflow run.

    Raises:
        ConfigError: There is no feature at all.
        DataError: The target has one class, or one that the YAML does not declare.
        WorkError: The estimator or MLflow refuses.
    """
    return record_release(config, fit(config, tuning, train), train, tuning, data_digest, directory)


def record_release(
    config: ModelConfig,
    pipeline: "Pipeline",
    train: pd.DataFrame,
    tuning: TuningResult,
    data_digest: str,
    directory: Path,
    whole: Whole | None = None,
) -> Path:
    """Write the Release of a fitted pipeline into `directory`, and record it with the tuning's MLflow run.

    Args:
        config: The model.
        pipeline: Fitted.
        train: Typed training rows.
        tuning: What the search came to.
        data_digest: Digest of the data that they were split from.
        directory: New or empty.
        whole: What `train` is a sample of; None where it holds all training rows.

    Raises:
        WorkError: The pipeline cannot be stored, or MLflow refuses.
    """
    run_id = runs.same_run(config.name, tuning.mlflow_run_id)
    release = write_release(
        directory,
        pipeline=pipeline,
        config=config,
        train=train,
        metrics=cv_metrics(tuning),
        data_digest=data_digest,
        trials=tuning.trials,
        evidence={"mlflow_run": {"run_id": run_id}, "tuning": tuning.model_dump(mode="json")},
        whole=whole,
    )
    rows = release.training.rows
    runs.log_run(
        run_id,
        params={"family": tuning.family, **tuning.params, "seed": config.seed, "train_rows": rows},
        tags={"gauntlet.release_digest": release.digest, "gauntlet.data_digest": data_digest},
    )
    kinds = {name: column.type for name, column in config.columns.items() if not column.personal}
    runs.log_dataset(run_id, name=config.name, digest=data_digest, schema=kinds, rows=rows, context="training")
    return directory


def cv_metrics(tuning: TuningResult) -> Mapping[str, float]:
    """The scores of cross-validation that a Release carries: its own, the plain linear pipeline's, the dummy's."""
    return {
        f"cv_{tuning.metric}": tuning.cv_score,
        f"cv_{tuning.metric}_linear": tuning.linear_cv_score,
        f"cv_{tuning.metric}_dummy": tuning.dummy_cv_score,
    }


def draft_directory() -> Path:
    """A new folder for a Release on its way into the artifact store; those of a day ago are removed."""
    drafts = home_dir() / "drafts"
    drafts.mkdir(parents=True, exist_ok=True)
    for old in drafts.iterdir():
        if old.stat().st_mtime < time.time() - DRAFT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=drafts))


@step(cache_policy=cached_by(__name__))
def train(
    config: str, train: pd.DataFrame | Partitions, tuning: TuningResult, data_digest: str
) -> Annotated[Path, "release"]:
    """Fit the chosen pipeline on the training rows and write the Release."""
    if isinstance(train, Partitions):
        from steps.train_parts import train_partitions

        return train_partitions(parse_config(config), train, tuning, data_digest, draft_directory())
    return train_release(parse_config(config), train, tuning, data_digest, draft_directory())
