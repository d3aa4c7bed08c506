"""The first step of every fitted pipeline: typed columns in, the columns that the estimator sees out."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

from models.config import ModelConfig

Expression = Mapping[str, Any]
Kind = Literal["number", "category", "text"]


class DerivedColumns(TransformerMixin, BaseEstimator):
    """Computes derived columns and selects the features, in order; nothing is learnt from data.

    Holds plain lists and dicts only, so that skops stores it without trusting more than this class.

    Args:
        inputs: Typed columns that are read (others in the frame are ignored).
        expressions: Derived column to its expression, see `derive`.
        features: Names of the columns that come out, in order.
    """

    # Three plain arguments, kept as they are: what scikit-learn's clone and skops need.
    def __init__(self, inputs: list[str], expressions: dict[str, dict[str, Any]], features: list[str]) -> None:
        self.inputs = inputs
        self.expressions = expressions
        self.features = features

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:  # noqa: ARG002
        """Remember the inputs' number and names, as scikit-learn's own transformers do."""
        self.n_features_in_ = len(self.inputs)
        self.feature_names_in_ = np.array(self.inputs, dtype=object)
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        """Typed frame in; a frame of `features` out: float64 for numbers, object str (NaN missing) for the rest.

        Raises:
            KeyError: An input column is absent.
        """
        derived = derive(X, {name: e for name, e in self.expressions.items() if name in self.features})
        chosen = {name: derived[name] if name in derived else X[name] for name in self.features}
        return pd.DataFrame(chosen, index=X.index)

    def get_feature_names_out(self, input_features: Any = None) -> "np.ndarray[Any, Any]":  # noqa: ARG002
        """Names of the columns that come out."""
        return np.array(self.features, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        """Always: there is nothing to learn."""
        return True


def derived_columns(config: ModelConfig) -> DerivedColumns:
    """The transformer that a model's YAML describes."""
    return DerivedColumns(config.input_names(), expressions(config), config.feature_names())


def expressions(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """All derived columns of a YAML as plain data, set keys only: {"rate": {"ratio": ["thalach", "age"]}}."""
    keys = ("ratio", "difference", "log", "bin", "edges", "labels", "date", "part")
    plain: dict[str, dict[str, Any]] = {}
    for name, expression in config.derived.items():
        given = expression.model_dump(mode="json", include=set(keys))
        plain[name] = {key: given[key] for key in keys if given[key]}
    return plain


def feature_kinds(config: ModelConfig) -> dict[str, Kind]:
    """What the estimator sees, in order: number (also integer and boolean), category or text."""
    kinds: dict[str, Kind] = {}
    for name in config.feature_names():
        kind = config.derived[name].type if name in config.derived else config.columns[name].type
        kinds[name] = "category" if kind == "category" else "text" if kind == "text" else "number"
    return kinds


def derive(frame: pd.DataFrame, expressions: Mapping[str, Expression]) -> pd.DataFrame:
    """Compute derived columns of a typed frame.

    Each expression holds one of: `ratio` [a, b] (missing where b is 0), `difference` [a, b] (in days between two
    dates), `log` a (natural logarithm of 1 + a, missing where a <= -1), `bin` a with `edges` and `labels`
    (a value equal to an edge falls above it), `date` a with `part`. A missing input gives a missing result.

    Returns:
        One column per expression, in order, with the index of `frame`.
    """
    columns = {name: _evaluate(frame, expression) for name, expression in expressions.items()}
    return pd.DataFrame(columns, index=frame.index)


def bin_labels(edges: Sequence[float]) -> list[str]:
    """Names of the intervals between `edges`, where the YAML gives none."""
    texts = [f"{edge:g}" for edge in edges]
    inner = [f"{low} to below {high}" for low, high in itertools.pairwise(texts)]
    return [f"below {texts[0]}", *inner, f"{texts[-1]} or more"]


def _evaluate(frame: pd.DataFrame, expression: Expression) -> "np.ndarray[Any, Any]":
    if "ratio" in expression:
        above, below = (frame[name].to_numpy(np.float64) for name in expression["ratio"])
        quotient = np.divide(above, below, out=np.full(len(frame), np.nan), where=below != 0)
        quotient[np.isinf(quotient)] = np.nan
        return quotient
    if "difference" in expression:
        first, second = (frame[name] for name in expression["difference"])
        gap = first - second
        return (gap / pd.Timedelta(days=1) if gap.dtype.kind == "m" else gap).to_numpy(np.float64)
    if "log" in expression:
        values = frame[expression["log"]].to_numpy(np.float64)
        return np.log1p(values, out=np.full(len(frame), np.nan), where=values > -1)
    if "bin" in expression:
        values = frame[expression["bin"]].to_numpy(np.float64)
        labels = list(expression.get("labels") or bin_labels(expression["edges"]))
        table = np.array([*labels, np.nan], dtype=object)
        codes = np.searchsorted(np.asarray(expression["edges"], dtype=np.float64), values, side="right")
        return table[np.where(np.isnan(values), len(labels), codes)]
    return getattr(frame[expression["date"]].dt, expression["part"]).to_numpy(np.float64)
