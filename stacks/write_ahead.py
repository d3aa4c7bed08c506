"""ZenML's own SQLite file with a write-ahead log: its commits do not wait for the disk, nor readers for writers.

ZenML leaves SQLite's defaults, by which each of the 260 commits of a small run waits for the disk several times.
"""

import contextlib
from typing import Any, Final

PATIENCE_MS: Final = 500


def write_ahead() -> None:
    """Have ZenML's database keep a write-ahead log, where it is a file of this machine; twice is the same as once.

    A killed process loses nothing. A machine that loses power may lose ZenML's last records of a run, but never the
    file; verdicts are in the ledger, which waits for the disk.
    """
    import sqlalchemy as sa
    from zenml.client import Client
    from zenml.zen_stores.sql_zen_store import SqlZenStore

    store = Client().zen_store
    if not isinstance(store, SqlZenStore) or store.engine.dialect.name != "sqlite":
        return
    if sa.event.contains(store.engine, "connect", _wait_for_no_disk):
        return
    # A file that others are using right now is changed by a later run.
    with contextlib.suppress(sa.exc.OperationalError), store.engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    sa.event.listen(store.engine, "connect", _wait_for_no_disk)
    store.engine.dispose()


def _wait_for_no_disk(connection: Any, _: object) -> None:
    # Without the log, a file whose last commit never reached the disk may be damaged.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        connection.execute("PRAGMA synchronous = NORMAL")
