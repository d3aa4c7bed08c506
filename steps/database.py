"""Querying: the answer of an SQL query, some rows at a time, read-only where the database can; and writing to one."""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pandas as pd
from pydantic import ValidationError
from sqlalchemy import URL, Connection, CursorResult, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from models.config import REFERENCE, SqlSource
from models.errors import ConfigError, DataError
from steps.read import Chunk, data_dir, names_text, object_frame, require_columns
from steps.variables import expand

CONNECT_SECONDS = 10
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
_REFUSED = ("28", "1044", "1045", "1698")
_UNKNOWN = ("3D000", "1049")
# Codes whose texts speak of the query and the tables; others may quote a value of the data.
_SPEAKING = ("25", "3F", "42", "53", "57", "1054", "1064", "1142", "1143", "1146", "1792")


def query_rows(source: SqlSource, needed: Sequence[str]) -> Iterator[Chunk]:
    """Run a source's query and give the needed columns, `chunk` rows at a time, as the driver typed them.

    The transaction is read-only on PostgreSQL, MySQL, MariaDB and SQLite, and rolled back everywhere.

    Raises:
        DataError: The database does not answer or refuses, or the answer is not what the YAML declares.
        ConfigError: The URL is none, a variable is missing, or its database has no driver here.
    """
    where = f"source '{source.name}'"
    url = _url(source, where)
    url = _read_only_file(url, where) if url.get_backend_name() == "sqlite" else url
    with _connected(source, url, where) as connection:
        try:
            yield from _chunks(_read_only(connection), source, needed, where)
        except SQLAlchemyError as error:
            raise DataError(f"{where}: the query failed: {_said(error, url)}; correct `query`") from None


@contextmanager
def writing(address: str, where: str) -> Iterator[Connection]:
    """One transaction of a database that is written to: committed at the end, taken back when anything fails.

    Args:
        address: SQLAlchemy URL, as a source's; a relative path of SQLite starts at `GAUNTLET_DATA`.
        where: What is written, for messages.

    Raises:
        DataError: The database does not answer, or refuses.
        ConfigError: The URL is none, holds a password, or a variable in it is not set.
    """
    try:
        source = SqlSource(name="output", kind="sql", url=address, query="-")
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    url = _url(source, where)
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(data_dir() / url.database))
    with _connected(source, url, where) as connection:
        try:
            with connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise DataError(f"{where}: the database refused: {_said(error, url)}; nothing was written") from None


@contextmanager
def _connected(source: SqlSource, url: URL, where: str) -> Iterator[Connection]:
    """A connection, and nothing left open after it."""
    engine = _engine(url, where)
    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise DataError(_no_connection(error, source, url, where)) from None
        with connection:
            yield connection
    finally:
        engine.dispose()


def _chunks(connection: Connection, source: SqlSource, needed: Sequence[str], where: str) -> Iterator[Chunk]:
    streaming = {"stream_results": True, "max_row_buffer": source.chunk, "no_parameters": True}
    with closing(connection.exec_driver_sql(source.query, execution_options=streaming)) as result:
        yield from _partitions(result, source, needed, where)


def _partitions(result: CursorResult[Any], source: SqlSource, needed: Sequence[str], where: str) -> Iterator[Chunk]:
    if not result.returns_rows:
        raise DataError(f"{where}: the query returns no table; write one that begins with SELECT")
    names = [str(name) for name in result.keys()]  # noqa: SIM118 - a result is no dict
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: column names come twice: {names_text(twice, 5)}; name them apart with AS")
    require_columns(names, needed, where, first_line=False)
    extra = tuple(name for name in names if name not in needed)
    empty = True
    for rows in result.partitions(source.chunk):
        empty = False
        yield Chunk(_frame(rows, names, needed), extra)
    if empty:
        raise DataError(f"{where}: the query returned no rows; check its conditions, or fill the table")


def _frame(rows: Sequence[Any], names: Sequence[str], needed: Sequence[str]) -> pd.DataFrame:
    columns = list(zip(*rows, strict=True))
    return object_frame({name: _plain(columns[names.index(name)]) for name in needed})


