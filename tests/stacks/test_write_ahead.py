"""ZenML's SQLite file: what its log is set to, by whom, and that a home of before is changed too."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.zen_stores.sql_zen_store import SqlZenStore

from stacks.home import clone_dir
from stacks.stack_file import ensure_active
from stacks.write_ahead import write_ahead

NORMAL, FULL = 1, 2


def _store() -> SqlZenStore:
    store = Client().zen_store
    assert isinstance(store, SqlZenStore)
    return store


@pytest.fixture
def file(home: Path) -> Iterator[Path]:
    """The file of a store that was just opened, with SQLite's defaults."""
    _forget()
    path = Path(_store().config.database or "")
    assert path.is_relative_to(home)
    _store().engine.dispose()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    yield path
    _forget()


def _forget() -> None:
    """Have ZenML open its store anew."""
    _store().engine.dispose()
    Client._reset_instance()
    GlobalConfiguration._reset_instance()


def _settings() -> tuple[str, int]:
    with _store().engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        return str(mode), int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())


def test_the_first_use_of_a_process_sets_it_and_the_second_changes_nothing(file: Path) -> None:
    assert _settings() == ("delete", FULL)
    ensure_active()
    assert _settings() == ("wal", NORMAL)
    write_ahead()
    assert _settings() == ("wal", NORMAL)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_being_read_keeps_its_settings_and_works(file: Path) -> None:
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM stack").fetchone()
        write_ahead()
        assert _settings() == ("delete", FULL), "without the log every commit has to reach the disk"
    assert Client().active_stack_model.name


@pytest.mark.usefixtures("file")
def test_a_commit_that_a_process_made_outlives_its_kill() -> None:
    ensure_active()
    code = (
        "import os, signal; from stacks.stack_file import ensure_active; ensure_active();"
        "from zenml.client import Client; Client().create_tag('kept', exclusive=False);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=clone_dir(), timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Client().get_tag("kept").name == "kept"
