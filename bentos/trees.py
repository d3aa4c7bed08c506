"""Trees packed flat: one row walks through all of them at once, level by level."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bentos.treeshap import children, joined, levels

Array = np.ndarray[Any, Any]

_CONSTANT = np.float32(np.inf)
_IDENTITY = ("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror")


@dataclass(frozen=True)
class Trees:
    """All nodes of some trees, level by level, siblings side by side.

    Attributes:
        features: Shape (nodes,): feature that a node tests.
        thresholds: Shape (nodes,), float32: from it upwards a row goes right; infinite in a leaf.
        left: Shape (nodes,): place of the left child, the right one is the next; a leaf's own place.
        values: Shape (nodes, k) or (nodes,): of leaves.
        roots: Shape (trees,): places of the roots.
        depth: Edges of the longest path.
    """

    features: Array
    thresholds: Array
    left: Array
    values: Array
    roots: Array
    depth: int

    @classmethod
    def of(cls, left: Array, right: Array, features: Array, thresholds: Array, values: Array, roots: Array) -> Self:
        """Lay out nodes of which the first belongs to no tree and a leaf has child 0."""
        found = list(levels(left, right, roots))
        order = np.concatenate(found)
        place = np.zeros(len(left), dtype=np.int64)
        place[order] = np.arange(len(order))
        leaf = left[order] == 0
        return cls(
            features=np.where(leaf, 0, features[order]).astype(np.intp),
            thresholds=np.where(leaf, _CONSTANT, thresholds[order]).astype(np.float32),
            left=np.where(leaf, np.arange(len(order)), place[left[order]]).astype(np.intp),
            values=values[order],
            roots=place[roots],
            depth=len(found) - 1,
        )

    @classmethod
    def of_forest(cls, trees: Sequence[Any]) -> Self:
        """Lay out scikit-learn's trees (`sklearn.tree._tree.Tree`)."""
        starts = np.cumsum([1, *(tree.node_count for tree in trees)])
        left, right = (children(trees, starts, side) for side in ("children_left", "children_right"))
        # A float32 is above a float64 threshold exactly if it reaches the next float32 above that.
        thresholds = joined(trees, "threshold", 0.0)
        near = thresholds.astype(np.float32)
        above = np.where(near > thresholds, near, np.nextafter(near, _CONSTANT))
        values = np.concatenate([np.zeros((1, trees[0].value.shape[2])), *(tree.value[:, 0, :] for tree in trees)])
        return cls.of(left, right, joined(trees, "feature", 0), above, values, starts[:-1])

    def leaves(self, row: Array) -> Array:
        """Shape (trees,): places of the leaves that a row, shape (features,), float32, none missing, comes to."""
        at = self.roots
        for _ in range(self.depth):
            at = self.left[at] + (row[self.features[at]] >= self.thresholds[at])
        return at


@dataclass(frozen=True)
class Boosted:
    """The trees of an XGBoost model and what their leaves add up to.

    Attributes:
        trees: Its trees; values of shape (nodes,), float32.
        classes: Shape (trees,): class that a tree speaks for.
        base: Shape (k,), float32: margin before any tree; k is 1 for two classes and for a regression.
        objective: XGBoost's name of what was learnt.
    """

    trees: Trees
    classes: Array
    base: Array
    objective: str

    @classmethod
    def of(cls, booster: Any) -> Self | None:
        """Lay out a booster; None where its answer is not simply the sum of numeric trees."""
        learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        objective, model = learner["objective"]["name"], learner["gradient_booster"].get("model", {})
        known = objective in ("binary:logistic", "multi:softprob", *_IDENTITY)
        if learner["gradient_booster"]["name"] != "gbtree" or not known or not model["trees"]:
            return None
        rounds = int(learner["attributes"].get("best_iteration", len(model["iteration_indptr"]) - 2)) + 1
        trees = model["trees"][: model["iteration_indptr"][rounds]]
        if any(any(tree["split_type"]) or int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in trees):
            return None
        classes = np.array(model["tree_info"][: len(trees)])
        base = np.atleast_1d(json.loads(learner["learner_model_param"]["base_score"])).astype(np.float32)
        if objective == "binary:logistic":
            base = -np.log(1 / base - 1)
        return cls(_nodes(trees), classes, np.resize(base, classes.max() + 1).astype(np.float32), objective)

    def answer(self, row: Array) -> Array:
        """Shape (k,) probabilities or (1,) numbers for one row, shape (features,), none missing.

        Sums are made as XGBoost makes them: in float32, tree by tree.
        """
        told = self.trees.values[self.trees.leaves(row.astype(np.float32))]
        if len(self.base) == 1:
            margin = np.cumsum(np.append(self.base, told))[-1:]
            if self.objective in _IDENTITY:
                return np.asarray(margin, dtype=np.float64)
            share = 1 / (1 + np.exp(-margin))
            return np.append(1 - share, share).astype(np.float64)
        of_each = (np.append(base, told[self.classes == code]) for code, base in enumerate(self.base))
        margins = np.array([np.cumsum(terms)[-1] for terms in of_each])
        grown = np.exp(margins - margins.max())
        return np.asarray(grown / grown.sum(), dtype=np.float64)


def _nodes(trees: Sequence[Any]) -> Trees:
    counts = [len(tree["left_children"]) for tree in trees]
    starts = np.cumsum([1, *counts])
    at = np.repeat(starts[:-1], counts)

    def all_of(key: str) -> Array:
        return np.concatenate([tree[key] for tree in trees])

    def child(key: str) -> Array:
        found = all_of(key)
        return np.append(0, np.where(found < 0, 0, found + at))

    conditions = np.append(0, all_of("split_conditions")).astype(np.float32)
    features = np.append(0, all_of("split_indices"))
    return Trees.of(child("left_children"), child("right_children"), features, conditions, conditions, starts[:-1])
