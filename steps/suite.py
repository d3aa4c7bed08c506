"""The Great Expectations suite that a model's YAML describes."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from bentos.frame import categories
from models.config import ModelConfig
from models.errors import WorkError
from steps.quality import Check, Severity, severity_of

REPEATED = "__repeated"
CROSSING = "__crossing"
FENCE = 3.0


@dataclass(frozen=True)
class Wanted:
    """One expectation: the class of Great Expectations and its arguments, and how the report words it."""

    kind: str
    column: str | None
    expected: str
    expectation: str
    arguments: Mapping[str, Any]


Quartiles = tuple[float, float]


def wanted(
    config: ModelConfig, frame: pd.DataFrame, known: Mapping[str, Quartiles | None] | None = None
) -> list[Wanted]:
    """All expectations of a YAML on a typed frame; those on single columns skip columns that are not there.

    Args:
        config: The model.
        frame: Typed rows.
        known: The `quartiles` of its numbers; those of `frame` itself when left out.
    """
    target = config.target.column
    needed = [*config.columns, target]
    few = config.validation.min_rows
    suite = [
        Wanted("rows", None, f"at least {few}", "ExpectTableRowCountToBeBetween", {"min_value": few}),
        Wanted(
            "schema",
            None,
            f"the {len(needed)} declared columns",
            "ExpectTableColumnsToMatchSet",
            {"column_set": needed, "exact_match": False},
        ),
        _share("duplicates", REPEATED, config.validation.max_duplicates, "rows that repeat an earlier one"),
        _crossing(config),
    ]
    for name in (name for name in config.columns if name in frame.columns):
        suite += _on_column(config, name, frame[name])
        if has_outliers(config, name) and frame[name].dtype.kind == "f":
            suite += _outliers(config, name, quartiles(frame[name]) if known is None else known[name])
    if target in frame.columns:
        suite.append(_type(target, "number" if config.task == "regression" else "category"))
        kind = "classes" if config.task == "classification" else "constant"
        suite.append(_distinct(kind, target))
    return suite


def run_suite(config: ModelConfig, suite: list[Wanted], view: pd.DataFrame) -> list[Check]:
    """Let Great Expectations judge `view`; only counts come back.

    Args:
        config: Says how much each failure matters, and which checks are off.
        suite: From `wanted`.
        view: From `as_view`, with the flags REPEATED and CROSSING (0 or 1) of each row.

    Raises:
        WorkError: Great Expectations itself failed on an expectation.
    """
    graded = graded_by(config, suite)
    found = outcomes(config, [want for want, _ in graded], view)
    return [judged(want, severity, result, len(view)) for (want, severity), result in zip(graded, found, strict=True)]


def graded_by(config: ModelConfig, suite: Sequence[Wanted]) -> list[tuple[Wanted, Severity]]:
    """The expectations that are not switched off, and how much each failure matters."""
    return [(w, s) for w in suite if (s := severity_of(config, w.kind, _named(w.column))) is not None]


def outcomes(config: ModelConfig, suite: Sequence[Wanted], view: pd.DataFrame) -> list[Any]:
    """What Great Expectations finds of each expectation, in order."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    from great_expectations import expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # its import set INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("frame").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("frame").get_batch({"dataframe": view})
    built = [_expectation(expectations, position, want) for position, want in enumerate(suite)]
    outcome = batch.validate(
        gx.ExpectationSuite(name=config.name, expectations=built),
        result_format={"result_format": "BASIC", "partial_unexpected_count": 0},
    )
    found = {result.expectation_config.meta["position"]: result for result in outcome.results}
    for position, want in enumerate(suite):
        raised = found[position].exception_info
        if raised and any(info.get("raised_exception") for info in _infos(raised)):
            raise WorkError(f"Great Expectations could not check {want.kind} of '{_named(want.column) or 'the table'}'")
    return [found[position] for position in range(len(suite))]


