"""Tables of any size: the rows of a CSV, a Parquet file or a query, an even number of them at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
from pyarrow import compute
from pydantic import ValidationError

from models.config import MISSING, REFERENCE, SqlSource
from models.errors import ConfigError, DataError, bounded, shown
from steps.read import header, names_text, near, require_columns

Kind = Literal["csv", "parquet", "sql"]
SUFFIXES: dict[str, Kind] = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_BLOCK = 1 << 24
_START = 1 << 20
_BLANKS = pa.array([f"{a}{m}{b}" for m in MISSING for a in ("", " ") for b in ("", " ")])


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Attributes:
        frame: The cells that are read, raw; missing is None.
        kept: The columns that are handed on, as the table holds them; of a query, as text.
    """

    frame: pd.DataFrame
    kept: pa.Table


@dataclass(frozen=True)
class Table:
    """A table that can be read again and again.

    Attributes:
        kind: What it is.
        address: Path of a file, from the current folder; URL of a database.
        query: What a database is asked; "" of a file.
        separator: Between the cells of a CSV.
    """

    kind: Kind
    address: str
    query: str = ""
    separator: str = ","

    @classmethod
    def of(cls, address: str, query: str | None = None, separator: str = ",") -> "Table":
        """The table at an address.

        Raises:
            ConfigError: It is neither a CSV or Parquet file nor a database with its query.
        """
        kind = kind_of(address)
        if (kind == "sql") != bool(query):
            raise ConfigError(
                f"{shown(address)} is a {'database, which needs' if kind == 'sql' else 'file, which takes no'} --query"
            )
        return cls(kind, address, query or "", separator)

    @property
    def where(self) -> str:
        """The table in messages."""
        return f"input {shown(self.address)}"

    def chunks(self, wanted: Sequence[str], kept: Sequence[str], rows: int) -> Iterator[Chunk]:
        """Read the table in its order, `rows` rows at a time, of which only the last chunk may have fewer.

        Args:
            wanted: Columns that are read.
            kept: Columns that are handed on as they are; they may be among the others.
            rows: How many at a time.

        Raises:
            DataError: There is no such table, a column or all rows are missing, or it cannot be read.
            ConfigError: A database's URL is none, or a variable in it is not set.
        """
        needed = list(dict.fromkeys((*wanted, *kept)))
        if self.kind == "sql":
            yield from self._queried(needed, wanted, kept, rows)
            return
        empty = True
        with self._reading():
            batches = self._csv(needed) if self.kind == "csv" else self._parquet(needed, rows)
            for table in _even(batches, rows):
                empty = False
                yield _chunk(table, wanted, kept)
        if empty:
            raise DataError(f"{self.where}: there are columns and no rows; give it data")

    def names(self) -> list[str]:
        """Names of a file's columns.

        Raises:
            DataError: There is no such file, or it is no such table.
            ConfigError: It is no file.
        """
        from pyarrow import parquet

        if self.kind == "sql":
            raise ConfigError(f"{self.where}: give a CSV or Parquet file")
        with self._reading():
            return self._header() if self.kind == "csv" else list(parquet.read_schema(self.address).names)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DataError(f"{self.where}: there is no such file; a path starts at the current folder") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            # Arrow's own words quote the row.
            said = "is no UTF-8 text" if "UTF8" in str(error) else f"cannot be read as {self.kind}"
            raise DataError(f"{self.where}: it {said} ({type(error).__name__}); write it anew") from None

    def _header(self) -> list[str]:
        with Path(self.address).open("rb") as file:
            start = file.read(_START).removeprefix(b"\xef\xbb\xbf")
        if b"\0" in start or start.startswith(b"PAR1"):
            raise DataError(f"{self.where}: this is binary data and no text; give a CSV file, or name it .parquet")
        return header(start, self.separator, self.where)

    def _csv(self, needed: Sequence[str]) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv

        ragged: list[tuple[int, int]] = []

        def note(row: csv.InvalidRow) -> str:
            ragged.append((row.number, row.actual_columns))
            return "skip"

        names = self._header()
        require_columns(names, needed, self.where)
        reader = csv.open_csv(
            self.address,
            csv.ReadOptions(use_threads=False, block_size=_BLOCK),  # rows are numbered only without threads
            csv.ParseOptions(delimiter=self.separator, newlines_in_values=True, invalid_row_handler=note),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=list(needed), strings_can_be_null=False
            ),
        )
        for batch in reader:
            if ragged:
                break
            yield batch
        if ragged:
            row, fields = ragged[0]
            raise DataError(
                f"{self.where}: line {row} has {fields} fields, the header {len(names)}; quote values that hold the "
                f"separator {self.separator!r}, and complete or remove such rows"
            )

    def _parquet(self, needed: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        from pyarrow import parquet

        file = parquet.ParquetFile(self.address)
        require_columns(file.schema_arrow.names, needed, self.where, first_line=False)
        yield from file.iter_batches(rows, columns=list(needed))

    def _queried(self, needed: Sequence[str], wanted: Sequence[str], kept: Sequence[str], rows: int) -> Iterator[Chunk]:
        from steps.database import query_rows

        try:
            source = SqlSource(name="input", kind="sql", url=self.address, query=self.query, chunk=rows)
        except ValidationError as error:
            raise ConfigError(f"{self.where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        for chunk in query_rows(source, needed):
            texts = {n: [None if pd.isna(v) else str(v) for v in chunk.frame[n]] for n in kept}
            yield Chunk(chunk.frame[list(wanted)], pa.table({n: pa.array(texts[n], pa.string()) for n in kept}))


def kind_of(address: str) -> Kind:
    """What an address is of.

    Raises:
        ConfigError: Of nothing that is known here.
    """
    if "://" in address or REFERENCE.fullmatch(address):
        return "sql"
    suffix = Path(address).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"'{bounded(shown(address), 200)}' ends in none of {names_text(SUFFIXES)}{near(suffix, SUFFIXES)} "
            "and is no database URL, such as sqlite:///file.db"
        )
    return SUFFIXES[suffix]


def _even(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows; the last one may have fewer."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count < rows:
            continue
        table = pa.Table.from_batches(held)
        for start in range(0, count - rows + 1, rows):
            yield table.slice(start, rows)
        rest = table.slice(count - count % rows)
        held, count = rest.to_batches(), rest.num_rows
    if count:
        yield pa.Table.from_batches(held)


def _chunk(table: pa.Table, wanted: Sequence[str], kept: Sequence[str]) -> Chunk:
    read = pa.table({name: _unmarked(table.column(name)) for name in wanted})
    return Chunk(read.to_pandas(integer_object_nulls=True), table.select(list(kept)))


def _unmarked(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in which texts that mean missing are missing."""
    if not pa.types.is_string(column.type):
        return column
    return compute.if_else(compute.is_in(column, value_set=_BLANKS), pa.scalar(None, pa.string()), column)
