"""Drift of what a model says, its scores and classes, and of what turned out to be true."""

from typing import Any

import numpy as np
import pandas as pd

from bentos.schema import Schema
from models.config import Column, ModelConfig
from steps.dataset_drift import DatasetDrift, compare

CLASS = "class"
VALUE = "value"
_Array = np.ndarray[Any, Any]
_NUMBER = Column(type="number", missing=1.0)
_CATEGORY = Column(type="category", missing=1.0)


def prediction_drift(config: ModelConfig, schema: Schema, reference: _Array, window: _Array) -> DatasetDrift:
    """Compare a window's answers with those to a reference.

    Args:
        config: The model; says how columns are compared.
        schema: Its labels.
        reference: Answers to rows that the model was not trained on, as the holdout's: shape (m, k), probabilities, or
            (m,), numbers. Answers to training rows are surer of themselves than those to any others.
        window: The window's: shape (n, k) or (n,).

    Returns:
        Of classes a column `class`, and one a class with its probability (of two: the second's); of numbers `value`.
    """
    old, new = _said(schema, reference), _said(schema, window)
    kinds = {name: _CATEGORY if name == CLASS else _NUMBER for name in old.columns}
    return compare(_watching(config), kinds, old, new, config.seed)


def target_drift(config: ModelConfig, reference: "pd.Series[Any]", truth: _Array) -> DatasetDrift:
    """Compare outcomes with the target of the training rows.

    Args:
        config: The model.
        reference: The target in the Release's reference.
        truth: Shape (n,): labels, or numbers.
    """
    name = config.target.column
    kind = _NUMBER if config.task == "regression" else _CATEGORY
    return compare(_watching(config), {name: kind}, reference.to_frame(name), pd.DataFrame({name: truth}), config.seed)


def _watching(config: ModelConfig) -> Any:
    """Methods of single columns are those of inputs."""
    return config.monitoring.model_copy(update={"methods": {}})


def _said(schema: Schema, scores: _Array) -> pd.DataFrame:
    if scores.ndim == 1:
        return pd.DataFrame({VALUE: scores})
    labels = np.array(schema.labels, dtype=object)
    kept = list(enumerate(schema.labels))[1 if len(labels) == 2 else 0 :]
    shares = {f"probability of {label}": scores[:, code] for code, label in kept}
    return pd.DataFrame({CLASS: labels[scores.argmax(axis=1)], **shares})
