"""Texts as numbers: what the normaliser leaves, what TF-IDF makes of it, and that no text stops or slows it."""

import random
import time
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer

from bentos.canonical import TRUSTED
from bentos.text import TextTfidf, normalise
from models.errors import DataError

NAN = float("nan")
LOGS = ["error: cannot find symbol", "error: expected 3 got 4", "", "connection timed out after 30s", None, NAN]


def tfidf(normalised: bool = True, longest: int = 2, most: int = 1000, rows: int = 1, end: int = 20_000) -> TextTfidf:
    return TextTfidf(normalised, [1, longest], most, rows, end)


def column(texts: Iterable[object]) -> "pd.Series[object]":
    return pd.Series(list(texts), dtype=object, name="log")


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("2024-01-03 12:00:01,123 ERROR", "<date> <time> error"),
        ("2024-05-06T07:08:09.123Z [12:00:01] 03/01/2024", "<time> <time> <date>"),
        ("at /builds/ci/app.py:12: in main", "at <path> in main"),
        (r"C:\src\main.cpp(12): error C2065", "<path> <number> error c0"),
        ("src/a/b.ts:12:10 ./gradlew build ../lib and/or", "<path> <path> build <path> and or"),
        ("see https://x.org/a?b=1#c, git@github.com", "see <url> <mail>"),
        ("10.0.0.1:22 and fe80:1:2:3:4:5", "<ip> and <ip>"),
        ("npm@6.1.2 v18 openssl 1.1.1w 3.11", "npm <version> <version> openssl <version> <number>"),
        ("deadbeef12 0x7ffe12 550e8400-e29b-41d4-a716-446655440000", "<id> <id> <id>"),
        ("took 3.4s, 1,024 MB, exit code 137", "took <number> <number> mb exit code <number>"),
        ("\x1b[31mFAIL\x1b[0m \x1b]0;title\x07ok [1m[31mred[0m", "fail ok red"),
        ("can't load utf8, foo_bar::Baz", "can't load utf0 foo bar baz"),
        ("\x00\x07 tab\tnew\r\nline\u2028sep é ß", "tab new line sep"),
        ("日本語のテキスト straße ÜBER", "日本語のテキスト straße über"),
        ("", ""),
    ],
)
def test_what_differs_from_run_to_run_is_replaced_by_its_kind(written: str, left: str) -> None:
    assert normalise(written) == left


def test_weights_are_those_of_scikit_learn() -> None:
    texts = ["a b c b", "b c", "c c c d", "", "zz top of the b"]
    longer = [text.replace("a", "aa").replace("b", "bb").replace("c", "cc").replace("d", "dd") for text in texts]
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    expected = theirs.fit_transform(longer)
    ours = tfidf(normalised=False)
    found = ours.fit_transform(longer)
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())
    np.testing.assert_allclose(found.toarray(), expected.toarray(), atol=1e-11)
    assert isinstance(found, csr_matrix) and found.has_sorted_indices


def test_a_missing_text_is_an_empty_one_and_nothing_is_mutated() -> None:
    texts = column(LOGS)
    before = texts.copy(deep=True)
    found = tfidf().fit_transform(texts).toarray()
    assert found.shape[0] == len(LOGS) and np.isfinite(found).all()
    assert not found[[2, 4, 5]].any() and found[[0, 1, 3]].any(axis=1).all()
    pd.testing.assert_series_equal(texts, before)
    assert tfidf().fit(texts).transform(column([])).shape[0] == 0


def test_terms_are_the_commonest_and_a_tie_goes_by_alphabet() -> None:
    texts = ["bb aa", "bb cc", "bb dd", "cc aa"]
    assert tfidf(longest=1, most=2).fit(texts).terms_.split("\n") == ["aa", "bb"]
    assert tfidf(longest=1, rows=3).fit(texts).terms_ == "bb"
    assert tfidf(longest=3).fit(["aa bb cc"]).terms_.split("\n") == ["aa", "aa bb", "aa bb cc", "bb", "bb cc", "cc"]


@pytest.mark.parametrize("texts", [["", "", NAN, None], ["!!! 。", "— …"], ["aa", "bb", "cc"]])
def test_texts_without_a_common_term_are_a_clear_stop(texts: list[object]) -> None:
    with pytest.raises(DataError, match=rf"column 'log': no term occurs in 2 of {len(texts)} texts .*text.min_rows"):
        tfidf(rows=2).fit(column(texts))


def test_of_a_long_text_the_end_is_read() -> None:
    fitted = tfidf(longest=1, end=50).fit(["start " * 100 + "finish", "finish"])
    assert fitted.terms_ == "finish\nstart"
    np.testing.assert_array_equal(
        fitted.transform(["other " * 1000 + "finish"]).toarray(), fitted.transform(["finish"]).toarray()
    )


@pytest.mark.parametrize("letters", ["a.", "0123456789abcdef", "a/", "1:", "1.-", "a@.", "ab'"])
def test_no_text_of_400_000_characters_costs_more_than_its_length(letters: str) -> None:
    rng = random.Random(7)
    text = "".join(rng.choice(letters) for _ in range(400_000))
    started = time.thread_time()
    tfidf(end=400_000).fit([text])
    assert time.thread_time() - started < 20  # about one second; by the square of its length it would be hours


def test_it_survives_clone_and_skops_and_stores_no_index() -> None:
    fitted = tfidf().fit(LOGS)
    wanted = fitted.transform(LOGS).toarray()
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params() and not hasattr(copied, "terms_")
    stored = skops.io.dumps(fitted)
    assert set(skops.io.get_untrusted_types(data=stored)) == {"bentos.text.TextTfidf"} <= TRUSTED
    loaded = skops.io.loads(stored, trusted=["bentos.text.TextTfidf"])
    assert "_places" not in loaded.__dict__
    np.testing.assert_array_equal(loaded.transform(LOGS).toarray(), wanted)
