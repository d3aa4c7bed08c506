import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.errors import ConfigError, WorkError
from stacks import ledger as module
from stacks.home import clone_dir, home_dir
from stacks.ledger import GENESIS, REVISION, UNSET, Conflict, Ledger, current_actor, database_url, open_ledger

POSTGRES = os.environ.get("TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test")


def _postgres_schema() -> Iterator[str]:
    engine = sa.create_engine(POSTGRES, poolclass=sa.NullPool, connect_args={"connect_timeout": 3})
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    except sa.exc.OperationalError:
        if os.environ.get("GAUNTLET_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip("no PostgreSQL answers: set TEST_POSTGRES")
    yield f"{POSTGRES}?options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {name} CASCADE"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        yield from _postgres_schema()


@pytest.fixture
def execute(url: str) -> Callable[..., None]:
    """Runs SQL behind the ledger's back."""

    def run(*statements: str) -> None:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    return run


def _disarm(url: str) -> list[str]:
    """SQL that removes the triggers, as somebody who owns the database could."""
    if url.startswith("sqlite"):
        return [f"DROP TRIGGER {name}" for name in ("ledger_no_update", "ledger_no_delete", "ledger_only_append")]
    return ["ALTER TABLE ledger DISABLE TRIGGER ALL"]


def test_entries_cut_off_at_the_end_are_noticed(url: str, execute: Callable[..., None]) -> None:
    ledger = Ledger(url)
    for version in (1, 2, 3):
        ledger.append("promote", "wine", version)
    assert ledger.verify() == []
    execute(*_disarm(url), "DELETE FROM ledger WHERE sequence = 3")
    (fault,) = Ledger(url).verify()
    assert fault.startswith("entry 3, which this home wrote last, is gone")
    execute(
        "UPDATE ledger SET hash = 'another' WHERE sequence = 2", "UPDATE ledger SET sequence = 3 WHERE sequence = 2"
    )
    assert Ledger(url).verify()[-1].startswith("entry 3, which this home wrote last, is another one")


def test_all_histories_are_read_at_once_and_payloads_on_demand(url: str) -> None:
    ledger = Ledger(url)
    first = ledger.append("promote", "wine", 1, payload={"metrics": {"accuracy": 0.9}})
    second = ledger.append("keep", "toy", 1)
    histories = ledger.histories()
    assert {model: [e.sequence for e in entries] for model, entries in histories.items()} == {"wine": [1], "toy": [2]}
    assert histories["wine"][0].payload == {}
    assert ledger.payloads([first.sequence]) == {1: {"metrics": {"accuracy": 0.9}}}
    assert ledger.payloads([second.sequence, 99]) == {2: {}}


def test_an_entry_is_read_back_as_written(url: str) -> None:
    ledger = Ledger(url)
    payload = {"metrics": {"accuracy": 0.1 + 0.2}, "words": "größer ≥ 🍷", "none": None}
    written = ledger.append("promote", "wine", 1, why="first", actor="ada", payload=payload)
    assert ledger.history("wine") == (written,)
    assert (written.sequence, written.previous, written.payload) == (1, GENESIS, payload)
    assert abs(written.time - datetime.now(UTC)) < timedelta(minutes=1)
    assert Ledger(url).history("wine") == (written,)


def test_the_hash_is_what_the_module_documents(url: str, execute: Callable[..., None]) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 1)
    entry = ledger.append("keep", "wine", 2, why="no gain — at all", actor="ada", payload={"b": 1, "a": [1.5, "é"]})
    text = (
        '{"action":"keep","actor":"ada","model":"wine","payload":"{\\"a\\":[1.5,\\"é\\"],\\"b\\":1}",'
        f'"previous":"{entry.previous}","sequence":2,"time":"{entry.time:%Y-%m-%dT%H:%M:%S.%f}Z",'
        '"version":2,"why":"no gain — at all"}'
    )
    assert entry.hash == hashlib.sha256(text.encode()).hexdigest()


def test_champion_previous_and_history_of_a_time(url: str) -> None:
    ledger = Ledger(url)
    assert (ledger.champion("wine"), ledger.previous("wine"), ledger.tip("wine")) == (None, None, 0)
    moments = [ledger.append("promote", "wine", version).time for version in (1, 2, 3)]
    ledger.append("promote", "heart", 9)
    ledger.append("reject", "wine", 4)
    assert (ledger.champion("wine"), ledger.previous("wine")) == (3, 2)
    assert ledger.champion_at("wine", moments[0] - timedelta(seconds=1)) is None
    assert [ledger.champion_at("wine", moment) for moment in moments] == [1, 2, 3]
    assert ledger.champion_at("wine", moments[1].replace(tzinfo=None)) == 2
    assert ledger.models() == ("heart", "wine")
    assert ledger.tip("wine") == 5