def as_view(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as Great Expectations sees it: texts as categoricals, which are judged five times as fast."""
    columns: dict[str, Any] = {}
    for name in frame.columns:
        values = frame[name]
        if values.dtype == np.dtype(object):
            codes, distinct = pd.factorize(values)
            kinds = pd.Index(distinct, dtype=object)
            values = pd.Series(pd.Categorical.from_codes(cast(Any, codes), categories=kinds))
        columns[name] = values.reset_index(drop=True)
    return pd.DataFrame(columns)


def _named(column: str | None) -> str | None:
    return None if column in (REPEATED, CROSSING) else column


def _on_column(config: ModelConfig, name: str, values: "pd.Series[Any]") -> list[Wanted]:
    column = config.columns[name]
    kind = "category" if column.personal or column.type in ("category", "text") else column.type
    present = "ExpectColumnProportionOfNonNullValuesToBeBetween"
    suite = [
        _type(name, kind),
        Wanted("empty", name, "some values", present, {"min_value": 0.0, "strict_min": True}),
        Wanted(
            "missing", name, f"at most {column.missing:.1%} missing", present, {"min_value": 1 - column.missing - 1e-12}
        ),
    ]
    if column.feature and not column.personal:
        suite.append(_distinct("constant", name))
    if column.range and not column.personal and values.dtype.kind == "f":
        low, high = column.range
        bounds = {"min_value": low, "max_value": high}
        suite.append(Wanted("range", name, f"{low:g} to {high:g}", "ExpectColumnValuesToBeBetween", bounds))
    if column.categories and not column.personal:
        allowed = list(categories(column))
        arguments = {"value_set": allowed}
        suite.append(Wanted("category", name, f"{len(allowed)} categories", "ExpectColumnValuesToBeInSet", arguments))
    return suite


def has_outliers(config: ModelConfig, name: str) -> bool:
    """Whether outliers are looked for in a column: in numbers that the model may see."""
    column = config.columns[name]
    return column.type in ("number", "integer") and column.feature and not column.personal


def quartiles(values: "pd.Series[Any]") -> Quartiles | None:
    """The first and the third quartile of numbers; None where all are missing."""
    if values.isna().all():
        return None
    low, high = np.quantile(values.to_numpy()[values.notna()], (0.25, 0.75))
    return float(low), float(high)


def _outliers(config: ModelConfig, name: str, middle: Quartiles | None) -> list[Wanted]:
    """Tukey's outer fences; none for a column whose middle half is one value."""
    if middle is None or not middle[1] > middle[0]:
        return []
    low, high = middle
    share = config.validation.max_outliers
    arguments = {
        "min_value": float(low - FENCE * (high - low)),
        "max_value": float(high + FENCE * (high - low)),
        "mostly": 1 - share,
    }
    expected = f"at most {share:.1%} beyond {FENCE:g} interquartile ranges"
    return [Wanted("outliers", name, expected, "ExpectColumnValuesToBeBetween", arguments)]


def _type(name: str, kind: str) -> Wanted:
    stored = {"category": "CategoricalDtypeType", "datetime": "datetime64[ns]"}.get(kind, "float64")
    return Wanted("type", name, kind, "ExpectColumnValuesToBeOfType", {"type_": stored})


def _distinct(kind: str, name: str) -> Wanted:
    return Wanted(
        kind, name, "at least 2 different values", "ExpectColumnUniqueValueCountToBeBetween", {"min_value": 2}
    )


def _share(kind: str, flag: str, most: float, what: str) -> Wanted:
    bound = {"max_value": 0.0, "mostly": 1 - most}
    return Wanted(kind, flag, f"at most {most:.1%} {what}", "ExpectColumnValuesToBeBetween", bound)


def _crossing(config: ModelConfig) -> Wanted:
    """Rows that the split parted from their like: none by content or entity; by time some repeat, as rows do."""
    if config.split.by == "time":
        return _share("leakage", CROSSING, config.validation.max_duplicates, "rows: test rows equal to a training row")
    what = "entity" if config.split.by == "entity" else "equal row"
    return _share("leakage", CROSSING, 0.0, f"rows: test rows whose {what} is in training")


def _expectation(library: Any, position: int, want: Wanted) -> Any:
    arguments = dict(want.arguments) | ({"column": want.column} if want.column else {})
    return getattr(library, want.expectation)(**arguments, meta={"position": position})


def judged(want: Wanted, severity: Severity, result: Any, rows: int) -> Check:
    """A check of the report: `result` has `success` and `result`, as Great Expectations gives them."""
    return Check(
        name=want.kind,
        column=_named(want.column),
        severity=severity,
        passed=bool(result.success),
        observed=_observed(want, result.result, rows),
        expected=want.expected,
    )


def _infos(exception_info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "raised_exception" in exception_info:
        return [exception_info]
    return [info for info in exception_info.values() if isinstance(info, Mapping)]


def _observed(want: Wanted, result: Mapping[str, Any], rows: int) -> str:
    """What was found, as counts and shares; raw values in a result are not looked at."""
    if want.kind in ("range", "category", "outliers"):
        which = {"range": "outside", "category": "not among them", "outliers": "beyond"}[want.kind]
        return f"{result['unexpected_count']:,} of {rows:,} values {which}"
    if want.kind in ("duplicates", "leakage"):
        return f"{result['unexpected_count']:,} of {rows:,}"
    seen = result.get("observed_value")
    if want.kind == "schema":
        missing = set(want.arguments["column_set"]) - set(seen or ())
        return f"{len(missing)} missing"
    if want.kind == "type":
        return {"float64": "number", "CategoricalDtypeType": "category", "datetime64": "datetime"}.get(
            str(seen), "other"
        )
    if want.kind in ("empty", "missing"):
        share = 0.0 if seen is None or math.isnan(seen) else float(seen)
        return f"{round((1 - share) * rows):,} of {rows:,} missing"
    return f"{int(seen or 0):,}"
