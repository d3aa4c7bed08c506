"""Hashes of rows: 64 bits of a row's content, seeded, the same on every platform."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

BUCKETS = 64
Words = np.ndarray[Any, np.dtype[np.uint64]]
_NAN = np.uint64(0x7FF8000000000000)


def content_hashes(frame: pd.DataFrame, names: Sequence[str], salt: str = "") -> Words:
    """A 64-bit hash of some columns of each row of a typed frame (texts may be categoricals); equal rows share it."""
    total = np.full(len(frame), word(salt), dtype=np.uint64)
    for name in names:
        total = mix(total ^ mix(_words(frame[name]) ^ word(name)))
    return total


def bucket_of(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """One of 64 buckets for each text, not keyed: enough to split by, far too few to find a person by."""
    codes, distinct = pd.factorize(values)
    table = np.array([int(word(f"bucket:{text}")) % BUCKETS for text in distinct] + [-1], dtype=np.float64)
    return table[codes]


def word(text: str) -> np.uint64:
    """64 bits of a text."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _words(series: "pd.Series[Any]") -> Words:
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


def _text_words(codes: "np.ndarray[Any, Any]", distinct: Iterable[Any]) -> Words:
    return np.array([*(word(f"text:{text}") for text in distinct), _NAN], dtype=np.uint64)[codes]


def mix(words: Words) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
