"""Derived columns and the selection of features, as part of the fitted pipeline."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bentos.features import DerivedColumns, bin_labels, derive, derived_columns, expressions, feature_kinds
from models.config import ModelConfig, load_model

NAN = float("nan")


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "a": [1.0, 2.0, NAN, 4.0],
            "b": [2.0, 0.0, 1.0, -1.0],
            "d": pd.to_datetime(["2024-12-31T23:00", None, "2024-01-01", "2023-05-06"], format="ISO8601"),
            "e": pd.to_datetime(["2024-12-30T23:00", "2024-01-01", "2024-01-01", "2023-05-04T12:00"], format="ISO8601"),
        },
        index=[7, 5, 3, 1],
    )


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ({"ratio": ["a", "b"]}, [0.5, NAN, NAN, -4.0]),
        ({"difference": ["a", "b"]}, [-1.0, 2.0, NAN, 5.0]),
        ({"difference": ["d", "e"]}, [1.0, NAN, 0.0, 1.5]),
        ({"log": "b"}, [np.log(3), 0.0, np.log(2), NAN]),
        ({"date": "d", "part": "year"}, [2024, NAN, 2024, 2023]),
        ({"date": "d", "part": "quarter"}, [4, NAN, 1, 2]),
        ({"date": "d", "part": "month"}, [12, NAN, 1, 5]),
        ({"date": "d", "part": "weekday"}, [1, NAN, 0, 5]),
        ({"date": "d", "part": "hour"}, [23, NAN, 0, 0]),
    ],
)
def test_each_expression_gives_numbers_and_keeps_missing(
    frame: pd.DataFrame, expression: dict[str, Any], wanted: list[float]
) -> None:
    got = derive(frame, {"x": expression})
    assert str(got["x"].dtype) == "float64" and list(got.index) == [7, 5, 3, 1]
    np.testing.assert_array_equal(got["x"].to_numpy(), np.array(wanted, dtype=float))


def test_a_value_on_an_edge_falls_above_it(frame: pd.DataFrame) -> None:
    got = derive(
        frame, {"x": {"bin": "a", "edges": [2.0, 4.0]}, "y": {"bin": "a", "edges": [3.0], "labels": ["lo", "hi"]}}
    )
    assert got["x"].fillna("-").tolist() == ["below 2", "2 to below 4", "-", "4 or more"]
    assert got["y"].fillna("-").tolist() == ["lo", "lo", "-", "hi"]
    assert bin_labels([1.5]) == ["below 1.5", "1.5 or more"]


def test_columns_come_out_in_order_and_nothing_is_mutated(frame: pd.DataFrame) -> None:
    before = frame.copy(deep=True)
    columns = DerivedColumns(["a", "b"], {"r": {"ratio": ["a", "b"]}, "unused": {"log": "missing"}}, ["b", "r"])
    out = columns.fit(frame).transform(frame)
    assert list(out.columns) == list(columns.get_feature_names_out()) == ["b", "r"]
    pd.testing.assert_frame_equal(frame, before)


def test_it_survives_clone_skops_and_a_pipeline(frame: pd.DataFrame) -> None:
    columns = DerivedColumns(["a", "b"], {"r": {"difference": ["b", "b"]}}, ["b", "r"])
    copied = clone(columns)
    assert copied.get_params() == columns.get_params() and copied is not columns
    stored = skops.io.dumps(columns.fit(frame))
    assert skops.io.get_untrusted_types(data=stored) == ["bentos.features.DerivedColumns"]
    loaded = skops.io.loads(stored, trusted=["bentos.features.DerivedColumns"])
    pd.testing.assert_frame_equal(loaded.transform(frame), columns.transform(frame))
    fitted = make_pipeline(columns, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    assert fitted.predict(frame).shape == (4,)


@pytest.mark.parametrize("name", ["wine", "heart_disease"])
def test_every_shipped_yaml_has_its_transformer(name: str) -> None:
    config = load_model(name).config
    columns = derived_columns(config)
    assert columns.features == config.feature_names() == list(feature_kinds(config))
    assert set(columns.inputs) <= set(config.columns)


def test_expressions_are_plain_data_with_set_keys_only() -> None:
    config = load_model("heart_disease").config
    assert expressions(config)["rate_by_age"] == {"ratio": ["thalach", "age"]}
    assert set(expressions(config)["age_group"]) == {"bin", "edges", "labels"}
    kinds = feature_kinds(config)
    assert kinds["rate_by_age"] == "number" and kinds["cp"] == "category" and "age_group" not in kinds


@pytest.mark.parametrize(
    ("derived", "said"),
    [({"ratio": ["t", "n"]}, "needs number columns"), ({"date": "n", "part": "day"}, "needs datetime columns"),
     ({"difference": ["n", "d"]}, "needs number or datetime columns")],
)  # fmt: skip
def test_an_expression_on_the_wrong_type_is_refused_in_the_yaml(derived: dict[str, Any], said: str) -> None:
    columns = {"n": {"type": "number"}, "t": {"type": "category"}, "d": {"type": "datetime"}}
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate(
            {"name": "m", "sources": [{"name": "s", "kind": "sklearn", "dataset": "wine"}], "target": {"column": "y"},
             "columns": columns, "derived": {"x": derived}}, strict=False,
        )  # fmt: skip
