"""The source `sql` on real databases: the same rows as a CSV, bounded memory, no writes, no password in any text."""

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from models.config import ModelConfig, SqlSource
from models.errors import LIMIT, ConfigError, DataError
from stacks.home import home_dir
from steps import database
from steps.ingest import ingest_frame, source_digest, source_line
from tests.steps.services import filled, server, sqlite
from tests.steps.tables import SECRETS, make_config, make_table, write

PASSWORD = "s3cr3t/p@ss:word"
Table = tuple[str, str]


def _native() -> pd.DataFrame:
    table = make_table()
    table.loc[3, "size"] = None
    return table.assign(when=pd.to_datetime(table["when"]), member=table["member"] == "yes")


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    url = sqlite(tmp_path) if request.param == "sqlite" else server(request.param)
    yield from filled(url, _native())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Table]:
    yield from filled(sqlite(tmp_path), _native())


def _config(url: str, query: str, **changes: Any) -> ModelConfig:
    source = {"name": "base", "kind": "sql", "url": url, "query": query, "chunk": changes.pop("chunk", 70)}
    return make_config(sources=[source], **changes)


def _execute(url: str, statement: str) -> list[Any]:
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        result = connection.exec_driver_sql(statement)
        return list(result) if result.returns_rows else []


def _refused(config: ModelConfig, *said: str, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        ingest_frame(config)
    text = str(caught.value)
    hidden = caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.__cause__ is None and hidden, "no driver's error is shown with it"
    assert len(text) <= LIMIT and "\n" not in text
    for part in said:
        assert part in text, text
    for secret in (*SECRETS, PASSWORD):
        assert secret not in text
    return text


def test_a_query_gives_the_same_data_as_a_csv(table: Table, tmp_path: Path) -> None:
    url, name = table
    config = _config(url, f"SELECT * FROM {name}")
    ingested = ingest_frame(config)
    from_file = ingest_frame(make_config(write(tmp_path, _native())))
    keys = [*config.columns, "y"]
    pd.testing.assert_frame_equal(
        ingested.frame.sort_values(keys, ignore_index=True), from_file.frame.sort_values(keys, ignore_index=True)
    )
    assert ingested.source_line.endswith("200 rows, 5 columns")


def test_the_digest_follows_the_rows_and_not_their_order(table: Table) -> None:
    url, name = table
    config = _config(url, f"SELECT * FROM {name}")
    first, data = source_digest(config), ingest_frame(config).digest
    turned = _config(url, f"SELECT * FROM {name} ORDER BY steps DESC")
    assert ingest_frame(turned).digest == data
    assert source_digest(config) == first
    _execute(url, f"UPDATE {name} SET size = 12.25 WHERE steps = (SELECT m FROM (SELECT MIN(steps) m FROM {name}) x)")
    assert source_digest(config) != first and ingest_frame(config).digest != data


def test_ingest_takes_the_rows_that_the_digest_was_made_of(small: Table) -> None:
    url, name = small
    config = _config(url, f"SELECT * FROM {name}")
    digest = source_digest(config)
    before = ingest_frame(config)
    _execute(url, f"DELETE FROM {name} WHERE steps < 500")
    taken = ingest_frame(config, None, digest)
    assert taken.digest == before.digest and taken.rows == 200
    with pytest.raises(DataError, match="changed while it was read; run again"):
        ingest_frame(config, None, digest)


def test_no_personal_value_is_written_by_the_digest(tmp_path: Path) -> None:
    mails = [f"{i % 40}{SECRETS[0]}" for i in range(200)]
    columns = {"size": {"type": "number"}, "mail": {"type": "text", "personal": True}}
    split = {"by": "entity", "column": "mail"}
    frame = _native().assign(mail=mails, note=SECRETS[1])
    for url, name in filled(sqlite(tmp_path), frame):
        config = _config(url, f"SELECT * FROM {name}", columns=columns, split=split)
        digest = source_digest(config)
        folder = home_dir() / "cache" / "snapshots" / digest
        stored = b"".join(path.read_bytes() for path in folder.iterdir())
        kept = pd.read_parquet(folder / "frame.parquet")
        assert kept["mail"].str.fullmatch(r"p\.[0-9a-f]{64}").all() and kept["split_bucket"].notna().all()
        assert not any(secret.encode() in stored for secret in SECRETS[:2])
        assert ingest_frame(config, None, digest).rows == 200
        assert not folder.exists(), "what was taken is gone"


def test_values_that_drivers_type_in_their_own_way(tmp_path: Path) -> None:
    url = server("postgresql")
    columns = {
        "n": {"type": "number"},
        "id": {"type": "text", "feature": False},
        "day": {"type": "datetime"},
        "flag": {"type": "boolean"},
        "code": {"type": "category", "categories": [1, 2]},
    }
    query = (
        "SELECT 1.50::numeric AS n, '6f1c0000-0000-4000-8000-00000000000a'::uuid AS id, DATE '2024-02-03' AS day, "
        "true AS flag, 1::smallint AS code, 'yes' AS y, '100%' AS other UNION ALL "
        "SELECT NULL, NULL, NULL, NULL, NULL, 'no', 'a:b'"
    )
    ingested = ingest_frame(_config(url, query, columns=columns, chunk=1))
    frame = ingested.frame.sort_values("y", ascending=False, ignore_index=True)
    assert frame["n"][0] == float(Decimal("1.50")) and frame["id"][0] == "6f1c0000-0000-4000-8000-00000000000a"
    assert frame["day"][0] == pd.Timestamp("2024-02-03") and frame["flag"][0] == 1.0 and frame["code"][0] == "1"
    assert frame.loc[1, ["n", "id", "day", "flag", "code"]].isna().all()
    assert ingested.notices == ("columns that the YAML does not declare are left out: 'other'",)


def test_memory_is_bounded_by_the_chunk() -> None:
    """40,000 rows of 4 kB: 160 MB that are never there at once."""
    wide = "n, CASE WHEN n % 2 = 0 THEN 'yes' ELSE 'no' END AS y, repeat('x', 4000) AS wide"
    queries = [
        (server("postgresql"), f"SELECT {wide} FROM generate_series(1, {{}}) AS s(n)"),
        (server("mariadb"), f"SELECT {wide} FROM (SELECT seq AS n FROM seq_1_to_{{}}) AS s"),
    ]
    code = f"""
import resource
from tests.steps.test_sql_source import _config
from steps.ingest import ingest_frame
for url, query in {queries!r}:
    for rows in (10, 40_000):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        config = _config(url, query.format(rows), columns={{"n": {{"type": "integer"}}}}, chunk=1000)
        assert ingest_frame(config).rows == rows
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert all(int(grown) < 60 for grown in done.stdout.split()), f"{done.stdout} MiB"


@pytest.mark.parametrize("statement", ["DELETE FROM {t}", "DROP TABLE {t}", "UPDATE {t} SET steps = 0"])
def test_a_query_that_writes_is_refused(statement: str, table: Table) -> None:
    url, name = table
    _refused(_config(url, statement.format(t=name)), "the query")
    assert _execute(url, f"SELECT COUNT(*), MAX(steps) FROM {name}")[0][0] == 200
    assert _execute(url, f"SELECT MAX(steps) FROM {name}")[0][0] > 0


def test_a_function_that_writes_is_refused() -> None:
    for url, name in filled(server("postgresql"), _native()):
        _execute(url, f"CREATE FUNCTION f_{name}() RETURNS int LANGUAGE sql AS 'DELETE FROM {name}; SELECT 1'")
        _refused(_config(url, f"SELECT f_{name}() AS size"), "read-only transaction")
        assert _execute(url, f"SELECT COUNT(*) FROM {name}")[0][0] == 200
        _execute(url, f"DROP FUNCTION f_{name}()")


def test_bad_queries_stop_with_the_databases_words(table: Table) -> None:
    url, name = table
    _refused(_config(url, f"SELEC * FROM {name}"), "the query failed", "correct `query`", "SELEC")
    _refused(_config(url, f"SELECT * FROM {name}x"), "the query failed", f"{name}x")
    _refused(_config(url, f"SELECT nothing FROM {name}"), "the query failed", "nothing")
    _refused(_config(url, f"SELECT * FROM {name} WHERE steps < 0"), "the query returned no rows")
    _refused(_config(url, f"SELECT size, steps, colour AS color, member, y FROM {name}"), "'colour'; did you mean")
    _refused(_config(url, f"SELECT steps AS stairs FROM {name}"), "declared columns are missing", "There is: 'stairs'")
    _refused(_config(url, f"SELECT size, size, y FROM {name}"), "come twice: 'size'")


def test_a_value_that_the_database_cannot_cast_is_not_quoted() -> None:
    for url, name in filled(server("postgresql"), _native().assign(note=SECRETS[0])):
        _refused(_config(url, f"SELECT CAST(note AS integer) FROM {name}"), "DataError, code 22P02")


def test_a_database_that_is_down_says_so(tmp_path: Path) -> None:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        _refused(_config(f"postgresql://me@127.0.0.1:{port}/x", "SELECT 1"), f"127.0.0.1:{port} cannot be", "refused")
        _refused(
            _config(f"mysql://me@127.0.0.1:{port}/x", "SELECT 1"), f"127.0.0.1:{port} cannot be reached", "refused"
        )
    _refused(_config("postgresql://me@nowhere.invalid/x", "SELECT 1"), "cannot be reached", "unknown host")
    _refused(_config(f"sqlite:///{tmp_path}/none.db", "SELECT 1"), "there is no database file", "GAUNTLET_DATA")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "junk.db").write_bytes(b"no database" * 100)
    _refused(_config(f"sqlite:///{tmp_path}/junk.db", "SELECT * FROM x"), "not a database")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_wrong_credentials_are_told_without_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server(kind)
    monkeypatch.setenv("DB_USER", "nobody_of_that_name")
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    wrong = sa.make_url(url).set(username="U", password="P").render_as_string(hide_password=False)
    wrong = wrong.replace("//U:P@", "//${DB_USER}:${DB_PASSWORD}@")
    said = _refused(_config(wrong, "SELECT 1"), "refuses the user or the password", "check DB_USER, DB_PASSWORD")
    assert "nobody_of_that_name" not in said
    missing = sa.make_url(url).set(database="no_such_database").render_as_string(hide_password=False)
    _refused(_config(missing, "SELECT 1"), "no such database")


def test_variables_are_filled_in_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password with every sign of an address in it needs no quoting."""
    url = server("mariadb")
    reader = f"gauntlet_reader_{os.getpid()}"
    _execute(url, f"CREATE OR REPLACE USER '{reader}'@'127.0.0.1' IDENTIFIED BY 's3cr3t/p@ss:word'")
    _execute(url, f"CREATE OR REPLACE USER '{reader}'@'localhost' IDENTIFIED BY 's3cr3t/p@ss:word'")
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("DB_HOST", "127.0.0.1")
    columns = {"size": {"type": "number"}}
    query = "SELECT 1 AS size, 'yes' AS y UNION SELECT 2, 'no'"
    try:
        config = _config(f"mysql://{reader}:${{DB_PASSWORD}}@${{DB_HOST}}:3306/", query, columns=columns)
        assert ingest_frame(config).rows == 2
        assert PASSWORD not in source_line(config) and reader not in source_line(config)
        monkeypatch.setenv("WHOLE", f"mysql://{reader}:s3cr3t%2Fp%40ss%3Aword@127.0.0.1:3306/")
        assert ingest_frame(_config("${WHOLE}", query, columns=columns)).rows == 2
    finally:
        _execute(url, f"DROP USER '{reader}'@'127.0.0.1', '{reader}'@'localhost'")


def test_a_key_that_an_address_has_twice_is_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """So PostgreSQL's driver is told of several hosts."""
    monkeypatch.setenv("DB_HOST", "two:5433")
    source = SqlSource(name="base", kind="sql", url="postgresql://me@/x?host=one:5432&host=${DB_HOST}&a=b", query="-")
    assert dict(database._url(source, "here").query) == {"host": ("one:5432", "two:5433"), "a": "b"}


def test_wrong_addresses_are_configuration_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stacks.stack_file.active_environment", lambda: {"DB_THREE": "h"})
    said = ("variables that are not set: DB_ONE, DB_TWO", "export them")
    _refused(_config("postgresql://${DB_ONE}:${DB_TWO}@${DB_THREE}/x", "SELECT 1"), *said, error=ConfigError)
    _refused(_config("not an address", "SELECT 1"), "is no database address", error=ConfigError)
    _refused(_config("klingon://h/x", "SELECT 1"), "no driver for 'klingon'", error=ConfigError)


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{PASSWORD}@h/x", "mysql://h/x?password=hunter2", "mysql://${USER}:hunter2@h/x"]
)
def test_a_password_in_the_yaml_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write \$\{VARIABLE\} in its place") as caught:
        _config(url, "SELECT 1")
    assert PASSWORD not in str(caught.value) and "hunter2" not in str(caught.value)
