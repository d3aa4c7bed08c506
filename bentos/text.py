"""Texts to numbers inside the fitted pipeline: what differs from run to run becomes its kind, terms become TF-IDF."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from models.config import ModelConfig
from models.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, Any]
Term = str | tuple[str, ...]
"""A word, or several in a row."""

SLICE = 256  # Of what stands between blanks; so no text costs more than its length.
REMEMBERED = 1 << 16
# Some tools strip the escape character and leave its parameters: [31m.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\)?|[@-_]?)|\[\d{1,3}(?:;\d{1,3})*+m")
_PLAIN = re.compile(r"\w\w+")
_SUFFIXES = (
    "asciidoc|bat|cfg|class|clj|conf|coffee|cpp|cs|css|csv|cxx|dll|dylib|erl|ex|exe|exs|feature|gemspec|go|gradle|gz|hpp|"
    "hrl|hs|html?|ini|jar|java|json|jsx?|kt|less|lisp|lock|log|lua|md|mjs|mm|php|pl|pm|ps1|py|rb|rs|rst|sass|scala|scss|"
    "sh|so|sql|svg|swift|tar|tex|tgz|toml|tsx?|txt|vim|vue|war|whl|xml|ya?ml|zip|[acehmor]"
)
_STEP = r"[\\/][\w.@+%=~-]++"
# One alternative a kind, the first that fits wins. Each is tried where a run of its characters begins and nowhere
# inside, so that the cost grows with the length of a chunk and not with its square.
_PIECE = re.compile(
    rf"""
      (?P<url> (?<![a-z0-9+-])[a-z][a-z0-9+-]*+://[^\s"'<>]+ )
    | (?P<mail> (?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)*?\.[a-z]{{2,}}(?![\w-]) )
    | (?P<id> (?<!\w)(?:[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}} | 0x[0-9a-f]++
        | (?<![/.-])(?=[a-f]*+\d)(?=\d*+[a-f])[0-9a-f]{{7,}}+(?![\w-])) )
    | (?P<time> (?<!\d)\d{{4}}-\d\d-\d\d[t_]\d\d:?\d\d(?::?\d\d)?(?:[.,]\d+)?(?:z|[+-]\d\d:?\d\d)?
        | (?<![\d:.])\d{{1,2}}:\d\d(?::\d\d)?(?:[.,]\d++)?(?:z|[+-]\d\d:?\d\d)?(?![\d:]) )
    | (?P<date> (?<!\d)(?:\d{{4}}(?P<s>[-/.])\d{{1,2}}(?P=s)\d{{1,2}}
        | \d{{1,2}}(?P<t>[-/.])\d{{1,2}}(?P=t)\d{{4}})(?!\d) )
    | (?P<ip> (?<![\d.])\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?::\d++)?(?![\d.])
        | (?<![\w:])(?:[0-9a-f]{{1,4}}:){{4,7}}[0-9a-f]{{1,4}}(?!\w) )
    | (?P<path> (?:(?<![\w.~])(?:~|\.\.?|[a-z]:){_STEP}|(?<![\w.]){_STEP}{_STEP}|(?<![\w.@+-])[\w.@+-]++{_STEP}{_STEP})
        (?:{_STEP})*+[\\/]?(?::\d++)*+
        | (?<![\w.@+-])[\w@+-][\w.@+-]*(?:[\\/][\w.@+-]*)?\.(?:{_SUFFIXES})(?![\w.])(?::\d++)*+ )
    | (?P<version> (?<![\w.])(?:v?\d++\.\d++\.\d[\w.+-]*+|v\d[\d.]*+) )
    | (?P<word> [^\W\d_]++(?:'[a-z]++)? )(?P<digits> \d++ )?
    | (?P<number> \d++(?:[.,]\d++)*+(?:(?:ms|µs|us|ns|s|m|h|b|k|kb|mb|gb|kib|mib|gib|x)(?![a-z]))? )
    """,
    re.VERBOSE,
)


def normalise(text: str) -> str:
    """A text with its letters in lower case and all that differs from run to run replaced by its kind.

    Kinds: <url>, <mail>, <id> (hexadecimal, UUID), <time>, <date>, <ip>, <path>, <version>, <number>. Digits at the end
    of a word become 0. Terminal escapes and punctuation are dropped.
    """
    return " ".join(_words(text, normalised=True))


class TextTfidf(TransformerMixin, BaseEstimator):
    """TF-IDF of one text column; a missing text is an empty one, and an empty one a row of zeros.

    A term is a word or several in a row. Its weight in a row is (1 + ln count) · (1 + ln((1 + n) / (1 + rows with
    it))), each row scaled to length 1 (Manning, Raghavan, Schütze 2008, chapter 6). Terms are kept as one string and
    weights as one array, so that the fitted object is small, is stored without pickle, and equal for equal texts.

    Args:
        normalised: Whether words are what `normalise` leaves; else what is written, in lower case.
        ngrams: Fewest and most words of a term.
        max_features: Terms that are kept, the commonest first (by rows, then by alphabet).
        min_rows: Rows that a term must occur in.
        max_characters: Of a longer text the end is read.
    """

    # Plain arguments, kept as they are: what scikit-learn's clone and skops need.
    def __init__(
        self, normalised: bool, ngrams: list[int], max_features: int, min_rows: int, max_characters: int
    ) -> None:
        self.normalised = normalised
        self.ngrams = ngrams
        self.max_features = max_features
        self.min_rows = min_rows
        self.max_characters = max_characters

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:  # noqa: ARG002
        """Learn terms and their weights from texts (missing ones allowed).

        Raises:
            DataError: No term occurs in `min_rows` rows.
        """
        return self._learn([self._read(text) for text in X], getattr(X, "name", None))

    def fit_transform(self, X: Iterable[Any], y: Any = None, **_: Any) -> "csr_matrix":  # noqa: ARG002
        """`fit`, then `transform` of the same texts, which are read once.

        Raises:
            DataError: No term occurs in `min_rows` rows.
        """
        texts = [self._read(text) for text in X]
        return self._learn(texts, getattr(X, "name", None))._matrix(texts)

    def transform(self, X: Iterable[Any]) -> "csr_matrix":
        """Texts in; shape (rows, terms), float64, sparse, out."""
        return self._matrix([self._read(text) for text in X])

    def get_feature_names_out(self, input_features: Any = None) -> Array:  # noqa: ARG002
        """The terms, in alphabetical order."""
        return np.array(self.terms_.split("\n"), dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        """What is stored: the places of terms are found again from the terms."""
        return {key: value for key, value in super().__getstate__().items() if key != "_places"}

    def _read(self, text: Any) -> list[str]:
        """The words of a text."""
        return _words(text[-self.max_characters :], self.normalised) if isinstance(text, str) else []

    def _terms(self, words: list[str]) -> Iterator[Term]:
        """All terms of a text, each as often as it occurs."""
        fewest, most = self.ngrams
        runs = (
            zip(*(islice(words, at, None) for at in range(n)), strict=False) for n in range(max(fewest, 2), most + 1)
        )
        return chain(words if fewest == 1 else (), chain.from_iterable(runs))

    def _learn(self, texts: Sequence[list[str]], name: Any) -> Self:
        rows = Counter(chain.from_iterable(set(self._terms(words)) for words in texts))
        common = [(-count, _spelled(term)) for term, count in rows.items() if count >= self.min_rows]
        if not common:
            raise DataError(
                f"column '{name}': no term occurs in {self.min_rows} of {len(texts)} texts "
                f"({sum(map(bool, texts))} of them hold any word): give texts, or lower text.min_rows"
            )
        kept = sorted((term, -count) for count, term in sorted(common)[: self.max_features])
        self.terms_ = "\n".join(term for term, _ in kept)
        weights = [1 + math.log((1 + len(texts)) / (1 + count)) for _, count in kept]
        self.weights_ = np.round(np.array(weights, dtype=np.float64), 12)
        self.__dict__.pop("_places", None)
        return self

    def _matrix(self, texts: Sequence[list[str]]) -> "csr_matrix":
        from scipy.sparse import csr_matrix

        if "_places" not in self.__dict__:
            self._places = _places(self.terms_.split("\n"))
        where = self._places.get
        found = [list(filter(None, map(where, self._terms(words)))) for words in texts]
        starts = np.cumsum([0, *map(len, found)])
        columns = np.fromiter(chain.from_iterable(found), dtype=np.int64, count=starts[-1]) - 1
        matrix = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(texts), len(self.weights_)))
        matrix.sum_duplicates()
        values = (1 + np.log(matrix.data)) * self.weights_[matrix.indices]
        row = np.repeat(np.arange(len(texts)), np.diff(matrix.indptr))
        norms = np.sqrt(np.bincount(row, weights=values**2, minlength=len(texts)))
        matrix.data = values / norms[row]
        return matrix


def text_tfidf(config: ModelConfig) -> TextTfidf:
    """The transformer that a YAML's `text` describes, for one column."""
    text = config.text
    return TextTfidf(text.normalise, list(text.ngrams), text.max_features, text.min_rows, text.max_characters)


def _places(terms: Sequence[str]) -> dict[Term, int]:
    """Column of each term, counted from 1: what is not found and what is falsy are then the same."""
    return {tuple(term.split(" ")) if " " in term else term: place for place, term in enumerate(terms, 1)}


def _spelled(term: Term) -> str:
    return term if isinstance(term, str) else " ".join(term)


def _words(text: str, normalised: bool) -> list[str]:
    text = text.lower()
    if "\x1b" in text or "[0m" in text:
        text = _ESCAPE.sub(" ", text)
    if not normalised:
        return _PLAIN.findall(text)
    chunks = text.split()
    if max(map(len, chunks), default=0) > SLICE:
        chunks = [chunk[at : at + SLICE] for chunk in chunks for at in range(0, len(chunk), SLICE)]
    return list(chain.from_iterable(map(_pieces, chunks)))


# Most chunks of a log were seen before: remembering them is many times as fast as looking again.
@lru_cache(maxsize=REMEMBERED)
def _pieces(chunk: str) -> tuple[str, ...]:
    """Words and kinds of one chunk, in order; words of one letter are left out."""
    found = []
    for match in _PIECE.finditer(chunk):
        word = match["word"]
        if word is None:
            found.append(f"<{match.lastgroup}>")
        elif match["digits"] is not None:
            found.append(f"{word}0")
        elif len(word) > 1:
            found.append(word)
    return tuple(found)
