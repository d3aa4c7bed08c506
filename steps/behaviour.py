"""Behavioural checks: what a change of a row may do to a fitted model's answer (Ribeiro et al. 2020, "CheckList")."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.frame import to_frame
from bentos.release import Release
from models.config import Column, ModelConfig
from models.errors import ConfigError, DataError, bounded, guess
from models.judgement import Behaviour

Array = np.ndarray[Any, Any]

SAMPLE_ROWS = 2_000
REASON_LIMIT = 400


class Behaved(BaseModel):
    """What came of one behavioural check.

    Attributes:
        name: Name of the check.
        kind: Its kind.
        rows: Test rows that it could be tried on; for `minimum` the rows of the YAML.
        share: Share of them that behaved; None where there was none to try.
        failures: How many did not.
        worst: The largest move of an answer on its wrong side, in probability or in units of the target; None for
            `minimum`.
        min_share: Share that is asked.
        blocking: Whether failing it stops a promotion.
        passed: Whether the share was reached.
        reason: The same in words, without a value of any row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["invariance", "direction", "minimum"]
    rows: int
    share: float | None
    failures: int
    worst: float | None = None
    min_share: float
    blocking: bool
    passed: bool
    reason: str


def check_behaviour(release: Release, test: pd.DataFrame) -> tuple[Behaved, ...]:
    """Run the behavioural checks of a Release's YAML.

    Args:
        release: The Release.
        test: Typed test rows; at most 2,000 of them are tried, seeded.
    """
    checks = release.config.evaluation.behaviour
    if not checks:
        return ()
    chosen = np.random.default_rng(release.config.seed).permutation(len(test))[:SAMPLE_ROWS]
    rows = test.iloc[np.sort(chosen)].reset_index(drop=True)
    return tuple(_checked(release, check, rows) for check in checks)


def require_behaviour(config: ModelConfig) -> None:
    """Refuse a behavioural check that cannot be run, before anything is trained.

    Raises:
        ConfigError: A column is no input of the model or not of a type that can be changed so, a value is not of its
            column's type, or the expectation is none that the task has.
    """
    for check in config.evaluation.behaviour:
        if said := _wrong(config, check):
            raise ConfigError(f"evaluation.behaviour.{check.name}: {said}")


def _checked(release: Release, check: Behaviour, rows: pd.DataFrame) -> Behaved:
    try:
        return _minimum(release, check) if check.kind == "minimum" else _moved(release, check, rows)
    except DataError as error:
        return _result(check, 0, 0, f"the model cannot answer: {error}")


def _moved(release: Release, check: Behaviour, rows: pd.DataFrame) -> Behaved:
    """Invariance and direction: how far the answers move when the column is changed, each change by itself."""
    assert check.column is not None
    labels = release.schema.labels
    if check.label is not None and check.label not in labels:
        return _result(check, 0, 0, f"the model knows no class '{check.label}'{guess(check.label, labels)}")
    changes = _changes(check, release.schema.inputs[check.column], rows[check.column])
    touched = np.logical_or.reduce([can for _, can in changes])
    tried = rows.iloc[np.flatnonzero(touched)]
    if tried.empty:
        return _result(check, 0, 0, f"none of {len(rows)} test rows has a '{check.column}' that can be changed so")
    before = _said(release, check, tried)
    wrong = np.zeros(len(tried))
    for values, can in changes:
        after = _said(release, check, tried.assign(**{check.column: values[touched]}))
        wrong = np.maximum(wrong, np.where(can[touched], _wrong_way(check, after - before), 0.0))
    return _result(check, len(tried), int(np.sum(wrong > check.tolerance)), worst=float(wrong.max()))


def _wrong_way(check: Behaviour, moved: Array) -> Array:
    """How far each answer moved where it must not: 0 or less where it behaved."""
    if check.kind == "invariance":
        return np.abs(moved)
    return -moved if check.expect == "rises" else moved


def _said(release: Release, check: Behaviour, rows: pd.DataFrame) -> Array:
    """The number that a check looks at: the probability of its class, or the answer of a regression."""
    answers = release.answer(rows)
    if answers.probabilities is None:
        return answers.values
    place = -1 if check.label is None else release.schema.labels.index(check.label)
    return answers.probabilities[:, place]