def test_rolling_back_twice_goes_back_two_champions(url: str) -> None:
    ledger = Ledger(url)
    for version in (1, 2, 3):
        ledger.append("promote", "wine", version)
    ledger.append("rollback", "wine", 2)
    assert (ledger.champion("wine"), ledger.previous("wine"), ledger.state("wine", 3)) == (2, 1, "archived")
    ledger.append("rollback", "wine", 1)
    assert (ledger.champion("wine"), ledger.previous("wine")) == (1, None)
    ledger.append("rollback", "wine", 3)
    assert (ledger.champion("wine"), ledger.previous("wine")) == (3, 1)


def test_states(url: str) -> None:
    ledger = Ledger(url)
    for action, version in [("promote", 1), ("promote", 2), ("promote", 3), ("keep", 4), ("reject", 5), ("pending", 6)]:
        ledger.append(action, "wine", version)  # type: ignore[arg-type]
    ledger.append("keep", "wine", 3)
    ledger.append("retire", "wine", 1)
    states = {version: ledger.state("wine", version) for version in range(1, 8)}
    assert states == {
        1: "retired",
        2: "previous",
        3: "champion",
        4: "archived",
        5: "archived",
        6: "pending",
        7: "registered",
    }
    standing = ledger.standing("wine")
    assert (standing.challenger, standing.crowned) == (6, (1, 2, 3))
    ledger.append("retire", "wine", 2)
    assert ledger.previous("wine") is None


def test_the_champion_cannot_be_retired(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 1)
    with pytest.raises(WorkError, match="v1 of 'wine' is the champion"):
        ledger.append("retire", "wine", 1)
    assert len(ledger.history("wine")) == 1


def test_another_champion_than_expected_is_a_conflict(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 1, expect_champion=None)
    with pytest.raises(Conflict, match="is v1 now, but no version was judged against"):
        ledger.append("promote", "wine", 2, expect_champion=None)
    ledger.append("promote", "wine", 2, expect_champion=1)
    with pytest.raises(Conflict, match="is v2 now, but v1 was judged against"):
        ledger.append("keep", "wine", 3, expect_champion=1)
    ledger.append("promote", "wine", 3, expect_champion=UNSET)
    assert ledger.champion("wine") == 3
    assert ledger.verify() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET version = 7 WHERE sequence = 1",
        "DELETE FROM ledger WHERE sequence = 2",
        "DELETE FROM ledger",
        "INSERT INTO ledger SELECT * FROM ledger WHERE sequence = 2",
    ],
)
def test_the_database_refuses_changes(url: str, execute: Callable[..., None], statement: str) -> None:
    ledger = Ledger(url)
    before = [ledger.append("promote", "wine", version) for version in (1, 2)]
    with pytest.raises(sa.exc.DBAPIError):
        execute(statement)
    assert ledger.history("wine") == tuple(before)


