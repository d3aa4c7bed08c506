"""Reweighing: training rows weigh so that class and sensitive group are independent of each other."""

from typing import Any

import numpy as np
import pandas as pd

from models.config import ModelConfig
from steps.groups import group_rows

Array = np.ndarray[Any, Any]


def reweighing_groups(config: ModelConfig, frame: pd.DataFrame) -> Array | None:
    """The group of every row in all columns of `fairness.reweigh` together.

    Returns:
        Shape (n,): codes from 0; None where rows are not weighed.
    """
    if not config.fairness.reweigh:
        return None
    codes = [group_rows(config, frame, name).codes for name in config.fairness.reweigh]
    return np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].ravel()


def weigh(groups: Array, target: Array) -> Array:
    """Weights P(group) P(class) / P(group, class): with them no group has more of a class than another.

    Kamiran & Calders (2012), "Data preprocessing techniques for classification without discrimination".

    Args:
        groups: Shape (n,): codes from 0.
        target: Shape (n,): class codes from 0.

    Returns:
        Shape (n,): above 0, about 1 on average.
    """
    both = np.zeros((groups.max() + 1, target.max() + 1))
    np.add.at(both, (groups, target), 1.0)
    expected = np.outer(both.sum(axis=1), both.sum(axis=0)) / len(target)
    return expected[groups, target] / both[groups, target]


def training_weights(config: ModelConfig, frame: pd.DataFrame, target: Array) -> Array | None:
    """The weights that a model is fitted with; None where rows are not weighed.

    Args:
        config: The model.
        frame: Typed training rows.
        target: Shape (n,): their class codes.
    """
    groups = reweighing_groups(config, frame)
    return None if groups is None else weigh(groups, target)


def unweighed(config: ModelConfig) -> ModelConfig:
    """The same model, fitted without weights."""
    return config.model_copy(update={"fairness": config.fairness.model_copy(update={"reweigh": ()})})