def _changes(check: Behaviour, column: Column, values: "pd.Series[Any]") -> list[tuple[Array, Array]]:
    """For each change of the column its values then, and which rows it touches.

    A missing number cannot be shifted, and none is shifted out of its column's range.
    """
    old = values.to_numpy()
    if check.values:
        given = _typed(column, check.values)
        return [(np.full(len(old), value, dtype=old.dtype), values.ne(value).to_numpy()) for value in given]
    if check.shift is not None:
        new = old + check.shift
        low, high = column.range or (-np.inf, np.inf)
        can = (new >= low) & (new <= high)
        return [(np.where(can, new, old), can)]
    assert check.replace is not None
    new = values.str.replace(*check.replace, regex=True).to_numpy(dtype=object)
    can = values.notna().to_numpy() & (new != old)
    return [(np.where(can, new, old), can)]


def _minimum(release: Release, check: Behaviour) -> Behaved:
    told = release.answer(to_frame(_raw_rows(check, release.schema.inputs), release.schema.inputs).frame).told
    if isinstance(check.expect, str):
        right = np.asarray(told == check.expect, dtype=bool)
    else:
        assert check.expect is not None
        right = (told >= check.expect[0]) & (told <= check.expect[1])
    return _result(check, len(right), int(np.sum(~right)))


def _result(check: Behaviour, rows: int, failures: int, why: str = "", worst: float | None = None) -> Behaved:
    share = (rows - failures) / rows if rows else None
    said = why or f"{rows - failures:,} of {rows:,} rows behave, at least {check.min_share:.1%} is asked"
    if failures and worst is not None:
        said += f"; the worst answer is off by {worst:.3g}"
    return Behaved(
        name=check.name,
        kind=check.kind,
        rows=rows,
        share=share,
        failures=failures,
        worst=worst,
        min_share=check.min_share,
        blocking=check.blocking,
        passed=share is not None and share >= check.min_share,
        reason=bounded(said, REASON_LIMIT),
    )


def _raw_rows(check: Behaviour, names: Iterable[str]) -> pd.DataFrame:
    """The rows of the YAML; an input that a row leaves out is missing."""
    return pd.DataFrame([{name: row.get(name) for name in names} for row in check.rows], dtype=object)


def _typed(column: Column, values: Sequence[Any]) -> Array:
    raw = pd.DataFrame({"value": pd.Series(values, dtype=object)})
    return to_frame(raw, {"value": column}).frame["value"].to_numpy()


def _wrong(config: ModelConfig, check: Behaviour) -> str:
    """Why a check cannot be run, in words; empty when it can."""
    if check.kind == "minimum":
        return _wrong_rows(config, check) or _wrong_expectation(config, check)
    assert check.column is not None
    inputs = config.input_names()
    if check.column not in inputs:
        return f"column '{check.column}' is no input of the model, so no answer can move{guess(check.column, inputs)}"
    if check.label is not None and config.task == "regression":
        return f"label '{check.label}': a regression has no classes; leave it out"
    return _wrong_change(check, config.columns[check.column])


def _wrong_change(check: Behaviour, column: Column) -> str:
    if check.replace is not None:
        return "" if column.type == "text" else f"replace: '{check.column}' is a {column.type}, no text"
    if check.shift is not None:
        if column.type not in ("number", "integer"):
            return f"shift: '{check.column}' is a {column.type}, no number"
        whole = column.type == "number" or check.shift.is_integer()
        return "" if whole else f"shift: '{check.column}' holds whole numbers, {check.shift:g} is none"
    raw = pd.DataFrame({check.column: pd.Series(check.values, dtype=object)})
    return _untyped("values", raw, {str(check.column): column})


def _wrong_rows(config: ModelConfig, check: Behaviour) -> str:
    inputs = config.input_names()
    if empty := [place for place, row in enumerate(check.rows) if not set(row) & set(inputs)]:
        return f"rows.{empty[0]}: it gives no input of the model (there is: {', '.join(inputs)})"
    return _untyped("rows", _raw_rows(check, inputs), {name: config.columns[name] for name in inputs})


def _untyped(key: str, raw: pd.DataFrame, columns: Mapping[str, Column]) -> str:
    for problem in to_frame(raw, columns).problems:
        kind = columns[problem.column].type
        return f"{key}.{problem.first}: '{problem.column}' is a {kind}, and this is {problem.reason}"
    return ""


def _wrong_expectation(config: ModelConfig, check: Behaviour) -> str:
    if config.task == "regression":
        numbers = not isinstance(check.expect, str) and check.expect is not None and check.expect[0] <= check.expect[1]
        return "" if numbers else "expect: a regression answers with a number; give the smallest and the largest"
    labels = config.target.labels
    if not isinstance(check.expect, str):
        return "expect: give a class"
    unknown = labels and check.expect not in labels
    return f"expect: the target has no class '{check.expect}'{guess(check.expect, labels)}" if unknown else ""
