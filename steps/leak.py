"""How much of the target one column alone tells."""

from typing import Any

import numpy as np
import pandas as pd

LEAVES = 64
SAMPLE = 20_000


def told_alone(values: "pd.Series[Any]", target: "pd.Series[Any]", seed: int) -> float:
    """Accuracy (classes) or R² (numbers) on held-out rows of a model that sees one column only.

    A small decision tree for numbers and dates, a table of the commonest class (or mean) for texts, learnt on one
    half of at most 20,000 rows and scored on the other, so that an identifier with a value of its own per row tells
    nothing. The better of two figures: over all rows (that a value is missing may tell), and over the rows that have
    one, if they are a third. For classes 0 is returned where the error is not at least ten times smaller than that of
    always saying the commonest class: with rare classes a high accuracy alone means little.
    """
    order = np.random.default_rng(seed).permutation(len(values))[:SAMPLE]
    order = order[target.notna().to_numpy()[order]]
    if len(order) < 20:
        return 0.0
    x, y = values.iloc[order].reset_index(drop=True), target.iloc[order].reset_index(drop=True)
    score = _told(x, y)
    present = x.notna()
    if present.all() or 3 * int(present.sum()) < len(x) or int(present.sum()) < 20:
        return score
    return max(score, _told(x[present].reset_index(drop=True), y[present].reset_index(drop=True)))


def _told(x: "pd.Series[Any]", y: "pd.Series[Any]") -> float:
    half = len(x) // 2
    numeric = y.dtype != np.dtype(object)
    learn = _tree if x.dtype != np.dtype(object) else _table
    predicted = learn(x[:half], y[:half], x[half:], numeric)
    truth = y[half:].to_numpy()
    if numeric:
        spread = float(((truth - truth.mean()) ** 2).sum())
        return 1 - float(((truth - predicted) ** 2).sum()) / spread if spread > 0 else 0.0
    error = float((truth != predicted).mean())
    plain = float((truth != y[:half].mode().iloc[0]).mean())
    return 1 - error if error <= plain / 10 and plain > 0 else 0.0


def _tree(x: "pd.Series[Any]", y: "pd.Series[Any]", new: "pd.Series[Any]", numeric: bool) -> "np.ndarray[Any, Any]":
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeRegressor if numeric else DecisionTreeClassifier
    return np.asarray(kind(max_leaf_nodes=LEAVES, random_state=0).fit(_matrix(x), y).predict(_matrix(new)))


def _matrix(x: "pd.Series[Any]") -> "np.ndarray[Any, Any]":
    if x.dtype.kind == "M":
        seconds = (x - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
        return seconds.to_numpy(np.float64).reshape(-1, 1)
    return x.to_numpy(np.float64).reshape(-1, 1)


def _table(x: "pd.Series[Any]", y: "pd.Series[Any]", new: "pd.Series[Any]", numeric: bool) -> "np.ndarray[Any, Any]":
    keys, asked = x.fillna(""), new.fillna("")
    if numeric:
        return asked.map(y.groupby(keys).mean()).fillna(y.mean()).to_numpy(np.float64)
    counts = pd.crosstab(keys, y)
    return asked.map(counts.idxmax(axis=1)).fillna(y.mode().iloc[0]).to_numpy(dtype=object)
