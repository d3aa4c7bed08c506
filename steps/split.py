"""Splitting: each row by itself is train or test, decided by a seeded hash or by time, never by position."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from zenml import get_step_context, step

from bentos.frame import categories, to_frame
from models.config import Column, ModelConfig
from models.errors import ConfigError, DataError
from steps.caching import cached_by, parse_config
from steps.hashes import BUCKETS, Words, content_hashes, mix, word
from steps.partitions import DATA_MATERIALIZERS, Partitions
from steps.read import names_text

log = logging.getLogger(__name__)
BUCKET = "split_bucket"
MIN_TEST_ROWS = 5


@dataclass(frozen=True)
class Side:
    """One side of a split, counted: its rows, and the rows of each class that it has (none for a regression)."""

    rows: int
    classes: Mapping[str, int]

    @classmethod
    def of(cls, config: ModelConfig, target: "pd.Series[Any]") -> "Side":
        """The side that has these targets."""
        if config.task == "regression":
            return cls(len(target), {})
        return cls(len(target), {str(label): int(count) for label, count in target.value_counts().items()})


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to judge by; both with a fresh index."""

    train: pd.DataFrame
    test: pd.DataFrame


def split_frame(config: ModelConfig, frame: pd.DataFrame) -> Split:
    """Part a typed frame; the training rows are cut to `sample_size` where the YAML has one.

    Of more than two classes, one with fewer than five rows may be missing on a side: that is a warning.

    Raises:
        DataError: A side would be too small, or a class would be missing on one side.
    """
    chosen = in_test(config, frame)
    if config.split.held_out:
        check_held_out(config, frame[str(config.split.column)].unique().tolist())
    target = frame[config.target.column]
    check_sides(config, *(Side.of(config, target[side]) for side in (~chosen, chosen)))
    train, test = frame.take(np.flatnonzero(~chosen)), frame.take(np.flatnonzero(chosen))
    if config.sample_size is not None and config.sample_size < len(train):
        order = row_hashes(config, train, "sample")
        kept = np.sort(np.argsort(order, kind="stable")[: config.sample_size])
        train = train.iloc[kept]
        if config.task == "classification":
            expected = config.target.labels or sorted(frame[config.target.column].unique())
            advice = f"raise sample_size above {config.sample_size}"
            _check_classes(
                expected, Side.of(config, train[config.target.column]).classes, "the training sample", advice
            )
    train.index, test.index = pd.RangeIndex(len(train)), pd.RangeIndex(len(test))
    return Split(train, test)


def in_test(config: ModelConfig, frame: pd.DataFrame, since: Any = None) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether each row of a typed frame is a test row under this configuration's seed and split.

    By content (the columns that may be features) or entity it is a pure function of the row: other rows, their
    order and the key of pseudonyms do not matter. Where the YAML lists the entities as categories, `split.test` of
    them are tested, but at least one and not all; `split.held_out` names those to test. A personal entity is split
    by the bucket that ingest made. By time, the newest rows are the test rows; rows of one instant stay together.

    Args:
        config: The model.
        frame: Typed rows.
        since: By time: the newest training row's, where `frame` does not hold all rows (`newest_trained`).

    Raises:
        DataError: The column that decides is absent or has missing values.
        ConfigError: `split.held_out` names values of a personal column.
    """
    if config.split.by == "time":
        name = str(config.split.column)
        _require_present(frame, name, "time")
        times = frame[name].to_numpy()
        return times > (newest_trained(config, times) if since is None else since)
    entity = config.columns[str(config.split.column)] if config.split.by == "entity" else None
    if config.split.held_out:
        name = str(config.split.column)
        _require_present(frame, name, "entity")
        return frame[name].isin(_held_out(config)).to_numpy()
    if entity and entity.personal:
        _require_present(frame, BUCKET, "entity")
        ranks = np.argsort(np.argsort(mix(np.arange(BUCKETS, dtype=np.uint64) ^ word(f"{config.seed}:bucket"))))
        chosen = ranks < max(1, round(config.split.test * BUCKETS))
        return chosen[frame[BUCKET].to_numpy(np.int64)]
    hashes = row_hashes(config, frame, "test")
    if entity and entity.categories:
        return hashes < _limit(config, entity)
    return hashes < np.uint64(config.split.test * 2.0**64)


def newest_trained(config: ModelConfig, times: "np.ndarray[Any, Any]") -> Any:
    """Split by time: the newest training row's, of the times of all rows."""
    ordered = np.sort(times)
    return ordered[min(len(ordered) - 1, max(0, int(len(ordered) * (1 - config.split.test)) - 1))]


def row_hashes(config: ModelConfig, frame: pd.DataFrame, purpose: str) -> Words:
    """A seeded 64-bit hash of each row's content or entity, the same on every platform; equal rows share it."""
    names = hashed_columns(config)
    if config.split.by == "entity":
        _require_present(frame, names[0], "entity")
    absent = [name for name in names if name not in frame.columns]
    if absent:
        raise DataError(f"the split reads {len(absent)} columns that the frame does not have: {', '.join(absent[:5])}")
    return content_hashes(frame, names, f"{config.seed}:{purpose}")


