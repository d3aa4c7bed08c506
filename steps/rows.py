"""Typing: raw rows of any source become one typed frame without personal values, and the rows that do not fit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bentos.frame import Problem, pseudonym, to_frame
from models.config import Column, ModelConfig
from models.section import Scalar
from stacks.home import secret_key
from steps.hashes import bucket_of
from steps.quarantine import Rejected, reject, rejected_rows, stop_on
from steps.read import names_text
from steps.split import BUCKET


@dataclass(frozen=True)
class Rows:
    """Typed rows, and those that were set aside.

    Attributes:
        frame: The YAML's columns, then the target, then (where the split goes by a personal column) `split_bucket`.
        rejected: The rows that did not fit; none unless `on_bad_row: quarantine`.
    """

    frame: pd.DataFrame
    rejected: Rejected


def typed_rows(config: ModelConfig, chunks: Iterable[pd.DataFrame]) -> Rows:
    """Type raw rows and their target, replace personal values, and stop or set aside where a value does not fit.

    Args:
        config: The model.
        chunks: Raw rows, at least one chunk; each has the YAML's columns and the target.

    Raises:
        DataError: Values do not have the declared type, or the target is missing or unknown; with
            `on_bad_row: quarantine` only where too many rows are concerned.
    """
    frames, problems, bad = [], [], []
    rows = 0
    for raw in chunks:
        frame, found = typed_chunk(config, raw)
        frames.append(frame)
        problems += [replace(p, rows=tuple(rows + row for row in p.rows)) for p in found]
        bad.append(rejected_rows(config, raw, frame, found, rows))
        rows += len(raw)
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    if problems and config.on_bad_row == "stop":
        stop_on(problems, config, rows)
    rejected = reject(config, problems, bad, rows)
    return Rows(frame.drop(index=list(rejected.positions)).reset_index(drop=True) if problems else frame, rejected)


def typed_chunk(config: ModelConfig, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Type some raw rows, replace personal values, and say what does not fit, by positions in the chunk."""
    typed = to_frame(raw, config.columns)
    target, problems = _target(raw[config.target.column], config)
    columns = {name: typed.frame[name].to_numpy() for name in config.columns}
    frame = pd.DataFrame({**columns, config.target.column: target, **_pseudonymous(columns, config)})
    return frame, [*typed.problems, *problems]


def _target(raw: "pd.Series[Any]", config: ModelConfig) -> tuple["np.ndarray[Any, Any]", list[Problem]]:
    """The typed target (labels after `target.map` for classes, numbers for regression) and the rows without one."""
    name = config.target.column
    keys = list(config.target.map or config.target.labels)
    column = Column(type="number") if config.task == "regression" else _label_column(keys)
    typed = to_frame(raw.to_frame(name), {name: column})
    values, problems = typed.frame[name], list(typed.problems)
    bad = np.zeros(len(raw), dtype=bool)
    for problem in problems:
        bad[list(problem.rows)] = True
    problems += _problem(name, "no value", values.isna().to_numpy() & ~bad)
    if config.task == "regression" or not keys:
        return values.to_numpy(), problems
    bad = values.isna().to_numpy()
    printed = to_frame(pd.DataFrame({name: keys}, dtype=object), {name: column}).frame[name]
    labels = values.map(dict(zip(printed, config.target.map.values() if config.target.map else keys, strict=True)))
    where = "target.map" if config.target.map else "target.labels"
    problems += _problem(name, f"not in {where} ({names_text(keys)})", labels.isna().to_numpy() & ~bad)
    return labels.to_numpy(dtype=object), problems


def _problem(column: str, reason: str, bad: "np.ndarray[Any, Any]") -> list[Problem]:
    return [Problem(column, reason, tuple(np.flatnonzero(bad).tolist()))] if bad.any() else []


def _label_column(keys: Sequence[str]) -> Column:
    """How the raw target is read: as the kind of value that the YAML's keys spell, so that 1, 1.0 and "1" agree."""
    spelled: tuple[Scalar, ...] = ()
    if keys and {key.lower() for key in keys} <= {"true", "false"}:
        spelled = (True, False)
    else:
        try:
            spelled = tuple(float(key) for key in keys)
        except ValueError:
            spelled = ()
    return Column(type="category", categories=spelled or None)


def _pseudonymous(columns: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Stand-ins of personal columns; and the bucket that the split goes by, which must not depend on the key."""
    replaced: dict[str, Any] = {}
    for name in (name for name, column in config.columns.items() if column.personal):
        codes, distinct = pd.factorize(columns[name])
        key = secret_key()
        replaced[name] = np.array([*(pseudonym(text, key) for text in distinct), np.nan], dtype=object)[codes]
        if name == config.split.column and config.split.by == "entity":
            replaced[BUCKET] = bucket_of(columns[name])
    return replaced
