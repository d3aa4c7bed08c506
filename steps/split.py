"""Splitting: each row by itself is train or test, decided by a seeded hash or by time, never by position."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from zenml import step

from bentos.frame import categories, to_frame
from models.config import Column, ModelConfig
from models.errors import ConfigError, DataError
from steps.caching import cached_by, parse_config
from steps.frames import FRAME_MATERIALIZER
from steps.read import names_text

log = logging.getLogger(__name__)
BUCKET = "split_bucket"
BUCKETS = 64
MIN_TEST_ROWS = 5
_Words = np.ndarray[Any, np.dtype[np.uint64]]
_NAN = np.uint64(0x7FF8000000000000)


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
    _check_held_out(config, frame)
    _check_sides(config, frame, chosen)
    train, test = frame.take(np.flatnonzero(~chosen)), frame.take(np.flatnonzero(chosen))
    if config.sample_size is not None and config.sample_size < len(train):
        order = row_hashes(config, train, "sample")
        kept = np.sort(np.argsort(order, kind="stable")[: config.sample_size])
        train = train.iloc[kept]
        if config.task == "classification":
            expected = config.target.labels or sorted(frame[config.target.column].unique())
            advice = f"raise sample_size above {config.sample_size}"
            _check_classes(expected, train[config.target.column], "the training sample", advice)
    train.index, test.index = pd.RangeIndex(len(train)), pd.RangeIndex(len(test))
    return Split(train, test)


def in_test(config: ModelConfig, frame: pd.DataFrame) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether each row of a typed frame is a test row under this configuration's seed and split.

    By content (the columns that may be features) or entity it is a pure function of the row: other rows, their
    order and the key of pseudonyms do not matter. Where the YAML lists the entities as categories, `split.test` of
    them are tested, but at least one and not all; `split.held_out` names those to test. A personal entity is split
    by the bucket that ingest made. By time, the newest rows are the test rows; rows of one instant stay together.

    Raises:
        DataError: The column that decides is absent or has missing values.
        ConfigError: `split.held_out` names values of a personal column.
    """
    if config.split.by == "time":
        return _newest(config, frame)
    entity = config.columns[str(config.split.column)] if config.split.by == "entity" else None
    if config.split.held_out:
        name = str(config.split.column)
        _require_present(frame, name, "entity")
        return frame[name].isin(_held_out(config)).to_numpy()
    if entity and entity.personal:
        _require_present(frame, BUCKET, "entity")
        ranks = np.argsort(np.argsort(_mix(np.arange(BUCKETS, dtype=np.uint64) ^ _word(f"{config.seed}:bucket"))))
        chosen = ranks < max(1, round(config.split.test * BUCKETS))
        return chosen[frame[BUCKET].to_numpy(np.int64)]
    hashes = row_hashes(config, frame, "test")
    if entity and entity.categories:
        return hashes < _limit(config, entity)
    return hashes < np.uint64(config.split.test * 2.0**64)


def row_hashes(config: ModelConfig, frame: pd.DataFrame, purpose: str) -> _Words:
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


def content_hashes(frame: pd.DataFrame, names: Sequence[str], salt: str = "") -> _Words:
    """A 64-bit hash of some columns of each row of a typed frame (texts may be categoricals); equal rows share it."""
    total = np.full(len(frame), _word(salt), dtype=np.uint64)
    for name in names:
        total = _mix(total ^ _mix(_words(frame[name]) ^ _word(name)))
    return total


