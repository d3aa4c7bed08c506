"""Labelling: a Release's semantic version says how it differs from the version before it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bentos.release import Release
from bentos.schema import Schema
from models.config import ModelConfig
from stacks import registry
from stacks.registry import SEMVER_TAG

SCHEMA_TAG = "gauntlet.schema"
FEATURES_TAG = "gauntlet.features"
# What a caller has to know of an input: which values it takes, and whether it may be missing.
_OF_AN_INPUT = ("type", "format", "range", "categories", "on_range", "on_unseen")


@dataclass(frozen=True)
class Shape:
    """What a label looks at, as SHA-256 in hex.

    Attributes:
        schema: Of inputs, target and labels: what callers depend on.
        features: Of what the inputs are made into, and of the family of the estimator.
    """

    schema: str
    features: str


def shape_of(schema: Schema, config: ModelConfig, family: str) -> Shape:
    """The shape of a Release with this schema, configuration and family of estimator."""
    inputs = {
        name: {key: column.model_dump(mode="json")[key] for key in _OF_AN_INPUT} | {"optional": column.missing > 0}
        for name, column in schema.inputs.items()
    }
    shaping = config.shaping()
    texts = shaping["text"] if any(column.type == "text" for column in schema.inputs.values()) else None
    made = {"derived": shaping["derived"], "text": texts, "family": family}
    asked = {"task": schema.task, "target": schema.target, "labels": schema.labels, "inputs": inputs}
    return Shape(_sum(asked), _sum(made))


def next_label(shape: Shape, earlier: Sequence[Mapping[str, str]]) -> str:
    """The label of a new version: no earlier one of its model has it.

    Against the latest earlier version, another schema raises the first number, other features or another family the
    second, everything else (a retraining) the third. The first label is 1.0.0.

    Args:
        shape: Of the new version.
        earlier: Tags of the versions before it, the oldest first. Those without a label count for nothing.
    """
    labelled = [tags for tags in earlier if SEMVER_TAG in tags]
    if not labelled:
        return "1.0.0"
    major, minor, patch = max(_numbers(tags[SEMVER_TAG]) for tags in labelled)
    if labelled[-1].get(SCHEMA_TAG) != shape.schema:
        return f"{major + 1}.0.0"
    if labelled[-1].get(FEATURES_TAG) != shape.features:
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"


def label_tags(release: Release, earlier: Sequence[registry.Version]) -> dict[str, str]:
    """The tags that give a Release its label, after the versions that there are."""
    shape = shape_of(release.schema, release.config, release.family)
    label = next_label(shape, [version.tags for version in earlier])
    return {SEMVER_TAG: label, SCHEMA_TAG: shape.schema, FEATURES_TAG: shape.features}


def label_of(model: str, version: int) -> str | None:
    """A version's label; None for one that was registered without.

    Raises:
        WorkError: There is no such version.
    """
    return registry.version(model, version).tags.get(SEMVER_TAG)


def _numbers(label: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in label.split("."))
    return major, minor, patch


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
