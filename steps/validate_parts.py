"""Validating by partition: the same suite on each, its counts put together, and what needs all rows merged exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.config import ModelConfig
from steps.cluster import cluster
from steps.hashes import Words, content_hashes
from steps.partitions import Each, Part, Partitions, public_columns, sample_rows
from steps.quality import Check, QualityReport, check_severities, report_of
from steps.split import in_test
from steps.split_parts import cutoff
from steps.suite import (
    CROSSING,
    REPEATED,
    Quartiles,
    Wanted,
    as_view,
    graded_by,
    has_outliers,
    judged,
    outcomes,
    quartiles,
    wanted,
)
from steps.validate import SAMPLE, balance, drift, leaks, parted_by

DISTINCT = 10_000
_COUNTED = ("range", "category", "outliers")
_PRESENT = ("empty", "missing")
_DIFFERENT = ("constant", "classes")


@dataclass(frozen=True)
class Outcome:
    """What all partitions together say of an expectation, as Great Expectations words it."""

    success: bool
    result: Mapping[str, Any]


@dataclass(frozen=True)
class _Tally:
    """What one partition says of an expectation.

    Attributes:
        rows: Rows with a value.
        unexpected: Of them those that do not fit.
        seen: What was observed of a type or a schema.
        different: Hashes of different values, the 10,000 smallest.
    """

    rows: int = 0
    unexpected: int = 0
    seen: Any = None
    different: Words | None = None


@dataclass(frozen=True)
class _Hashed:
    """Of each row of a partition: hashes of all it holds and of what the split parts by, and whether it is tested."""

    rows: Words
    parted: Words
    tested: "np.ndarray[Any, np.dtype[np.bool_]]"


def validate_partitions(
    config: ModelConfig, data: Partitions, reference: pd.DataFrame | None = None
) -> tuple[QualityReport, pd.DataFrame]:
    """Check partitions on Dask workers: the checks of `steps.validate.validate_frame`, with the same verdicts.

    Great Expectations judges each partition; its counts are added up. Repeated rows and rows on both sides of the
    split are found by a 64-bit hash of each row; outliers by the quartiles of whole columns. Leaks and drift are looked
    for on 20,000 sampled rows, as they are in memory. Different values are counted up to 10,000 a column.

    Returns:
        The report, and the sample.

    Raises:
        DataError: A critical check failed; up to five are named.
        ConfigError: `validation.severity` names an unknown check or column.
        WorkError: Great Expectations failed; workers do not start or are lost.
    """
    with cluster("validate") as dask:
        return check_partitions(dask.each, config, data, reference)


def check_partitions(
    each: Each, config: ModelConfig, data: Partitions, reference: pd.DataFrame | None = None
) -> tuple[QualityReport, pd.DataFrame]:
    """Check partitions; see `validate_partitions`."""
    check_severities(config)
    numbers = [name for name in config.columns if has_outliers(config, name)]
    known = dict(zip(numbers, each(_quartiles, numbers, data), strict=True))
    first = data.read(data.parts[0])
    graded = graded_by(config, wanted(config, first, known))
    suite = [want for want, _ in graded]
    flags = _flagged(each(_hashed, data.parts, data, config, cutoff(each, config, data)))
    tallies = each(_tallied, data.parts, data, config, [want for want in suite if want.column not in flags])
    merged = iter(zip(*tallies, strict=True))
    checks = []
    for want, severity in graded:
        flagged = flags.get(str(want.column))
        tally = list(next(merged)) if flagged is None else [_Tally(len(data), flagged)]
        checks.append(_told(judged(want, severity, together(want, tally, len(data)), len(data)), tally))
    sample = sample_rows(each, data, config, SAMPLE, "validate")
    if config.task == "classification":
        checks += balance(config, data.classes)
    checks += [*leaks(config, sample), *drift(config, sample, reference)]
    return report_of(config, len(data), checks), sample


def together(want: Wanted, tallies: Sequence[_Tally], rows: int) -> Outcome:
    """What the partitions' tallies come to."""
    arguments = want.arguments
    if want.kind in (*_COUNTED, "duplicates", "leakage"):
        present, unexpected = sum(t.rows for t in tallies), sum(t.unexpected for t in tallies)
        mostly = arguments.get("mostly", 1.0)
        return Outcome(not present or (present - unexpected) / present >= mostly, {"unexpected_count": unexpected})
    if want.kind in _PRESENT:
        share, least = sum(t.rows for t in tallies) / rows, arguments["min_value"]
        return Outcome(share > least if arguments.get("strict_min") else share >= least, {"observed_value": share})
    if want.kind in _DIFFERENT:
        found = _union([t.different for t in tallies if t.different is not None])
        return Outcome(len(found) >= arguments["min_value"], {"observed_value": len(found)})
    if want.kind == "rows":
        return Outcome(rows >= arguments["min_value"], {"observed_value": rows})
    seen = [t.seen for t in tallies]
    if want.kind == "type":
        other = [kind for kind in seen if kind != seen[0]]
        return Outcome(all(t.unexpected == 0 for t in tallies), {"observed_value": other[0] if other else seen[0]})
    columns = sorted(set.intersection(*(set(names) for names in seen)))
    return Outcome(set(arguments["column_set"]) <= set(columns), {"observed_value": columns})


