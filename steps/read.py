"""Opening files: bytes from a path or URL, and strict tables from CSV and Parquet, every fault with its reason."""

import codecs
import csv
import difflib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from models.config import MISSING, FileSource
from models.errors import ConfigError, DataError, shown
from stacks.home import clone_dir

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
UTF8 = ("utf-8", "utf-8-sig")
_SIGNATURES = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF",
}
_BLOCK = 1 << 26


@dataclass(frozen=True)
class Chunk:
    """Some raw rows of a source: the columns that the YAML declares, and the names of others that it holds."""

    frame: pd.DataFrame
    extra: tuple[str, ...] = ()


def object_frame(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Cells as they are: no column is converted because of what else is in it."""
    cells = {name: np.fromiter(values, dtype=object, count=len(values)) for name, values in columns.items()}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in cells.items()})


def data_dir() -> Path:
    """The folder that relative paths of sources start from: `GAUNTLET_DATA`, else `data` in the clone."""
    return Path(os.environ.get("GAUNTLET_DATA") or clone_dir() / "data").absolute()


def names_text(names: Iterable[str], limit: int = 20) -> str:
    """Column names for a message: quoted, each cut to 40 characters, at most `limit` of them."""
    every = [str(name) for name in names]
    quoted = [f"'{name if len(name) <= 40 else name[:39] + '…'}'" for name in every[:limit]]
    more = f", … ({len(every)} in all)" if len(every) > limit else ""
    return (", ".join(quoted) + more) or "nothing"


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{close[0][:40]}'?" if close else ""


def require_columns(have: Iterable[str], needed: Sequence[str], where: str, first_line: bool = True) -> None:
    """Stop where a needed column is missing.

    Names from the `first_line` of a file are listed only if half of the expected ones are among them: else that line
    may be data.

    Raises:
        DataError: Names what is missing, what is near, what exists and what to do.
    """
    columns = [str(name) for name in have]
    missing = [name for name in needed if name not in columns]
    if not missing:
        return
    if first_line and 2 * len(missing) > len(needed):
        found = len(needed) - len(missing)
        raise DataError(
            f"{where}: {found or 'none'} of the {len(needed)} declared columns ({names_text(needed, 5)}) "
            f"{'is' if found < 2 else 'are'} among the {len(columns)} names of the first line; is the separator right, "
            "and is the first line a header?"
        )
    hints = [f"'{name}'{near(name, columns)}" for name in missing[:5]]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise DataError(
        f"{where}: declared columns are missing: {', '.join(hints)}{more}. There is: {names_text(columns)}. "
        "Rename them in the data or in the model's YAML"
    )


def read_bytes(source: FileSource, others: Sequence[str] = ()) -> bytes:
    """The whole content of a source's file: relative to `GAUNTLET_DATA`, absolute, or any fsspec URL.

    Raises:
        DataError: It is missing, empty or cannot be read; names the ways to get it.
    """
    remote = "://" in source.path
    place = source.path if remote else str(data_dir() / Path(source.path).expanduser())
    try:
        content = _fetched(source.path) if remote else Path(place).read_bytes()
    except FileNotFoundError as error:
        bucket = source.path.startswith("s3://") and "bucket" in str(error).lower()
        raise DataError(not_there(source, others, "bucket" if bucket else "")) from None
    except Exception as error:  # fsspec's file systems each raise their own
        raise DataError(unreadable(source, place, error, others)) from None
    if not content.strip():
        raise DataError(f"source '{source.name}': {shown(source.path)} is empty; give it a header and rows")
    return content


def _fetched(address: str) -> bytes:
    """The bytes behind an fsspec URL."""
    import fsspec

    with fsspec.open(address, "rb", **anew(address)) as file:
        content: bytes = file.read()
    return content


def anew(address: str) -> dict[str, bool]:
    """What makes fsspec open an address by a file system that remembers no earlier listing or credentials."""
    return {} if "::" in address or "://" not in address else {"skip_instance_cache": True}


def unreadable(source: FileSource, place: str, error: Exception, others: Sequence[str]) -> str:
    """What is said of a place that cannot be read."""
    told = f": {str(error)[:120]}" if isinstance(error, ImportError | IsADirectoryError) else ""
    advice = "check the path and the right to read it"
    if source.path.startswith("s3://"):
        advice = (
            "check the path and the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and (for a server of your own) "
            "AWS_ENDPOINT_URL"
        )
    said = f"{shown(place)} cannot be read ({type(error).__name__}{told})"
    return f"source '{source.name}': {said}; {advice}{_other_ways(others)}"


def read_table(content: bytes, source: FileSource, needed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The needed columns of a file as raw values (CSV: text, missing is None), and the names of all others.

    Raises:
        DataError: The file is no such table, or a needed column is missing.
        ConfigError: The separator is not one character, or the encoding is unknown.
    """
    where = f"source '{source.name}' ({shown(source.path)})"
    if source.kind == "parquet":
        return _parquet(content, source, needed, where)
    content = utf8(content, source.encoding, where)
    names = header(content, source.separator, where)
    if len(names) == 1 and len(needed) > 1:
        better = [s for s in SEPARATORS if s in names[0] and s != source.separator]
        advice = f"set separator: {better[0]!r} in the YAML" if better else "set `separator` in the YAML"
        raise DataError(f"{where}: the separator {source.separator!r} does not occur in the first line; {advice}")
    require_columns(names, needed, where)
    frame = csv_frame(content, source.separator, names, where, source.missing_values, needed)
    return frame, [name for name in names if name not in needed]


def utf8(content: bytes, encoding: str, where: str) -> bytes:
    """The same text as UTF-8 without a byte order mark.

    Raises:
        DataError: The bytes are no such text; says at which line.
        ConfigError: The encoding is unknown.
    """
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise ConfigError(f"{where}: unknown encoding '{encoding[:40]}'; try utf-8 or latin-1") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) and not codec.startswith("utf-16"):
        raise DataError(f"{where}: this is UTF-16 text, not {encoding}; set `encoding: utf-16`")
    kind = next((text for start, text in _SIGNATURES.items() if content.startswith(start)), "")
    if kind or (b"\0" in content and not codec.startswith(("utf-16", "utf-32"))):
        raise DataError(f"{where}: this is no text but {kind or 'binary data'}; give a CSV file, or `kind: parquet`")
    plain = codec in UTF8
    try:
        text = content.decode("utf-8" if plain else encoding)
    except (UnicodeError, ValueError) as error:
        line = content.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise DataError(f"{where}: line {line} is no {encoding} text; set `encoding`, for example latin-1") from None
    if plain:
        return content.removeprefix(b"\xef\xbb\xbf")
    return text.removeprefix("\ufeff").encode()


