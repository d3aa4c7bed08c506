"""The Release: one directory that is logged, promoted, packaged and served."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bentos.schema import Schema
from models.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class Answers:
    """What a Release says to n rows.

    Attributes:
        values: Shape (n,): predicted labels (object of str), or numbers (float64) for regression.
        probabilities: Shape (n, k), columns in the order of `Schema.labels`; None for regression.
    """

    values: "np.ndarray[Any, Any]"
    probabilities: "np.ndarray[Any, Any] | None"


@dataclass(frozen=True)
class Golden:
    """A row and its answer, kept with the Release: whoever loads it must answer the same (to 1e-6)."""

    inputs: dict[str, Any]
    prediction: str | float
    probabilities: tuple[float, ...] | None


@dataclass(frozen=True)
class Release:
    """A Release on disk whose every file has the sum that its manifest says."""

    directory: Path

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Verify and open.

        Raises:
            WorkError: A file is missing, extra, or its sum differs; or there is no Release.
        """
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        raise NotImplementedError

    @cached_property
    def config(self) -> ModelConfig:
        raise NotImplementedError

    @cached_property
    def schema(self) -> Schema:
        raise NotImplementedError

    @cached_property
    def pipeline(self) -> "Pipeline":
        raise NotImplementedError

    @cached_property
    def golden(self) -> tuple[Golden, ...]:
        raise NotImplementedError

    @cached_property
    def metrics(self) -> dict[str, float]:
        raise NotImplementedError

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """Evidence by name, what `write_release` and `add_evidence` were given."""
        raise NotImplementedError

    @property
    def data_digest(self) -> str:
        raise NotImplementedError

    @property
    def family(self) -> str:
        """Family of the estimator: logistic_regression, linear_regression, random_forest or xgboost."""
        raise NotImplementedError

    def reference(self) -> "pd.DataFrame":
        """Typed sample of the training rows with the target."""
        raise NotImplementedError

    def answer(self, frame: "pd.DataFrame") -> Answers:
        """Answer a typed frame (further columns are ignored).

        Raises:
            DataError: A value is too large for the model's arithmetic.
        """
        raise NotImplementedError


def write_release(
    directory: Path,
    *,
    pipeline: "Pipeline",
    config: ModelConfig,
    train: "pd.DataFrame",
    metrics: Mapping[str, float],
    data_digest: str,
    trials: int,
    evidence: Mapping[str, Any],
) -> Release:
    """Write a fitted pipeline and all that belongs to it.

    Args:
        directory: New or empty.
        pipeline: Fitted on class codes 0..k-1 in the order of `labels_of(config, train)`, or on numbers.
        config: The resolved configuration.
        train: Typed frame with the target; personal columns are left out of everything written.
        metrics: Quality metrics, part of the digest: nothing timed.
        data_digest: Digest of the data that `train` was split from.
        trials: Configurations that tuning tried.
        evidence: Name to JSON-ready data, text, or bytes (the name then says the kind: "roc.png"); not in the digest.
    """
    raise NotImplementedError


def add_evidence(directory: Path, name: str, data: Any) -> None:
    """Add evidence (JSON-ready data, text or bytes) to a Release and renew its manifest.

    Raises:
        WorkError: The Release is damaged, or has evidence of that name.
    """
    raise NotImplementedError