def _told(check: Check, tallies: Sequence[_Tally]) -> Check:
    """The check, its number of different values worded as the lower bound that it may be."""
    many = any(tally.different is not None and len(tally.different) >= DISTINCT for tally in tallies)
    return check.model_copy(update={"observed": f"{DISTINCT:,} or more"}) if many else check


def _quartiles(name: str, data: Partitions) -> Quartiles | None:
    return quartiles(data.column(name))


def _hashed(part: Part, data: Partitions, config: ModelConfig, since: Any) -> _Hashed:
    view = as_view(data.read(part))
    return _Hashed(
        content_hashes(view, public_columns(config)),
        content_hashes(view, parted_by(config)),
        in_test(config, view, since),
    )


def _flagged(found: Sequence[_Hashed]) -> dict[str, int]:
    """How many rows repeat an earlier one, and how many test rows have their like in training."""
    rows = np.concatenate([one.rows for one in found])
    rows.sort()
    repeated = int((rows[1:] == rows[:-1]).sum())
    del rows
    trained = np.unique(np.concatenate([one.parted[~one.tested] for one in found]))
    crossing = 0
    for one in found:
        asked = one.parted[one.tested]
        places = np.minimum(np.searchsorted(trained, asked), max(0, len(trained) - 1))
        crossing += int((trained[places] == asked).sum()) if len(trained) else 0
    return {REPEATED: repeated, CROSSING: crossing}


def _tallied(part: Part, data: Partitions, config: ModelConfig, suite: Sequence[Wanted]) -> list[_Tally]:
    view = as_view(data.read(part))
    return [_tally(want, found, view) for want, found in zip(suite, outcomes(config, suite, view), strict=True)]


def _tally(want: Wanted, found: Any, view: pd.DataFrame) -> _Tally:
    result = found.result
    if want.kind in _COUNTED:
        return _Tally(int(result["element_count"] - result["missing_count"]), int(result["unexpected_count"]))
    if want.kind in _PRESENT:
        return _Tally(int(view[want.column].notna().sum()))
    if want.kind in _DIFFERENT:
        present = view[[str(want.column)]].dropna()
        return _Tally(different=_union([content_hashes(present, [str(want.column)])]))
    return _Tally(unexpected=int(not found.success), seen=result.get("observed_value"))


def _union(hashes: Sequence[Words]) -> Words:
    """Different hashes, the smallest ones."""
    return np.unique(np.concatenate(hashes))[:DISTINCT] if hashes else np.empty(0, dtype=np.uint64)