def header(content: bytes, separator: str, where: str) -> list[str]:
    """Names in the first line that is not blank.

    Raises:
        DataError: There is none, or a name comes twice.
        ConfigError: The separator is not one character.
    """
    if len(separator) != 1 or separator in '\r\n"':
        raise ConfigError(f"{where}: the separator must be one character, found {separator[:20]!r}")
    start = content[: 1 << 20].decode("utf-8", errors="ignore")
    try:
        names = next((row for row in csv.reader(io.StringIO(start, newline=""), delimiter=separator) if row), [])
    except csv.Error:
        names = []
    if not any(name.strip() for name in names):
        raise DataError(f"{where}: the first line holds no column names; give it a header")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column names come twice: {names_text(twice, 5)}; rename or remove one of each")
    return names


def csv_frame(
    content: bytes,
    separator: str,
    names: Sequence[str],
    where: str,
    missing: Sequence[str] = MISSING,
    wanted: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Cells of a UTF-8 CSV as text, missing ones as None; every row must have as many fields as the header.

    Raises:
        DataError: Rows are ragged, a quote is left open, or there are no rows.
    """
    from pyarrow import ArrowException
    from pyarrow import csv as arrow_csv
    from pyarrow import string as arrow_string

    ragged: list[tuple[int | None, int]] = []

    def note(row: "arrow_csv.InvalidRow") -> str:
        ragged.append((row.number, row.actual_columns))
        return "skip"

    def parse(threads: bool) -> "pd.DataFrame":
        table = arrow_csv.read_csv(
            io.BytesIO(content if content.endswith(b"\n") else content + b"\n"),
            arrow_csv.ReadOptions(use_threads=threads, block_size=_BLOCK),
            arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, arrow_string()),
                include_columns=list(wanted if wanted is not None else names),
                null_values=[f"{a}{m}{b}" for m in missing for a in ("", " ") for b in ("", " ")],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
        return table.to_pandas()

    try:
        frame = parse(threads=True)
        if ragged:
            count = len(ragged)
            ragged.clear()
            parse(threads=False)  # rows are numbered only without threads
            number, fields = ragged[0]
            raise DataError(
                f"{where}: {count} rows do not have the header's {len(names)} fields (first: row {number}, with "
                f"{fields}); quote values that hold the separator {separator!r}, and complete or remove short rows"
            )
    except ArrowException:
        raise DataError(
            f"{where}: the text is no table with the separator {separator!r}: a quote is left open, or a row is "
            f"longer than {_BLOCK >> 20} MiB; repair the file"
        ) from None
    if frame.empty:
        raise DataError(f"{where}: there is a header and no rows; give it data")
    return frame


def _parquet(content: bytes, source: FileSource, needed: Sequence[str], where: str) -> tuple[pd.DataFrame, list[str]]:
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        names = file.schema_arrow.names
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"{where}: column names come twice: {names_text(twice, 5)}; rename or remove one of each")
        require_columns(names, needed, where)
        table = file.read(columns=list(needed))
        frame = table.to_pandas(integer_object_nulls=True).reset_index()[list(needed)]
    except MemoryError:
        raise
    except (ArrowException, OSError, ValueError):
        raise DataError(f"{where}: this is no readable Parquet file; write it anew, or set `kind: csv`") from None
    frame = missing_texts(frame, table.schema, source)
    if frame.empty:
        raise DataError(f"{where}: there are columns and no rows; give it data")
    return frame, [name for name in names if name not in needed]


def missing_texts(frame: pd.DataFrame, schema: "pa.Schema", source: FileSource) -> pd.DataFrame:
    """The frame of a Parquet file's cells, in which texts that mean missing are missing."""
    from pyarrow import types

    texts = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
    return frame.assign(**{name: frame[name].mask(frame[name].isin(source.missing_values)) for name in texts})


def not_there(source: FileSource, others: Sequence[str], what: str = "") -> str:
    """What is said of a place where nothing is."""
    if "://" in source.path or Path(source.path).is_absolute():
        looked = f"there is no {what or 'file'} {shown(source.path)}"
        first = "put it there or correct `path`"
    else:
        set_now = "GAUNTLET_DATA" if os.environ.get("GAUNTLET_DATA") else "GAUNTLET_DATA is not set, so"
        looked = f"there is no {f'{what} ' if what else ''}{shown(source.path)} under {set_now} {data_dir()}"
        first = "set GAUNTLET_DATA to the folder that holds it"
    fetch = f"; get it from: {source.fetch[:300]}" if source.fetch else ""
    return f"source '{source.name}': {looked}. To go on: {first}{fetch}{_other_ways(others)}"


def _other_ways(others: Sequence[str]) -> str:
    return f"; or use another source: {', '.join(f'--source {name}' for name in others)}" if others else ""