def hashed_columns(config: ModelConfig) -> list[str]:
    """Columns that `row_hashes` reads."""
    if config.split.by == "entity":
        return [str(config.split.column)]
    return [name for name, column in config.columns.items() if column.feature and not column.personal]


def _limit(config: ModelConfig, entity: Column) -> np.uint64:
    """The hash below which an entity is tested: moved just so far that it parts the declared ones by `split.test`."""
    name = str(config.split.column)
    declared = pd.DataFrame({name: np.array(categories(entity), dtype=object)})
    hashes = np.sort(row_hashes(config, declared, "test"))
    limit = np.uint64(config.split.test * 2.0**64)
    if len(hashes) < 2:
        return limit
    tested = min(len(hashes) - 1, max(1, round(config.split.test * len(hashes))))
    return max(hashes[tested - 1] + np.uint64(1), min(hashes[tested], limit))


def _held_out(config: ModelConfig) -> list[Any]:
    """The values of `split.held_out` as a typed frame holds them."""
    name = str(config.split.column)
    column = config.columns[name]
    if column.personal:
        raise ConfigError(f"split.held_out: column '{name}' is personal, its values are not kept; leave held_out out")
    typed = to_frame(pd.DataFrame({name: config.split.held_out}, dtype=object), {name: column})
    return typed.frame[name].dropna().tolist()


def check_held_out(config: ModelConfig, known: Sequence[Any]) -> None:
    """Stop where `split.held_out` names values that are not among the `known` ones of its column.

    Raises:
        DataError: Says how many, and what there is.
    """
    name = str(config.split.column)
    wanted = _held_out(config)
    absent = [value for value in wanted if value not in known]
    if absent or len(wanted) < len(config.split.held_out):
        listed = names_text(sorted(known)) if config.columns[name].categories else f"{len(known)} values"
        count = len(absent) + len(config.split.held_out) - len(wanted)
        raise DataError(
            f"split.held_out: {count} of {len(config.split.held_out)} values ({names_text(config.split.held_out, 5)}) "
            f"are not in column '{name}' (there is: {listed})"
        )


def _require_present(frame: pd.DataFrame, name: str, role: str) -> None:
    if name not in frame.columns:
        raise DataError(f"the frame has no column '{name}', which the split by {role} needs")
    missing = int(frame[name].isna().sum())
    if missing:
        raise DataError(
            f"column '{name}': {missing} of {len(frame)} rows have no value, so the split by {role} cannot place "
            "them; fill or remove these rows, or split by content"
        )


def check_sides(config: ModelConfig, train: Side, test: Side) -> None:
    """Stop where a side is too small, or a class is missing on one; warn where a rare class is.

    Raises:
        DataError: Says which, and what to do.
    """
    if min(train.rows, test.rows) < MIN_TEST_ROWS:
        raise DataError(
            f"the split by {config.split.by} leaves {train.rows} rows to train and {test.rows} to test, and each "
            f"side needs {MIN_TEST_ROWS}: give more rows (with more different values), or {_remedy(config)}"
        )
    advice = f"give more rows of it, leave it out, or {_remedy(config)}"
    if config.task == "classification":
        counts = {label: train.classes.get(label, 0) + test.classes.get(label, 0) for label in train.classes}
        counts = {label: test.classes.get(label, 0) for label in test.classes} | counts
        expected = config.target.labels or sorted(counts)
        rare = _rare(expected, counts)
        for name, side in (("the training rows", train), ("the test rows", test)):
            _check_classes([label for label in expected if label not in rare], side.classes, name, advice)
            if absent := rare.difference(side.classes):
                log.warning("%d classes of fewer than %d rows are missing in %s", len(absent), MIN_TEST_ROWS, name)


def _rare(expected: Sequence[str], counts: Mapping[str, int]) -> set[str]:
    """Classes too rare to be asked for on both sides; none where fewer than two others would be left to tell apart."""
    rare = {label for label in expected if counts.get(label, 0) < MIN_TEST_ROWS}
    return rare if len(expected) - len(rare) >= 2 else set()


def _remedy(config: ModelConfig) -> str:
    if config.split.held_out:
        return "change split.held_out"
    return "change split.test or seed" + (", or name entities in split.held_out" if config.split.by == "entity" else "")


def _check_classes(expected: Sequence[str], found: Mapping[str, int], side: str, advice: str) -> None:
    absent = [label for label in expected if label not in found]
    if absent:
        raise DataError(f"class '{absent[0][:40]}' is missing in {side} ({len(absent)} such classes): {advice}")


@step(
    cache_policy=cached_by(__name__),
    output_materializers={"train": DATA_MATERIALIZERS, "test": DATA_MATERIALIZERS},
)
def split(
    config: str, frame: pd.DataFrame | Partitions
) -> tuple[Annotated[pd.DataFrame | Partitions, "train"], Annotated[pd.DataFrame | Partitions, "test"]]:
    """Part the validated rows into train and test."""
    parsed = parse_config(config)
    if isinstance(frame, Partitions):
        from steps.split_parts import split_partitions

        places = [get_step_context().get_output_artifact_uri(side) for side in ("train", "test")]
        return split_partitions(parsed, frame, *places)
    parts = split_frame(parsed, frame)
    return parts.train, parts.test
