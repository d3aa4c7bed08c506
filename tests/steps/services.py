"""Databases that tests read: real servers on this machine, or a skip that says what is missing."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from tests.databases import MYSQL, POSTGRES

SERVERS = {
    "postgresql": POSTGRES,
    "mariadb": MYSQL,
}


def server(kind: str) -> str:
    """The address of a server that answers."""
    engine = sa.create_engine(SERVERS[kind], poolclass=sa.NullPool, connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        if os.environ.get("GAUNTLET_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"no {kind} answers: set GAUNTLET_TEST_{'POSTGRES' if kind == 'postgresql' else 'MYSQL'}")
    return SERVERS[kind]


def filled(url: str, table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """A new table with these rows: the database's address and the table's name; dropped afterwards."""
    name = f"rows_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    table.to_sql(name, engine, index=False)
    yield url, name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")


def sqlite(folder: Path) -> str:
    """The address of a database file to be."""
    return f"sqlite:///{folder / 'rows.db'}"
