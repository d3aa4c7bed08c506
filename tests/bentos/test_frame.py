"""Typed frames: the same from CSV text, Parquet values and JSON values."""

import datetime as dt
import decimal
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.frame import canonical_text, categories, pseudonym, to_frame
from models.config import Column

COLUMNS = {
    "amount": Column(type="number", missing_values=(0, "none")),
    "count": Column(type="integer"),
    "code": Column(type="category", categories=(0, 1, 2)),
    "colour": Column(type="category", categories=("red", "blue")),
    "member": Column(type="boolean"),
    "on": Column(type="category", categories=(True, False)),
    "when": Column(type="datetime"),
    "note": Column(type="text"),
    "patient": Column(type="integer", personal=True),
}
JSON_ROWS = [
    {
        "amount": 0.1, "count": 3, "code": 1, "colour": "red", "member": True, "on": False,
        "when": "2024-02-29T12:30:00", "note": "a b", "patient": 12345678901234567,
    },
    {
        "amount": 0, "count": 2.0, "code": 2.0, "colour": "blue", "member": False, "on": True,
        "when": "2024-03-01", "note": "ü", "patient": 17,
    },
    dict.fromkeys(COLUMNS),
    {
        "amount": 5e-324, "count": -1, "code": 0, "colour": "green", "member": 1, "on": True,
        "when": "2024-03-01T01:00:00+02:00", "note": "x", "patient": 3,
    },
]  # fmt: skip


def _one(kind: str, values: list[Any], **keys: Any) -> tuple[list[Any], Any]:
    typed = to_frame(pd.DataFrame({"x": pd.Series(values, dtype=object)}), {"x": Column(type=kind, **keys)})  # type: ignore[arg-type]
    assert len(typed.problems) <= 1
    return typed.frame["x"].tolist(), typed.problems[0] if typed.problems else None


def _from_json() -> pd.DataFrame:
    return to_frame(pd.DataFrame(JSON_ROWS, dtype=object), COLUMNS).frame


def test_dtypes_and_missing_are_those_of_the_contract() -> None:
    frame = _from_json()
    assert list(frame.columns) == list(COLUMNS)
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    numbers = dict.fromkeys(("amount", "count", "member"), "float64")
    texts = dict.fromkeys(("code", "colour", "on", "note", "patient"), "object")
    assert kinds == {**numbers, **texts, "when": "datetime64[ns]"}
    assert frame["code"].tolist()[:2] == ["1", "2"]
    assert frame["on"].tolist()[:2] == ["false", "true"]
    assert math.isnan(frame["amount"][1]), "0 is declared to mean missing"
    assert frame.iloc[2].isna().all()
    assert all(cell is not None for cell in frame["note"]), "missing text is NaN, never None"
    assert frame["when"][3] == pd.Timestamp("2024-02-29 23:00:00")


