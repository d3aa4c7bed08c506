"""Databases of a test, their files too: SQLite, or a schema of its own in `GAUNTLET_TEST_POSTGRES`."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

POSTGRES = os.environ.get("GAUNTLET_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test")
MYSQL = os.environ.get("GAUNTLET_TEST_MYSQL", "mariadb+pymysql://root@127.0.0.1:3306/test")


def postgres_schema() -> Iterator[str]:
    engine = sa.create_engine(POSTGRES, poolclass=sa.NullPool, connect_args={"connect_timeout": 3})
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    except sa.exc.OperationalError:
        if os.environ.get("GAUNTLET_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip("no PostgreSQL answers: set GAUNTLET_TEST_POSTGRES")
    yield f"{POSTGRES}?options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {name} CASCADE"))


def files_holding(text: str, *paths: Path) -> list[str]:
    """Files, or files in folders, that hold a text.

    Another process reads them: SQLite's locks on a file are gone once this one has read and closed it by other means,
    and a database in use is damaged then (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    done = subprocess.run(["grep", "-rlaF", "--", text, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def execute(url: str, *statements: str) -> None:
    """Run SQL behind the ledger's back."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def disarm(url: str) -> None:
    """Remove the triggers, as somebody who owns the database could."""
    names = ("ledger_no_update", "ledger_no_delete", "ledger_only_append")
    sqlite = [f"DROP TRIGGER {name}" for name in names]
    execute(url, *(sqlite if url.startswith("sqlite") else ["ALTER TABLE ledger DISABLE TRIGGER ALL"]))