def _plain(cells: Sequence[Any]) -> Sequence[Any]:
    """The cells, identifiers of PostgreSQL as text."""
    return [str(cell) if isinstance(cell, UUID) else cell for cell in cells] if UUID in set(map(type, cells)) else cells


def _url(source: SqlSource, where: str) -> URL:
    """The address with its variables filled in; each value is taken as it is, without any quoting."""
    try:
        if REFERENCE.fullmatch(source.url):
            url = make_url(expand(source.url, f"{where}: url"))
        else:
            url = make_url(source.url)
            expand(source.url, f"{where}: url")  # names all missing variables at once
            url = url.set(
                username=expand(url.username or "", where) or None,
                password=expand(str(url.password or ""), where) or None,
                host=expand(url.host or "", where) or None,
                database=expand(url.database or "", where) or None,
                query={
                    key: expand(text, where) if isinstance(text, str) else tuple(expand(each, where) for each in text)
                    for key, text in url.query.items()
                },
            )
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"{where}: url is no database address; write dialect://user:${{PASSWORD}}@host:port/database, or "
            "${VARIABLE} for the whole of it"
        ) from None
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _read_only_file(url: URL, where: str) -> URL:
    name = url.database or ""
    if not name or name == ":memory:" or name.startswith("file:"):
        return url
    path = data_dir() / name
    if not path.is_file():
        raise DataError(f"{where}: there is no database file {path}; a relative path starts at GAUNTLET_DATA")
    return url.set(database=f"file:{quote(str(path))}", query={**url.query, "mode": "ro", "uri": "true"})


def _engine(url: URL, where: str) -> Engine:
    timed = {"connect_timeout": CONNECT_SECONDS} if url.get_backend_name() in _DRIVERS else {}
    try:
        return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=timed)
    except (NoSuchModuleError, ModuleNotFoundError):
        raise ConfigError(
            f"{where}: url: there is no driver for '{url.drivername[:40]}'; installed are postgresql+psycopg, "
            "mysql+pymysql, mariadb+pymysql and sqlite; others are Python packages to install"
        ) from None


def _read_only(connection: Connection) -> Connection:
    backend = connection.dialect.name
    if backend == "postgresql":
        return connection.execution_options(postgresql_readonly=True)
    if backend in _DRIVERS:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.rollback()
    return connection


def _code(error: SQLAlchemyError) -> str:
    """SQLSTATE of PostgreSQL, number of MySQL, else nothing."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    arguments = getattr(cause, "args", ())
    number = arguments[0] if arguments and isinstance(arguments[0], int) else ""
    return str(getattr(cause, "sqlstate", None) or number)


def _no_connection(error: SQLAlchemyError, source: SqlSource, url: URL, where: str) -> str:
    text, code = str(error).lower(), _code(error)
    place = f"{url.get_backend_name()} at {url.host or 'localhost'}" + (f":{url.port}" if url.port else "")
    variables = REFERENCE.findall(source.url)
    check = f"check {', '.join(variables)}" if variables else "check `url`"
    if code.startswith(_REFUSED) or re.search(r'authentication failed|access denied|role ".*" does not exist', text):
        return f"{where}: {place} refuses the user or the password; {check}"
    if code in _UNKNOWN or re.search(r'database ".*" does not exist', text):
        return f"{where}: {place} has no such database, or not for this user; {check}"
    if url.get_backend_name() == "sqlite":
        return f"{where}: the database file cannot be opened; {check} and the right to read it"
    reasons = {"refused": "refused", "timeout": "no answer in time", "timed out": "no answer in time"}
    reasons |= {"resol": "unknown host", "name or service": "unknown host"}
    reason = next((said for word, said in reasons.items() if word in text), type(error).__name__)
    return f"{where}: {place} cannot be reached ({reason}); is it up, and is the address right?"


def _said(error: SQLAlchemyError, url: URL) -> str:
    """The database's words where they speak of the query only; without them its code."""
    code = _code(error)
    cause = error.orig if isinstance(error, DBAPIError) else None
    if cause is None:
        return type(error).__name__
    if not code.startswith(_SPEAKING) and url.get_backend_name() != "sqlite":
        return f"{type(error).__name__}{f', code {code}' if code else ''}"
    words = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause.args[-1])
    line = words.strip().splitlines()[0][:200]
    return line.replace(url.password, "***") if url.password else line
