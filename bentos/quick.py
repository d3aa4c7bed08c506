"""The fast path: what the fitted pipeline would answer, without pandas and scikit-learn where a row is plain.

It serves only where packaging proved it equal to the fitted pipeline on the whole test set (evidence `fast_path`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bentos.cells import Cells, Unusual
from bentos.release import Answers, estimated, told
from bentos.trees import Boosted, Trees

if TYPE_CHECKING:
    from bentos.release import Release

Array = np.ndarray[Any, Any]
Estimate = Callable[[Array], Array]

EVIDENCE = "fast_path"
TOLERANCE = 1e-6
_FEW = 8  # Rows up to which a forest's trees are walked row by row.


@dataclass(frozen=True)
class Quick:
    """Answers plain rows of one Release; made once, when it is loaded.

    Attributes:
        release: The Release.
        cells: How rows become the estimator's matrix.
        estimate: That matrix, shape (n, features), to probabilities, shape (n, k), or numbers, shape (n,).
    """

    release: "Release"
    cells: Cells
    estimate: Estimate

    @classmethod
    def of(cls, release: "Release") -> Self | None:
        """The fast path of a Release; None where it was not proven, or is not equal on the golden rows here and now.

        Raises:
            WorkError: The Release cannot be loaded.
        """
        if not release.evidence.get(EVIDENCE, {}).get("used"):
            return None
        quick = cls.unproven(release)
        if quick is None:
            return None
        for golden in release.golden:
            prepared = quick.prepare([list(golden.inputs.values())])
            if prepared is not None:
                expected = np.array([golden.probabilities or golden.prediction], dtype=np.float64)
                if not largest_gap(quick.estimate(prepared), expected) <= TOLERANCE:
                    return None
        return quick

    @classmethod
    def unproven(cls, release: "Release") -> Self | None:
        """The fast path without a proof; None where the pipeline is of no kind that is known here."""
        estimator = release.pipeline.steps[-1][1]
        try:
            cells = Cells.of(release.pipeline, release.schema)
        except Unusual:
            return None
        if release.family == "random_forest":
            return cls(release, cells, _Forest.of(estimator))
        if release.family == "xgboost":
            boosted = Boosted.of(estimator.get_booster())
            return cls(release, cells, _Boosting(release, estimator, boosted))
        return cls(release, cells, _Linear.of(estimator))

    def prepare(self, rows: Sequence[Sequence[Any]]) -> Array | None:
        """Rows as the estimator sees them, shape (n, features), float64, none missing.

        Args:
            rows: Values of JSON in the order of the schema's inputs; None is missing.

        Returns:
            None as soon as a cell needs a closer look: whatever `bentos.inputs.examine` finds, a value that is unknown
            here or of another type, a number beyond float32.
        """
        try:
            return self.cells.row(rows[0]) if len(rows) == 1 else self.cells.rows(rows)
        except (TypeError, ValueError):  # not hashable, no number, too few
            return None

    def prepare_columns(self, columns: Sequence[Sequence[Any]]) -> Array | None:
        """`prepare` of rows that come column by column."""
        try:
            return self.cells.columns(columns)
        except (TypeError, ValueError):
            return None

    def plain(self, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Rows that were prepared as explanations tell them, by input."""
        inputs = self.release.schema.inputs
        return [dict(zip(inputs, self.cells.plain(row), strict=True)) for row in rows]

    def answers(self, prepared: Array) -> Answers:
        """What `Release.answer` says to the same rows, to 1e-6."""
        return self.release.abstaining(told(self.release.schema, self.estimate(prepared)))


def largest_gap(estimates: Array, expected: Array) -> float:
    """Largest distance of probabilities; of numbers, in parts of the expected one where that is above 1."""
    size = np.maximum(1.0, np.abs(expected))
    return float(np.max(np.abs(estimates - expected) / size, initial=0.0))


@dataclass(frozen=True)
class _Linear:
    """A linear or logistic regression.

    Attributes:
        slopes: Shape (features, lines).
        starts: Shape (lines,).
        classifies: Whether its scores are log-odds.
    """

    slopes: Array
    starts: Array
    classifies: bool

    @classmethod
    def of(cls, estimator: Any) -> Self:
        slopes, starts = np.atleast_2d(estimator.coef_).T, np.atleast_1d(estimator.intercept_)
        return cls(np.ascontiguousarray(slopes), starts, hasattr(estimator, "classes_"))

    def __call__(self, prepared: Array) -> Array:
        scores = prepared @ self.slopes + self.starts
        if not self.classifies:
            return np.asarray(scores[:, 0])
        if scores.shape[1] == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        grown = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class _Forest:
    """A random forest.

    Attributes:
        each: Its trees.
        packed: The same, for few rows.
        classifies: Whether leaves hold probabilities.
    """

    each: Sequence[Any]
    packed: Trees
    classifies: bool

    @classmethod
    def of(cls, estimator: Any) -> Self:
        each = [one.tree_ for one in estimator.estimators_]
        return cls(each, Trees.of_forest(each), hasattr(estimator, "classes_"))

    def __call__(self, prepared: Array) -> Array:
        rows = prepared.astype(np.float32)
        if len(rows) <= _FEW:
            means = np.array([self.packed.values[self.packed.leaves(row)].mean(axis=0) for row in rows])
        else:
            means = np.zeros((len(rows), self.packed.values.shape[1]))
            for tree in self.each:
                means += tree.predict(rows).reshape(means.shape)
            means /= len(self.each)
        return means if self.classifies else np.asarray(means[:, 0])


@dataclass(frozen=True)
class _Boosting:
    """An XGBoost model.

    Attributes:
        release: The Release.
        estimator: Its estimator.
        boosted: Its trees, for one row; None where they alone do not make the answer.
    """

    release: "Release"
    estimator: Any
    boosted: Boosted | None

    def __call__(self, prepared: Array) -> Array:
        if self.boosted is None or len(prepared) != 1:
            return estimated(self.estimator, self.release.schema, prepared)
        told = self.boosted.answer(prepared[0])
        return told[None] if self.release.schema.labels else told
