"""Semantic versions: what raises which number."""

from pathlib import Path
from typing import Any

import pytest

from bentos.schema import schema_of
from stacks import registry, runs
from stacks.registry import SEMVER_TAG
from steps.label import FEATURES_TAG, SCHEMA_TAG, Shape, label_of, next_label, shape_of
from steps.register import register_release
from steps.retire import retire
from tests.bentos.samples import config_of, frame_of, write

PLAIN = Shape("s", "f")


def _tags(label: str, shape: Shape = PLAIN) -> dict[str, str]:
    return {SEMVER_TAG: label, SCHEMA_TAG: shape.schema, FEATURES_TAG: shape.features}


@pytest.mark.parametrize(
    ("shape", "earlier", "label"),
    [
        (PLAIN, [], "1.0.0"),
        (PLAIN, [{}, {"other": "tag"}], "1.0.0"),
        (PLAIN, [_tags("1.0.0")], "1.0.1"),
        (Shape("s", "g"), [_tags("1.0.9")], "1.1.0"),
        (Shape("t", "f"), [_tags("1.4.2")], "2.0.0"),
        (Shape("t", "g"), [_tags("1.4.2")], "2.0.0"),
        (PLAIN, [_tags("1.0.0"), {}], "1.0.1"),
        (PLAIN, [_tags("1.0.0"), _tags("2.0.0", Shape("t", "f"))], "3.0.0"),
        (PLAIN, [_tags("9.10.9"), _tags("9.10.10")], "9.10.11"),
    ],
)
def test_the_label_after_those_there_are(shape: Shape, earlier: list[dict[str, str]], label: str) -> None:
    assert next_label(shape, earlier) == label


def test_labels_rise_and_none_is_given_twice() -> None:
    shapes = [Shape(s, f) for s in "abab" for f in "xyxx"]
    given: list[dict[str, str]] = []
    for shape in shapes:
        given.append(_tags(next_label(shape, given), shape))
    numbers = [tuple(map(int, tags[SEMVER_TAG].split("."))) for tags in given]
    assert numbers == sorted(set(numbers))


def _shape(**changes: Any) -> Shape:
    """Shape of the invented houses with some top-level keys of their configuration changed."""
    config = config_of("houses").model_copy(update=changes)
    return shape_of(schema_of(config, frame_of("houses")), config, "linear_regression")


def _columns(name: str, **changes: Any) -> dict[str, Any]:
    columns = dict(config_of("houses").columns)
    columns[name] = columns[name].model_copy(update=changes)
    return columns


@pytest.mark.parametrize(
    "change", [{"range": (10, 900)}, {"type": "integer"}, {"on_range": "reject"}, {"missing": 0.1}]
)
def test_what_callers_depend_on_is_the_schema(change: dict[str, Any]) -> None:
    changed = _shape(columns=_columns("size m²", **change))
    assert changed.schema != _shape().schema
    assert changed.features == _shape().features


def test_a_column_less_is_another_schema() -> None:
    columns = _columns("heated", feature=False)
    assert _shape(columns=columns).schema != _shape().schema


@pytest.mark.parametrize("change", [{"description": "living space"}, {"sensitive": True}, {"missing_values": ("?",)}])
def test_what_callers_do_not_see_is_not(change: dict[str, Any]) -> None:
    assert _shape(columns=_columns("size m²", **change)) == _shape()


def test_features_and_family_are_the_second_number_and_the_rest_the_third() -> None:
    config, frame = config_of("houses"), frame_of("houses")
    plain = _shape()
    derived = _shape(derived={name: made for name, made in config.derived.items() if name != "space"})
    assert (derived.schema, derived.features != plain.features) == (plain.schema, True)
    forest = shape_of(schema_of(config, frame), config, "random_forest")
    assert (forest.schema, forest.features != plain.features) == (plain.schema, True)
    assert _shape(seed=7, tuning=config.tuning.model_copy(update={"trials": 3})) == plain


def test_labels_of_registered_versions_and_the_number_after_a_retirement(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    config = config_of("houses").model_copy(update={"name": "labelled"})
    first = write(tmp_path / "first", "houses", "linear_regression", config=config).directory
    again = write(tmp_path / "again", "houses", "linear_regression", config=config, trials=8).directory
    other = write(tmp_path / "other", "houses", "random_forest", config=config).directory
    run = runs.start_run("labelled")
    numbers = [register_release(release, run) for release in (first, first, again, other)]
    assert numbers == [1, 1, 2, 3]
    assert [label_of("labelled", number) for number in (1, 2, 3)] == ["1.0.0", "1.0.1", "1.1.0"]
    assert retire("labelled", 1).payload == {"from": "experimentation", "semver": "1.0.0"}
    assert register_release(first, run) == 4, "what is retired has no files: the same Release needs another number"
    assert label_of("labelled", 4) == "1.2.0"
    assert registry.version("labelled", 1).digest == registry.version("labelled", 4).digest
    assert set(registry.stored("labelled", 1)) == {"archive"}
