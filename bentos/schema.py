"""What a model takes and answers, as the Release keeps it in `schema.json`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from models.config import Column, ModelConfig
from models.errors import DataError
from models.section import Section

if TYPE_CHECKING:
    import pandas as pd


class Schema(Section):
    """Inputs and labels of one Release.

    Attributes:
        model: Name of the model.
        task: Whether the answer is a class or a number.
        target: Name of the column that is predicted.
        labels: Classes in the order of their codes 0..k-1; the last is the positive one of two. Empty for regression.
        inputs: The raw columns that the fitted pipeline reads, in the YAML's order.
    """

    model: str
    task: Literal["classification", "regression"]
    target: str
    labels: tuple[str, ...] = ()
    inputs: dict[str, Column] = Field(min_length=1)


def labels_of(config: ModelConfig, train: "pd.DataFrame") -> tuple[str, ...]:
    """Classes of a training frame in the order of their codes: as declared, else sorted; absent ones left out.

    Args:
        config: The model; a regression has no labels.
        train: Typed frame with the target.

    Raises:
        DataError: There is only one class, or a class that the YAML does not declare.
    """
    if config.task == "regression":
        return ()
    found = set(train[config.target.column].dropna())
    declared = config.target.labels
    if declared and (extra := sorted(found - set(declared))):
        raise DataError(f"target '{config.target.column}' has {len(extra)} classes that target.labels does not name")
    labels = tuple(label for label in declared if label in found) if declared else tuple(sorted(found))
    if len(labels) < 2:
        raise DataError(f"target '{config.target.column}' has {len(labels)} class in the training rows; two are needed")
    return labels


def schema_of(config: ModelConfig, train: "pd.DataFrame") -> Schema:
    """The schema of a model trained on `train` (typed frame with the target)."""
    return Schema(
        model=config.name,
        task=config.task,
        target=config.target.column,
        labels=labels_of(config, train),
        inputs={name: config.columns[name] for name in config.input_names()},
    )


def encode(labels: Sequence[str], target: "pd.Series[Any]") -> "pd.Series[int]":
    """Codes 0..k-1 of class labels, in the order of `labels`; what classifiers are fitted on."""
    return target.map({label: code for code, label in enumerate(labels)}).astype("int64")
