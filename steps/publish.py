"""Writing answers out: their parts to one CSV or Parquet file, or to a table of a database, all of them or none."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
import sqlalchemy as sa
from pyarrow import types

from models.errors import ConfigError, WorkError, shown
from stacks.home import home_dir
from steps.database import writing
from steps.resume import Order
from steps.table import Kind, kind_of

RUN: Final = "batch_run"
_TYPES: Final[tuple[tuple[Callable[[pa.DataType], bool], Callable[[], Any]], ...]] = (
    (types.is_boolean, sa.Boolean),
    (types.is_integer, sa.BigInteger),
    (types.is_floating, sa.Double),
    (types.is_timestamp, sa.DateTime),
    (types.is_date, sa.Date),
)


class Output(Protocol):
    """Where answers go."""

    @property
    def folder(self) -> Path:
        """Where the run that writes there remembers how far it is; its parent is there."""

    def exists(self) -> bool:
        """Whether something is in the place that it would take."""

    def holds(self, digest: str) -> bool:
        """Whether what was published under a digest is still there."""

    def publish(self, parts: Iterable[pa.Table], schema: pa.Schema) -> str:
        """Write all parts, or none; a digest of what was written."""


def output_of(order: Order) -> Output:
    """The place that an order names.

    Raises:
        ConfigError: It is neither a CSV or Parquet file nor a database with a table.
    """
    address, kind = order.output, kind_of(order.output)
    if (kind == "sql") != bool(order.table):
        said = "database, which needs" if kind == "sql" else "file, which takes no"
        raise ConfigError(f"{shown(address)} is a {said} --table")
    if kind != "sql":
        return OutputFile(Path(address), kind)
    return DatabaseTable(address, order.table or "", hashlib.sha256(order.model_dump_json().encode()).hexdigest()[:16])


@dataclass(frozen=True)
class OutputFile:
    """A CSV or Parquet file."""

    path: Path
    kind: Kind

    @property
    def folder(self) -> Path:
        """Beside the file.

        Raises:
            WorkError: There is no such place.
        """
        if not self.path.absolute().parent.is_dir():
            raise WorkError(f"output {shown(str(self.path))}: there is no such folder; make it first")
        return self.path.with_name(f"{self.path.name}.run")

    def exists(self) -> bool:
        """Whether there is a file of that name."""
        return self.path.exists()

    def holds(self, digest: str) -> bool:
        """Whether the file has that SHA-256."""
        return self.path.is_file() and _sum(self.path) == digest

    def publish(self, parts: Iterable[pa.Table], schema: pa.Schema) -> str:
        """Write the file beside and put it in place; its SHA-256.

        Raises:
            WorkError: It cannot be written.
        """
        from pyarrow import csv, parquet

        draft = self.folder / "draft"
        open_writer = csv.CSVWriter if self.kind == "csv" else parquet.ParquetWriter
        try:
            with open_writer(str(draft), schema) as writer:
                for part in parts:
                    writer.write_table(part)
            digest = _sum(draft)
            draft.replace(self.path)
        except OSError as error:
            raise WorkError(f"output {shown(str(self.path))} cannot be written: {error.strerror}") from None
        return digest


@dataclass(frozen=True)
class DatabaseTable:
    """A table of a database, which holds the answers of many orders.

    Attributes:
        address: URL of the database.
        table: Name of the table.
        run: What the order is known by, in the table and as the name of the run's folder: each has its own, so that
            many may write to one table.
    """

    address: str
    table: str
    run: str

    @property
    def folder(self) -> Path:
        """In this clone's home."""
        home = home_dir() / "batch"
        home.mkdir(parents=True, exist_ok=True)
        return home / self.run

    def exists(self) -> bool:
        """Whether anything is in the way: never, an order's answers replace its own only."""
        return False

    def holds(self, digest: str) -> bool:
        """Whether the table has a row of that prediction id.

        Raises:
            DataError: The database cannot be used.
        """
        with writing(self.address, self._where) as connection:
            return sa.inspect(connection).has_table(self.table) and _has(connection, self.table, digest)

    def publish(self, parts: Iterable[pa.Table], schema: pa.Schema) -> str:
        """Put all rows in the place of the order's earlier ones, in one transaction; the first's prediction id.

        Whichever home the earlier ones came from: the table itself knows whose they are. What is there already stays.

        Raises:
            DataError: The database cannot be used, or refuses the rows.
        """
        table = sa.Table(self.table, sa.MetaData(), *(_column(field) for field in schema), _run_column())
        first = ""
        with writing(self.address, self._where) as connection:
            _prepare(connection, table)
            for rows in (part.to_pylist() for part in parts if part.num_rows):
                if not first:
                    first = str(rows[0]["prediction_id"])
                    if _has(connection, self.table, first):
                        return first
                    connection.execute(sa.delete(table).where(table.c[RUN] == self.run))
                connection.execute(sa.insert(table), [{**row, RUN: self.run} for row in rows])
            if not first:
                connection.execute(sa.delete(table).where(table.c[RUN] == self.run))
        return first

    @property
    def _where(self) -> str:
        return f"output {shown(self.address)}, table {self.table[:60]}"


def _run_column() -> "sa.Column[Any]":
    return sa.Column(RUN, sa.String(16), index=True)


def _prepare(connection: sa.Connection, table: sa.Table) -> None:
    """Make the table, or give one that is there without it the column that says whose its rows are."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(table.name):
        table.create(connection)
    elif RUN not in {column["name"] for column in inspector.get_columns(table.name)}:
        names = connection.dialect.identifier_preparer
        kind = table.c[RUN].type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {names.format_table(table)} ADD COLUMN {names.quote(RUN)} {kind}")


def _column(field: pa.Field) -> "sa.Column[Any]":
    if field.name == "prediction_id":
        return sa.Column(field.name, sa.String(48), primary_key=True)
    return sa.Column(field.name, next((made for is_kind, made in _TYPES if is_kind(field.type)), sa.Text)())


def _has(connection: sa.Connection, table: str, identity: str) -> bool:
    column: sa.ColumnClause[str] = sa.column("prediction_id")
    known = sa.select(column).select_from(sa.table(table, column)).where(column == identity).limit(1)
    return connection.execute(known).first() is not None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
