"""Exact TreeSHAP of scikit-learn forests in NumPy: all trees at once, level by level."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from models.errors import WorkError

Array = np.ndarray[Any, Any]

GROVE_NODES = 1 << 15  # At once, so that what is computed stays in the processor's cache.


@dataclass(frozen=True)
class _Grove:
    """Some trees of a forest; their nodes level by level, siblings side by side, after one that belongs to no tree.

    "Its edge" is the one that leads to a node from its parent; a root's is always followed and changes nothing.

    Attributes:
        features: Shape (nodes,): feature that its edge tests.
        thresholds: Shape (nodes,): its edge's; at most that goes left.
        left: Shape (nodes,): whether its edge goes left.
        parents: Shape (nodes,): place of the parent.
        previous: Shape (nodes,): place of the nearest node above whose edge tests the same feature, 0 for none.
        shares: Shape (nodes,): of the training weight, what goes this way at its edge and at all those above it that
            test the same feature.
        values: Shape (nodes, k): of leaves; 0 elsewhere.
        levels: Of nodes with an edge, from the top.
        points: Shape (q,): abscissas in (0, 1).
        weights: Shape (q,): their weights.
    """

    features: Array
    thresholds: Array
    left: Array
    parents: Array
    previous: Array
    shares: Array
    values: Array
    levels: tuple[slice, ...]
    points: Array
    weights: Array

    @classmethod
    def of(cls, trees: Sequence[Any], scale: float) -> Self:
        """Lay out trees (`sklearn.tree._tree.Tree`), their values multiplied by `scale`.

        Raises:
            WorkError: No training weight went some way, so that what it leads to is undefined.
        """
        starts = np.cumsum([1, *(tree.node_count for tree in trees)])
        left, right = (children(trees, starts, side) for side in ("children_left", "children_right"))
        found = list(levels(left, right, starts[:-1]))
        order = np.concatenate([[0], *found])
        above = np.zeros(len(left), dtype=np.int64)
        inner = np.flatnonzero(left > 0)
        above[left[inner]] = above[right[inner]] = inner
        place = np.empty(len(left), dtype=np.int64)
        place[order] = np.arange(len(order))
        parents, edge = place[above[order]], above[order] > 0
        features = np.where(edge, joined(trees, "feature", -1)[above[order]], -1)
        previous = _previous(features, parents)
        weight = joined(trees, "weighted_n_node_samples", 1.0)
        if not (weight > 0).all():
            raise WorkError("a branch of the forest has no training weight")
        shares = np.where(edge, weight[order] / weight[above[order]], 1.0)
        ends = np.cumsum([1, *map(len, found)])
        slices = [slice(start, end) for start, end in itertools.pairwise(ends[1:])]
        for level in slices:
            shares[level] *= shares[previous[level]]
        values = np.concatenate([np.zeros((1, trees[0].value.shape[2])), *(tree.value[:, 0, :] for tree in trees)])
        tested = (edge & (previous == 0)).astype(np.int64)
        for level in slices:
            tested[level] += tested[parents[level]]
        # Half as many points as a path tests features integrate its polynomial exactly.
        points, weights = np.polynomial.legendre.leggauss(max(1, (int(tested.max()) + 1) // 2))
        return cls(
            features=np.maximum(features, 0),
            thresholds=np.where(edge, joined(trees, "threshold", np.inf)[above[order]], np.inf),
            left=~edge | (order == left[above[order]]),
            parents=parents,
            previous=previous,
            shares=shares,
            values=np.where(left[order, None] > 0, 0.0, values[order]) * scale,
            levels=tuple(slices),
            points=(points + 1) / 2,
            weights=weights / 2,
        )

    def base(self) -> Array:
        """Shape (k,): mean of the leaves, by training weight."""
        paths = np.ones(len(self.shares))
        for level in self.levels:
            own = self.shares[level] / self.shares[self.previous[level]]
            paths[level] = own * paths[self.parents[level]]
        return paths @ self.values

    def effects(self, row: Array, code: int) -> Array:
        """Shape (nodes,): what each node's edge adds to the effect of its feature."""
        on = ((row[self.features] <= self.thresholds) == self.left).astype(np.float64)
        for level in self.levels:
            on[level] *= on[self.previous[level]]
        factors = np.multiply.outer(self.shares, 1 - self.points) + np.multiply.outer(on, self.points)
        before = factors[self.previous]
        paths, steps = np.ones_like(factors), factors / before
        for level in self.levels:
            paths[level] = steps[level] * paths[self.parents[level]]
        paths *= self.values[:, code, None]
        for level in reversed(self.levels):
            below = paths[level]
            paths[self.parents[level][::2]] += below[::2] + below[1::2]
        gains = on - self.shares
        return gains * ((paths / factors) @ self.weights) - gains[self.previous] * ((paths / before) @ self.weights)


