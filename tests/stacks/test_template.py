"""A new home's Prefect database begins as a copy of the installation's template."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from stacks.orchestrator import template
from stacks.orchestrator.template import begin_with_template, make_template, template_path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "venv" / "prefect-x.db"
    path.parent.mkdir()
    path.write_bytes(b"the template")
    monkeypatch.setattr(template, "template_path", lambda: path)
    return path


def test_a_new_home_begins_with_the_template(made: Path, tmp_path: Path) -> None:
    begin_with_template(tmp_path / "home")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "home").iterdir()] == [
        ("prefect.db", made.read_bytes())
    ]


def test_a_home_keeps_its_own_database(made: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"mine")
    begin_with_template(tmp_path)
    assert (tmp_path / "prefect.db").read_bytes() == b"mine"


def test_a_database_that_appears_meanwhile_is_kept(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_copy(source: Path, draft: Path) -> None:
        draft.write_bytes(source.read_bytes())
        (tmp_path / "home" / "prefect.db").write_bytes(b"theirs")

    monkeypatch.setattr(template.shutil, "copyfile", slow_copy)
    begin_with_template(tmp_path / "home")
    assert [path.read_bytes() for path in (tmp_path / "home").iterdir()] == [b"theirs"]


@pytest.mark.parametrize("name", ["PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL"])
def test_who_names_another_database_gets_no_file(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "postgresql+asyncpg://somewhere/prefect")
    begin_with_template(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_installation_has_made_the_template() -> None:
    assert template_path().is_file(), "`make install` makes it"


def test_without_a_template_the_server_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "template_path", lambda: tmp_path / "none.db")
    begin_with_template(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_template_is_empty_and_at_prefects_newest_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.server.database
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    monkeypatch.setattr(template, "template_path", lambda: tmp_path / "share" / "prefect-x.db")
    path = make_template()
    scripts = Config()
    migrations = Path(prefect.server.database.__file__).parent / "_migrations"
    scripts.set_main_option("script_location", str(migrations))
    scripts.set_main_option("version_locations", str(migrations / "versions" / "sqlite"))
    scripts.set_main_option("path_separator", "os")
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        filled = {t for t in tables if database.execute(f"SELECT count(*) FROM '{t}'").fetchone()[0]}
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    assert revision == ScriptDirectory.from_config(scripts).get_current_head()
    assert "flow_run" in tables and filled == {"alembic_version"}
    assert [*path.parent.iterdir()] == [path]