def test_sqlite_refuses_to_replace_an_entry(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for version in (1, 2):
        ledger.append("promote", "wine", version)
    with sqlite3.connect(tmp_path / "ledger.db") as connection, pytest.raises(sqlite3.IntegrityError, match="append"):
        connection.execute(
            "INSERT OR REPLACE INTO ledger "
            "SELECT sequence, previous, hash, time, actor, action, model, 9, why, payload FROM ledger WHERE version = 2"
        )
    assert ledger.champion("wine") == 2


def test_postgresql_refuses_to_truncate() -> None:
    for url in _postgres_schema():
        Ledger(url).append("promote", "wine", 1)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.exec_driver_sql("TRUNCATE ledger")
        assert Ledger(url).champion("wine") == 1


@pytest.mark.parametrize(
    ("tampering", "faults"),
    [
        ("UPDATE ledger SET version = 9 WHERE sequence = 2", ["entry 2: was changed (its hash is another)"]),
        ("UPDATE ledger SET payload = '{\"a\": 1}' WHERE sequence = 3", ["entry 3: was changed (its hash is another)"]),
        ("DELETE FROM ledger WHERE sequence = 2", ["entry 2: missing"]),
        ("DELETE FROM ledger WHERE sequence <= 2", ["entry 1 to 2: missing"]),
        (
            "UPDATE ledger SET time = '2001-01-01T00:00:00.000000Z' WHERE sequence = 4",
            ["entry 4: is dated before the entry before it", "entry 4: was changed (its hash is another)"],
        ),
    ],
)
def test_verify_names_the_broken_entry(
    url: str, execute: Callable[..., None], tampering: str, faults: list[str]
) -> None:
    ledger = Ledger(url)
    for version in range(1, 6):
        ledger.append("promote", "wine", version)
    assert ledger.verify() == []
    execute(*_disarm(url), tampering)
    assert ledger.verify() == faults


def test_verify_sees_an_entry_rewritten_with_its_hash(url: str, execute: Callable[..., None]) -> None:
    ledger = Ledger(url)
    for version in (1, 2, 3):
        entry = ledger.append("promote", "wine", version, actor="ada")
    second = ledger.history("wine")[1]
    forged = {
        **{name: getattr(second, name) for name in ("action", "actor", "model", "previous", "sequence", "why")},
        "payload": "{}",
        "time": f"{second.time:%Y-%m-%dT%H:%M:%S.%f}Z",
        "version": 8,
    }
    digest = hashlib.sha256(json.dumps(forged, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    execute(*_disarm(url), f"UPDATE ledger SET version = 8, hash = '{digest}' WHERE sequence = 2")
    assert ledger.verify() == [f"entry {entry.sequence}: does not follow the entry before it"]


def test_time_never_falls_when_the_clock_does(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url)
    first = ledger.append("promote", "wine", 1)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(module, "datetime", Earlier)
    assert ledger.append("promote", "wine", 2).time == first.time
    assert ledger.verify() == []


def test_odd_text_and_numbers(url: str) -> None:
    ledger = Ledger(url)
    entry = ledger.append("keep", "wine", None, why="nul \x00 half \ud800 " + "x" * 5_000)
    assert "\x00" not in entry.why
    assert len(entry.why) <= 2_000
    assert ledger.history("wine") == (entry,)
    assert ledger.verify() == []
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("keep", "wine", 1, payload={"metric": float("nan")})
    assert len(ledger.history("wine")) == 1


def test_actor_is_the_user_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert current_actor() == "unverified:ada"


def test_revision_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == REVISION


def test_a_newer_database_is_refused(url: str, execute: Callable[..., None]) -> None:
    Ledger(url).append("promote", "wine", 1)
    execute("UPDATE gauntlet_revision SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer Gauntlet"):
        Ledger(url).champion("wine")


def test_sqlite_is_durable(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with ledger._begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_which_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert database_url() == f"sqlite:///{home_dir() / 'gauntlet.db'}"
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'other.db'}")
    open_ledger().append("promote", "wine", 1)
    assert (tmp_path / "other.db").is_file()
    assert open_ledger() is open_ledger()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mysql://me:hunter2@db/x", "names 'mysql'"),
        ("no url hunter2", "is no database URL"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_wrong_url_is_a_configuration_error(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Ledger(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_passwords_are_never_printed(scheme: str) -> None:
    ledger = Ledger(f"{scheme}://me:hunter2@127.0.0.1:1/x?password=hunter3")
    assert ledger.shown == "postgresql+psycopg://me:***@127.0.0.1:1/x"
    with pytest.raises(WorkError, match=r"127\.0\.0\.1.*cannot be used") as caught:
        ledger.champion("wine")
    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_no_database_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database at all, but long enough to be looked at" * 50)
    with pytest.raises(WorkError, match="cannot be used: file is not a database"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").champion("wine")


RACER = """
import sys
from stacks.ledger import Conflict, Ledger
url, me, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ledger = Ledger(url)
print("ready", flush=True)
sys.stdin.readline()
won = conflicts = 0
while won < count:
    champion = ledger.champion("wine")
    version = me * 1000 + won
    try:
        ledger.append("promote", "wine", version, payload={"was": champion}, expect_champion=champion)
        won += 1
    except Conflict:
        conflicts += 1
print(won, conflicts)
"""


def _race(url: str, processes: int, promotions: int) -> tuple[Ledger, int]:
    """Let processes start at once on an empty database and promote; the ledger and the conflicts there were."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, str(me), str(promotions)],
            cwd=clone_dir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(1, processes + 1)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=250)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * processes
    assert [int(won) for won, _ in said] == [promotions] * processes
    return Ledger(url), sum(int(conflicts) for _, conflicts in said)


def _assert_one_history(ledger: Ledger, entries: int) -> None:
    history = ledger.history("wine")
    assert [entry.sequence for entry in history] == list(range(1, entries + 1))
    assert ledger.verify() == []
    champions = [None, *(entry.version for entry in history)]
    assert [entry.payload["was"] for entry in history] == champions[:-1]


def test_processes_that_promote_at_once_keep_one_chain(url: str) -> None:
    ledger, conflicts = _race(url, processes=4, promotions=8)
    _assert_one_history(ledger, 32)
    assert conflicts > 0, "nobody ever met: the race was none"


@pytest.mark.prove
def test_eight_processes_promote_fifty_times_each(url: str, proof: Callable[[str, object, str], None]) -> None:
    ledger, conflicts = _race(url, processes=8, promotions=50)
    _assert_one_history(ledger, 400)
    engine = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    line = f"Promotions by eight processes at once, started on an empty database ({engine}), keep one chain"
    proof(line, "8 x 50", f"400 entries, one history of champions, {conflicts} conflicts refused")


@pytest.mark.prove
def test_a_writer_killed_at_any_moment_leaves_a_sound_chain(url: str) -> None:
    endless = RACER.replace("while won < count", "while True")
    for life in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32):
        racer = subprocess.Popen(
            [sys.executable, "-c", endless, url, "1", "1"],
            cwd=clone_dir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert racer.stdout is not None
        assert racer.stdin is not None
        racer.stdout.readline()
        racer.stdin.write("\n")
        racer.stdin.flush()
        try:
            racer.wait(timeout=life)
        except subprocess.TimeoutExpired:
            racer.kill()
        racer.wait()
        ledger = Ledger(url)
        ledger.append("keep", "wine", 1)
        assert ledger.verify() == []