@dataclass(frozen=True)
class ForestShap:
    """Path-dependent SHAP values (Lundberg et al. 2018, "Consistent individualized feature attribution") of a forest.

    A leaf of value v adds to feature i of its path v (o_i - z_i) ∫ Π_j≠i (z_j (1 - t) + o_j t) dt over t from 0 to 1:
    o_j is whether the row goes the path's way wherever it tests j, z_j the share of the training weight that does, and
    the integral is the Shapley mean over orders, t^s (1 - t)^(m - 1 - s) summing to s! (m - 1 - s)! / m!. It is a
    polynomial, so Gauss-Legendre quadrature is exact, and its factors are positive, so that dividing one out is safe;
    sums over the leaves below an edge are shared as in Linear TreeSHAP (Yu et al. 2022).

    Attributes:
        base: Shape (k,): the forest's mean answer over its training rows.
    """

    base: Array
    groves: tuple[_Grove, ...]

    @property
    def size(self) -> int:
        """Cells that are computed for one row: its time is in proportion."""
        return sum(len(grove.shares) * len(grove.points) for grove in self.groves)

    @classmethod
    def of(cls, forest: Any) -> Self:
        """Lay out a fitted RandomForestClassifier or RandomForestRegressor; rows may hold no missing numbers.

        Raises:
            WorkError: A branch has no training weight.
        """
        trees = [estimator.tree_ for estimator in forest.estimators_]
        groves = tuple(_Grove.of(group, 1 / len(trees)) for group in _groups(trees))
        return cls(np.sum([grove.base() for grove in groves], axis=0), groves)

    def effects(self, row: Array, code: int) -> Array:
        """Shape (features,): SHAP values of one row, shape (features,), for one class (0 in a regression)."""
        row = row.astype(np.float32)  # as the trees themselves compare
        return np.sum(
            [np.bincount(grove.features, grove.effects(row, code), minlength=len(row)) for grove in self.groves], axis=0
        )


def _groups(trees: Sequence[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for tree in trees:
        if group and sum(other.node_count for other in group) + tree.node_count > GROVE_NODES:
            yield group
            group = []
        group.append(tree)
    yield group


def joined(trees: Sequence[Any], name: str, first: float) -> Array:
    """Shape (nodes,): an attribute of all nodes of scikit-learn's trees, after one that belongs to no tree."""
    return np.concatenate([[first], *(getattr(tree, name) for tree in trees)])


def children(trees: Sequence[Any], starts: Array, side: str) -> Array:
    """Shape (nodes,): place of each node's child, 0 for none."""
    found = [
        np.where((child := getattr(tree, side)) < 0, 0, child + at) for tree, at in zip(trees, starts, strict=False)
    ]
    return np.concatenate([[0], *found]).astype(np.int64)


def levels(left: Array, right: Array, roots: Array) -> Iterator[Array]:
    """Places of the nodes of each level, from the roots, siblings side by side; a leaf has child 0."""
    level = roots
    while level.size:
        yield level
        inner = level[left[level] > 0]
        level = np.stack([left[inner], right[inner]], axis=1).ravel()


def _previous(features: Array, parents: Array) -> Array:
    """Shape (nodes,): the nearest node above with the same feature, 0 for none."""
    found = parents.copy()
    while (other := (found > 0) & (features[found] != features)).any():
        found[other] = parents[found[other]]
    return found