def bucket_of(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """One of 64 buckets for each text, not keyed: enough to split by, far too few to find a person by."""
    codes, distinct = pd.factorize(values)
    table = np.array([int(_word(f"bucket:{text}")) % BUCKETS for text in distinct] + [-1], dtype=np.float64)
    return table[codes]


@step(
    cache_policy=cached_by(__name__),
    output_materializers={"train": FRAME_MATERIALIZER, "test": FRAME_MATERIALIZER},
)
def split(config: str, frame: pd.DataFrame) -> tuple[Annotated[pd.DataFrame, "train"], Annotated[pd.DataFrame, "test"]]:
    """Part the validated rows into train and test."""
    parts = split_frame(parse_config(config), frame)
    return parts.train, parts.test


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


def _check_held_out(config: ModelConfig, frame: pd.DataFrame) -> None:
    if not config.split.held_out:
        return
    name = str(config.split.column)
    known, wanted = frame[name].unique().tolist(), _held_out(config)
    absent = [value for value in wanted if value not in known]
    if absent or len(wanted) < len(config.split.held_out):
        listed = names_text(sorted(known)) if config.columns[name].categories else f"{len(known)} values"
        count = len(absent) + len(config.split.held_out) - len(wanted)
        raise DataError(
            f"split.held_out: {count} of {len(config.split.held_out)} values ({names_text(config.split.held_out, 5)}) "
            f"are not in column '{name}' (there is: {listed})"
        )


def _newest(config: ModelConfig, frame: pd.DataFrame) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    name = str(config.split.column)
    _require_present(frame, name, "time")
    times = frame[name].to_numpy()
    ordered = np.sort(times)
    cutoff = ordered[min(len(ordered) - 1, max(0, int(len(ordered) * (1 - config.split.test)) - 1))]
    return times > cutoff


def _require_present(frame: pd.DataFrame, name: str, role: str) -> None:
    if name not in frame.columns:
        raise DataError(f"the frame has no column '{name}', which the split by {role} needs")
    missing = int(frame[name].isna().sum())
    if missing:
        raise DataError(
            f"column '{name}': {missing} of {len(frame)} rows have no value, so the split by {role} cannot place "
            "them; fill or remove these rows, or split by content"
        )


def _check_sides(config: ModelConfig, frame: pd.DataFrame, chosen: "np.ndarray[Any, Any]") -> None:
    test = int(chosen.sum())
    if test < MIN_TEST_ROWS or len(frame) - test < MIN_TEST_ROWS:
        raise DataError(
            f"the split by {config.split.by} leaves {len(frame) - test} rows to train and {test} to test, and each "
            f"side needs {MIN_TEST_ROWS}: give more rows (with more different values), or {_remedy(config)}"
        )
    advice = f"give more rows of it, leave it out, or {_remedy(config)}"
    if config.task == "classification":
        target = frame[config.target.column]
        expected = config.target.labels or sorted(target.unique())
        rare = _rare(expected, target)
        for side, of_side in (("the training rows", target[~chosen]), ("the test rows", target[chosen])):
            _check_classes([label for label in expected if label not in rare], of_side, side, advice)
            if absent := rare.difference(of_side):
                log.warning("%d classes of fewer than %d rows are missing in %s", len(absent), MIN_TEST_ROWS, side)


def _rare(expected: Sequence[str], target: "pd.Series[Any]") -> set[str]:
    """Classes too rare to be asked for on both sides; none where fewer than two others would be left to tell apart."""
    counts = target.value_counts()
    rare = {label for label in expected if counts.get(label, 0) < MIN_TEST_ROWS}
    return rare if len(expected) - len(rare) >= 2 else set()


def _remedy(config: ModelConfig) -> str:
    if config.split.held_out:
        return "change split.held_out"
    return "change split.test or seed" + (", or name entities in split.held_out" if config.split.by == "entity" else "")


def _check_classes(expected: Sequence[str], target: "pd.Series[Any]", side: str, advice: str) -> None:
    found = set(target.unique())
    absent = [label for label in expected if label not in found]
    if absent:
        raise DataError(f"class '{absent[0][:40]}' is missing in {side} ({len(absent)} such classes): {advice}")


def _word(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _words(series: "pd.Series[Any]") -> _Words:
    """64 bits per value: a number's own bits, a text's hash; all kinds of NaN are one."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _text_words(series.cat.codes.to_numpy(), series.cat.categories)
    values = series.to_numpy()
    if values.dtype == object:
        return _text_words(*pd.factorize(values))
    if values.dtype.kind == "M":
        return values.astype("datetime64[ns]").view(np.int64).astype(np.uint64)
    numbers = values.astype(np.float64) + 0.0
    words = numbers.view(np.uint64)
    words[np.isnan(numbers)] = _NAN
    return words


def _text_words(codes: "np.ndarray[Any, Any]", distinct: Iterable[Any]) -> _Words:
    return np.array([*(_word(f"text:{text}") for text in distinct), _NAN], dtype=np.uint64)[codes]


def _mix(words: _Words) -> _Words:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
