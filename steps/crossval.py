"""Cross-validation on the training rows: seeded folds, each prepared once for all configurations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bentos.features import derived_columns
from bentos.schema import encode, labels_of
from models.config import Family, ModelConfig
from models.errors import DataError
from steps.families import Params, build_estimator, build_preparation, is_scaled, one_thread
from steps.metrics import figure

Array = np.ndarray[Any, Any]

MEMORY = 256 * 2**20


@dataclass(frozen=True)
class Prepared:
    """One fold as the estimator sees it: matrices (rows, columns) of float64 and the target's codes or numbers."""

    x_fit: Array
    y_fit: Array
    x_score: Array
    y_score: Array

    @property
    def size(self) -> int:
        """Bytes of the matrices."""
        return int(self.x_fit.nbytes + self.x_score.nbytes)


@dataclass(frozen=True)
class CrossValidation:
    """The training rows of one model, cut into folds; every configuration is scored on the same ones.

    Attributes:
        config: The model.
        features: The columns that the estimator sees.
        target: Shape (n,): codes 0..k-1, or numbers.
        classes: k; 0 for regression.
        folds: Shape (n,): the fold that a row is scored in.
    """

    config: ModelConfig
    features: pd.DataFrame
    target: Array
    classes: int
    folds: Array
    _kept: dict[tuple[int, bool], Prepared] = field(default_factory=dict, repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1

    def score(self, family: Family, params: Params, before_fit: Callable[[], None] = lambda: None) -> float:
        """Mean of the model's metric over the folds.

        Args:
            family: The estimator's family.
            params: Its parameters.
            before_fit: Called before each fit; what it raises ends the scoring.

        Raises:
            DataError: No fold allows the metric.
        """
        figures = []
        with one_thread():
            for number in range(self.count):
                before_fit()
                fold = self._prepared(number, is_scaled(family))
                figures.append(figure(self.config.metric, fold.y_score, self._answer(fold, family, params)))
        return self._mean(figures)

    def dummy_score(self) -> float:
        """The same for a model that ignores its input: class shares, or the mean (for `mae` the median)."""
        figures = []
        for number in range(self.count):
            fitted, scored = self.target[self.folds != number], self.target[self.folds == number]
            figures.append(
                figure(self.config.metric, scored, dummy_answer(self.config, fitted, len(scored), self.classes))
            )
        return self._mean(figures)

    def _mean(self, figures: list[float | None]) -> float:
        known = [value for value in figures if value is not None]
        if not known:
            raise DataError(
                f"{self.config.metric} cannot be computed on any of {self.count} folds of {len(self.target)} training "
                "rows: give more data, or fewer tuning.folds"
            )
        return float(np.mean(known))

    def _prepared(self, number: int, scaled: bool) -> Prepared:
        if (number, scaled) in self._kept:
            return self._kept[number, scaled]
        scoring = self.folds == number
        preparation = build_preparation(self.config, scaled=scaled)
        x_fit = preparation.fit_transform(self.features[~scoring])
        x_score = preparation.transform(self.features[scoring])
        fold = Prepared(x_fit, self.target[~scoring], x_score, self.target[scoring])
        if sum(kept.size for kept in self._kept.values()) + fold.size <= MEMORY:
            self._kept[number, scaled] = fold
        return fold

    def _answer(self, fold: Prepared, family: Family, params: Params) -> Array:
        estimator: Any = build_estimator(self.config, family, params)
        if not self.classes:
            return np.asarray(estimator.fit(fold.x_fit, fold.y_fit).predict(fold.x_score), dtype=np.float64)
        # A class with one row is absent from the fit of the fold that scores it.
        present, codes = np.unique(fold.y_fit, return_inverse=True)
        probabilities = np.zeros((len(fold.x_score), self.classes))
        if len(present) == 1:
            probabilities[:, present] = 1.0
        else:
            probabilities[:, present] = estimator.fit(fold.x_fit, codes).predict_proba(fold.x_score)
        return probabilities


def cross_validation(config: ModelConfig, train: pd.DataFrame) -> CrossValidation:
    """Cut training rows into folds.

    Raises:
        DataError: There are too few rows, classes or entities.
    """
    features = derived_columns(config).fit(train).transform(train)
    labels = labels_of(config, train)
    target = train[config.target.column]
    numbers = encode(labels, target).to_numpy() if labels else target.to_numpy(np.float64)
    folds = assign_folds(config, train, numbers if labels else np.zeros(len(train), dtype=np.int64))
    return CrossValidation(config, features, numbers, len(labels), folds)


def assign_folds(config: ModelConfig, train: pd.DataFrame, strata: Array) -> Array:
    """The fold of every row: seeded, stratified, and never two folds for one entity or for equal rows.

    Args:
        config: The model.
        train: Typed frame of n rows.
        strata: Shape (n,): codes whose shares the folds keep.

    Returns:
        Shape (n,): 0 up to the number of folds, which is less than `tuning.folds` where there are too few rows.

    Raises:
        DataError: Two folds cannot be made.
    """
    by_entity = config.split.by == "entity" and config.split.column is not None
    keys = train[config.split.column] if by_entity else row_keys(train[config.input_names()])
    group, _ = pd.factorize(keys, use_na_sentinel=False)
    count = int(group.max()) + 1 if len(group) else 0
    folds = min(config.tuning.folds, count)
    if folds < 2:
        what = f"different values of '{config.split.column}'" if by_entity else "different training rows"
        raise DataError(f"tuning needs at least 2 {what}, found {count}: give more data")
    first = np.zeros(count, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    return _stratified(strata[first], folds, config.seed)[group]


def row_keys(frame: pd.DataFrame) -> "pd.Series[Any]":
    """One number for each row, equal where the rows are equal."""
    return pd.util.hash_pandas_object(frame, index=False)


def dummy_answer(config: ModelConfig, target: Array, rows: int, classes: int) -> Array:
    """What a model that ignores its input says to `rows` rows: shape (rows, classes), or (rows,) for regression."""
    if not classes:
        middle = np.median(target) if config.metric == "mae" else np.mean(target)
        return np.full(rows, float(middle))
    shares = np.bincount(target, minlength=classes) / len(target)
    return np.tile(shares, (rows, 1))


def _stratified(strata: Array, folds: int, seed: int) -> Array:
    """Deal each stratum's members, shuffled, over the folds; the deal goes on where the last stratum ended."""
    order = np.random.default_rng(seed).permutation(len(strata))
    dealt = order[np.argsort(strata[order], kind="stable")]
    assigned = np.empty(len(strata), dtype=np.int64)
    assigned[dealt] = np.arange(len(strata)) % folds
    return assigned
