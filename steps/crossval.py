"""Cross-validation on the training rows: seeded folds, each prepared once for all configurations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bentos.features import derived_columns
from bentos.schema import encode, labels_of
from models.config import Family, ModelConfig
from models.errors import DataError
from models.section import Scalar
from steps.families import Params, build_estimator, build_preparation, is_scaled, one_thread
from steps.metrics import deciding_figure
from steps.reweigh import reweighing_groups, weigh

Array = np.ndarray[Any, Any]
Matrix = Any

MEMORY = 256 * 2**20
# Parameters with which rows binned by us would not be those that XGBoost's own estimator sees.
_OWN_MATRIX = {
    "booster",
    "device",
    "early_stopping_rounds",
    "enable_categorical",
    "eval_metric",
    "feature_types",
    "feature_weights",
    "missing",
    "multi_strategy",
    "num_parallel_tree",
    "objective",
    "tree_method",
}


@dataclass(frozen=True)
class Prepared:
    """One fold as the estimator sees it: matrices (rows, columns), dense or CSR, and the target's codes or numbers.

    Rows to fit weigh `weights`, which those rows alone lead to; all the same where there are none.
    """

    x_fit: Matrix
    y_fit: Array
    x_score: Matrix
    y_score: Array
    weights: Array | None = None

    @property
    def size(self) -> int:
        """Bytes of the matrices."""
        return _bytes(self.x_fit) + _bytes(self.x_score)


@dataclass(frozen=True)
class CrossValidation:
    """The training rows of one model, cut into folds; every configuration is scored on the same ones.

    Attributes:
        config: The model.
        features: The columns that the estimator sees.
        target: Shape (n,): codes 0..k-1, or numbers.
        classes: k; 0 for regression.
        folds: Shape (n,): the fold that a row is scored in.
        labels: The classes; empty for regression.
        groups: Shape (n,): the group by which a row weighs, see `steps.reweigh`; None where all weigh the same.
    """

    config: ModelConfig
    features: pd.DataFrame
    target: Array
    classes: int
    folds: Array
    labels: tuple[str, ...] = ()
    groups: Array | None = None
    _kept: dict[tuple[int, bool], Prepared] = field(default_factory=dict, repr=False, compare=False)
    _binned: dict[tuple[int, int | None], Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1

    def score(self, family: Family, params: Params) -> float:
        """Mean of the model's metric over all folds.

        Raises:
            DataError: No fold allows the metric.
        """
        with one_thread():
            return self.mean([self.fold_score(number, family, params) for number in range(self.count)])

    def fold_score(self, number: int, family: Family, params: Params) -> float | None:
        """The model's metric on one fold, or None where its rows do not allow it. Call it inside `one_thread`."""
        fold = self._prepared(number, is_scaled(family))
        if family == "xgboost" and not set(params) & _OWN_MATRIX:
            answered = self._boosted(number, fold, params)
        else:
            answered = self._answer(fold, family, params)
        return deciding_figure(self.config, self.labels, fold.y_score, answered)

    def dummy_score(self) -> float:
        """The same for a model that ignores its input: class shares, or the mean (for `mae` the median)."""
        figures = []
        for number in range(self.count):
            fitted, scored = self.target[self.folds != number], self.target[self.folds == number]
            figures.append(
                deciding_figure(
                    self.config, self.labels, scored, dummy_answer(self.config, fitted, len(scored), self.classes)
                )
            )
        return self.mean(figures)

    def settle(self, family: Family, params: Params, before_fit: Callable[[], None]) -> dict[str, Scalar | None]:
        """The parameters that a configuration is fitted with: boosting's rounds are those worth having.

        With `tuning.early_stopping`, boosting is learnt once on all rows but those of the first two folds and watched
        on the second: where its loss (the objective's, not the model's metric) gains nothing for so many rounds,
        `n_estimators` becomes the best round, on every fold and in the final fit. A round that is worth having is thus
        a parameter like those that the search draws; no row of a fold stops the fit that it scores. With two folds no
        rows are left to watch, and all rounds are fitted.
        """
        patience = self.config.tuning.early_stopping
        if family != "xgboost" or patience is None or self.count < 3 or set(params) & _OWN_MATRIX:
            return dict(params)
        booster: Any = build_estimator(self.config, family, params)
        wanted = booster.get_num_boosting_rounds()
        if wanted <= patience:
            return dict(params)
        fold = self._prepared(0, False)
        watched = self.folds[self.folds != 0] == 1
        if self.classes and len(np.unique(fold.y_fit[~watched])) < self.classes:
            return dict(params)
        import xgboost

        before_fit()
        learnt, seen = self._halves(fold, watched, params.get("max_bin"))
        fitted = xgboost.train(
            self._booster_params(booster),
            learnt,
            wanted,
            evals=[(seen, "watched")],
            early_stopping_rounds=patience,
            verbose_eval=False,
        )
        if fitted.num_boosted_rounds() == wanted:
            return dict(params)
        return dict(sorted({**params, "n_estimators": fitted.best_iteration + 1}.items()))

    def mean(self, figures: Sequence[float | None]) -> float:
        """The mean of what the folds allow.

        Raises:
            DataError: None allows the metric.
        """
        known = [value for value in figures if value is not None]
        if not known:
            raise DataError(
                f"{self.config.metric} cannot be computed on any of {self.count} folds of {len(self.target)} training "
                "rows: give more data, or fewer tuning.folds"
            )
        return float(np.mean(known))

    def prepare(self, families: Iterable[Family]) -> None:
        """Prepare every fold for these families now, as far as memory allows."""
        with one_thread():
            for scaled in sorted({is_scaled(family) for family in families}):
                for number in range(self.count):
                    self._prepared(number, scaled)

    def save(self, path: Path, families: Iterable[Family]) -> None:
        """Write what scoring these families needs, for `opened` in other processes of this search."""
        import joblib  # type: ignore[import-untyped]

        wanted = {(number, is_scaled(family)) for family in families for number in range(self.count)}
        # Rows as they came are needed only where a fold is still to be prepared.
        features = self.features.iloc[:0] if wanted <= self._kept.keys() else self.features
        joblib.dump(replace(self, features=features, _binned={}), path, compress=False)

    @staticmethod
    def opened(path: Path) -> "CrossValidation":
        """What `save` wrote; its matrices are mapped from the file, so that processes share them."""
        import joblib

        return joblib.load(path, mmap_mode="r")

    def _prepared(self, number: int, scaled: bool) -> Prepared:
        if (number, scaled) in self._kept:
            return self._kept[number, scaled]
        scoring = self.folds == number
        preparation = build_preparation(self.config, scaled=scaled)
        x_fit = preparation.fit_transform(self.features[~scoring])
        x_score = preparation.transform(self.features[scoring])
        weights = None if self.groups is None else weigh(self.groups[~scoring], self.target[~scoring])
        fold = Prepared(x_fit, self.target[~scoring], x_score, self.target[scoring], weights)
        if sum(kept.size for kept in self._kept.values()) + fold.size <= MEMORY:
            self._kept[number, scaled] = fold
        return fold

    def _answer(self, fold: Prepared, family: Family, params: Params) -> Array:
        estimator: Any = build_estimator(self.config, family, params)
        if not self.classes:
            return np.asarray(estimator.fit(fold.x_fit, fold.y_fit).predict(fold.x_score), dtype=np.float64)
        # A class with one row is absent from the fit of the fold that scores it.
        present, codes = np.unique(fold.y_fit, return_inverse=True)
        probabilities = np.zeros((len(fold.y_score), self.classes))
        if len(present) == 1:
            probabilities[:, present] = 1.0
        else:
            probabilities[:, present] = estimator.fit(fold.x_fit, codes, sample_weight=fold.weights).predict_proba(
                fold.x_score
            )
        return probabilities

    def _boosted(self, number: int, fold: Prepared, params: Params) -> Array:
        """What `_answer` says, to the bit, from rows that were binned once for all configurations."""
        import xgboost

        present, codes = np.unique(fold.y_fit, return_inverse=True) if self.classes else ((), fold.y_fit)
        if self.classes and len(present) < self.classes:
            return self._answer(fold, "xgboost", params)
        estimator: Any = build_estimator(self.config, "xgboost", params)
        bins = params.get("max_bin")
        key = (number, int(bins) if bins is not None else None)
        if (matrix := self._binned.get(key)) is None:
            matrix = xgboost.QuantileDMatrix(fold.x_fit, codes, weight=fold.weights, max_bin=bins, nthread=1)
            if sum(kept.size for kept in self._kept.values()) + (len(self._binned) + 1) * fold.size <= 2 * MEMORY:
                self._binned[key] = matrix
        booster = xgboost.train(self._booster_params(estimator), matrix, estimator.get_num_boosting_rounds())
        said = booster.inplace_predict(fold.x_score)
        if not self.classes:
            return np.asarray(said, dtype=np.float64)
        both = said if said.ndim == 2 else np.vstack((1.0 - said, said)).T
        return np.asarray(both, dtype=np.float64)

    def _halves(self, fold: Prepared, watched: Array, bins: Any) -> tuple[Any, Any]:
        """A fold's rows to learn from, and those to watch, binned alike."""
        import xgboost

        x, y = fold.x_fit, fold.y_fit
        key = (-1, int(bins) if bins is not None else None)
        if (known := self._binned.get(key)) is None:
            weights = (None, None) if fold.weights is None else (fold.weights[~watched], fold.weights[watched])
            learnt = xgboost.QuantileDMatrix(x[~watched], y[~watched], weight=weights[0], max_bin=bins, nthread=1)
            seen = xgboost.QuantileDMatrix(
                x[watched], y[watched], weight=weights[1], ref=learnt, max_bin=bins, nthread=1
            )
            known = learnt, seen
            self._binned[key] = known
        return known

    def _booster_params(self, estimator: Any) -> dict[str, Any]:
        """An estimator's parameters as `xgboost.train` takes them."""
        given = dict(estimator.get_xgb_params())
        return {**given, "objective": "multi:softprob", "num_class": self.classes} if self.classes > 2 else given


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
    groups = reweighing_groups(config, train)
    return CrossValidation(config, features, numbers, len(labels), folds, tuple(labels), groups)


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


def _bytes(matrix: Matrix) -> int:
    parts = (matrix.data, matrix.indices, matrix.indptr) if hasattr(matrix, "indptr") else (matrix,)
    return sum(int(part.nbytes) for part in parts)


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