def test_csv_parquet_and_json_give_exactly_the_same_frame() -> None:
    wanted = _from_json()
    texts = [{k: v if v is None or isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in JSON_ROWS]
    pd.testing.assert_frame_equal(to_frame(pd.DataFrame(texts, dtype=object), COLUMNS).frame, wanted, check_exact=True)
    stored = io.BytesIO()
    native = pd.DataFrame(
        {
            "amount": [0.1, 0.0, None, 5e-324],
            "count": pd.array([3, 2, None, -1], dtype="Int64"),
            "code": [1.0, 2.0, None, 0.0],
            "colour": pd.Categorical(["red", "blue", None, "green"]),
            "member": pd.array([True, False, None, True], dtype="boolean"),
            "on": pd.array([False, True, None, True], dtype="boolean"),
            "when": pd.to_datetime(
                pd.Series(["2024-02-29T12:30:00Z", "2024-03-01T00:00Z", None, "2024-03-01T01:00:00+02:00"]),
                utc=True,
                format="ISO8601",
            ),
            "note": ["a b", "ü", None, "x"],
            "patient": pd.array([12345678901234567, 17, None, 3], dtype="Int64"),
        }
    )
    native.to_parquet(stored)
    pd.testing.assert_frame_equal(to_frame(pd.read_parquet(stored), COLUMNS).frame, wanted, check_exact=True)


def test_a_typed_frame_comes_back_as_it_is_and_the_input_is_not_touched() -> None:
    raw = pd.DataFrame(JSON_ROWS, dtype=object)
    before = raw.copy(deep=True)
    frame = to_frame(raw, COLUMNS).frame
    pd.testing.assert_frame_equal(raw, before)
    again = to_frame(frame, COLUMNS)
    assert again.problems == ()
    pd.testing.assert_frame_equal(again.frame, frame, check_exact=True)


def test_numbers_are_read_exactly() -> None:
    """pandas' own parsers are off by one in the last place for some of these."""
    texts = ["0.3066101993807095", "8.988465674311579e+307", "1e23", "9007199254740993", " 7 ", "-0.0"]
    values, problem = _one("number", texts)
    assert problem is None
    assert values == [float(text) for text in texts]
    assert math.copysign(1, values[-1]) == 1, "minus zero becomes zero, so that equal rows have equal bits"


@pytest.mark.parametrize(
    "bad", ["x", "1,5", "1_000", "inf", "nan", "0x1", True, [1], {"a": 1}, 10**400, b"1", math.inf]
)
def test_what_is_no_number_is_a_problem_and_missing(bad: Any) -> None:
    values, problem = _one("number", [1, bad, 2.5])
    reason = "infinite" if str(bad) == "inf" else "no number"
    assert (problem.count, problem.first, problem.reason) == (1, 1, reason)
    assert values[0] == 1 and math.isnan(values[1]) and values[2] == 2.5


def test_whole_numbers_and_booleans_are_told_from_others() -> None:
    values, problem = _one("integer", ["1", "2.0", "2.5"])
    assert values[:2] == [1, 2] and problem.reason == "no whole number"
    values, problem = _one("boolean", ["yes", "No", "TRUE", "f", 1, 0.0, "1.0", "2", "maybe"])
    assert values[:7] == [1, 0, 1, 0, 1, 0, 1] and problem.count == 2


@pytest.mark.parametrize("bad", ["now", "12", "2021-13-01", "03/04/2021", 20210101, "9999-12-31"])
def test_what_is_no_date_is_a_problem(bad: Any) -> None:
    values, problem = _one("datetime", ["2021-01-01", bad])
    assert values[0] == pd.Timestamp("2021-01-01") and values[1] is pd.NaT and problem.count == 1


def test_dates_in_a_declared_form_and_as_objects() -> None:
    values, problem = _one(
        "datetime", ["03/04/2021", dt.date(2021, 4, 3), np.datetime64("2021-04-03")], format="%d/%m/%Y"
    )
    assert problem is None and values == [pd.Timestamp("2021-04-03")] * 3


def test_dates_beyond_nanoseconds_are_a_problem_not_a_crash() -> None:
    raw = pd.DataFrame({"x": np.array(["9999-12-31", "2020-01-01"], dtype="datetime64[s]")})
    typed = to_frame(raw, {"x": Column(type="datetime")})
    assert typed.problems[0].count == 1 and typed.frame["x"][1] == pd.Timestamp("2020-01-01")


def test_blank_text_is_missing_and_an_absent_column_is_a_problem() -> None:
    assert math.isnan(_one("text", ["  "])[0][0]) and math.isnan(_one("number", [""])[0][0])
    typed = to_frame(pd.DataFrame({"a": [1]}), {"a": Column(type="number"), "b": Column(type="text")})
    assert typed.problems[0].reason == "the column is absent" and typed.frame["b"].isna().all()


def test_no_rows_keep_their_dtypes() -> None:
    frame = to_frame(pd.DataFrame(index=range(0)), COLUMNS).frame
    assert [str(dtype) for dtype in frame.dtypes] == [str(dtype) for dtype in _from_json().dtypes]


def test_categories_print_alike_from_every_kind_of_value() -> None:
    assert [canonical_text(v) for v in (1, 1.0, np.int8(1), decimal.Decimal(1), True, 0.5)] == ["1"] * 4 + [
        "true",
        "0.5",
    ]
    assert categories(COLUMNS["code"]) == ("0", "1", "2")
    assert categories(COLUMNS["on"]) == ("true", "false")
    assert _one("category", ["1.0", 1, True], categories=(0, 1))[0] == ["1", "1", "true"]
    assert _one("category", ["1.0", " a "])[0] == ["1.0", "a"]


def test_a_pseudonym_is_no_number_and_depends_on_the_key() -> None:
    assert pseudonym("17", b"k") != pseudonym("17", b"l") != "17"
    assert to_frame(pd.DataFrame({"x": [pseudonym("17", b"k")]}), {"x": Column(type="number")}).problems
