import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.errors import ConfigError, WorkError
from stacks import ledger as module
from stacks.audit import GENESIS
from stacks.home import clone_dir, home_dir
from stacks.ledger import REVISION, UNSET, Conflict, Ledger, current_actor, database_url, open_ledger
from tests.databases import disarm, execute, postgres_schema

CHANGED = "was changed (its hash is another)"


def test_entries_cut_off_at_the_end_are_noticed(url: str) -> None:
    ledger = Ledger(url)
    for version in (1, 2, 3):
        ledger.append("promote", "wine", version)
    assert ledger.verify() == []
    disarm(url)
    execute(url, "DELETE FROM ledger WHERE sequence = 3")
    (fault,) = Ledger(url).verify()
    assert fault == "entry 3 (promote of wine v3), which this home wrote last, is gone"
    execute(
        url,
        "UPDATE ledger SET hash = 'another' WHERE sequence = 2",
        "UPDATE ledger SET sequence = 3 WHERE sequence = 2",
    )
    another = "entry 3 (promote of wine v2): is not the one that this home wrote (promote of wine v3)"
    assert Ledger(url).verify()[-1] == another


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


def test_the_hash_is_what_the_module_documents(url: str) -> None:
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
    assert (ledger.champion("wine"), ledger.previous("wine"), ledger.state("wine", 3)) == (2, 1, "validation")
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
        2: "staging",
        3: "production",
        4: "validation",
        5: "development",
        6: "staging",
        7: "experimentation",
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


def test_a_retired_version_gets_no_entry_any_more(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("keep", "wine", 1)
    ledger.append("retire", "wine", 1)
    for action in ("promote", "rollback", "keep", "pending", "retire"):
        with pytest.raises(WorkError, match="v1 of 'wine' is retired; training it again"):
            ledger.append(action, "wine", 1)  # type: ignore[arg-type]
    assert ledger.append("promote", "heart", 1).sequence == 3


def test_what_was_decided_by_an_older_entry_is_a_conflict(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("keep", "wine", 1, expect_tip=0)
    ledger.append("keep", "heart", 1)
    with pytest.raises(Conflict, match="the newest entry of 'wine' is 1 now, but this was decided by 0"):
        ledger.append("retire", "wine", 1, expect_tip=0)
    assert ledger.append("retire", "wine", 1, expect_tip=1).sequence == 3


def test_who_was_champion_in_years_of_three_digits_and_beyond_the_zone(url: str) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 1)
    for year in (1, 999, 1999):
        assert ledger.champion_at("wine", datetime(year, 1, 2, tzinfo=UTC)) is None
    east = timezone(timedelta(hours=14))
    assert ledger.champion_at("wine", datetime.now(UTC).astimezone(east)) == 1


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
def test_the_database_refuses_changes(url: str, statement: str) -> None:
    ledger = Ledger(url)
    before = [ledger.append("promote", "wine", version) for version in (1, 2)]
    with pytest.raises(sa.exc.DBAPIError):
        execute(url, statement)
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
    for url in postgres_schema():
        Ledger(url).append("promote", "wine", 1)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.exec_driver_sql("TRUNCATE ledger")
        assert Ledger(url).champion("wine") == 1


@pytest.mark.parametrize(
    ("tampering", "faults"),
    [
        (
            "UPDATE ledger SET version = 9 WHERE sequence = 2",
            [f"entry 2 (promote of wine v9): {CHANGED}"],
        ),
        (
            "UPDATE ledger SET payload = '{\"a\": 1}' WHERE sequence = 3",
            [f"entry 3 (promote of wine v3): {CHANGED}"],
        ),
        ("DELETE FROM ledger WHERE sequence = 2", ["entry 2 (promote of wine v2): missing"]),
        ("DELETE FROM ledger WHERE sequence <= 2", ["entry 1 to 2 (promote of wine v1, promote of wine v2): missing"]),
        (
            "UPDATE ledger SET time = '2001-01-01T00:00:00.000000Z' WHERE sequence = 4",
            [
                "entry 4 (promote of wine v4): is dated before the entry before it",
                f"entry 4 (promote of wine v4): {CHANGED}",
            ],
        ),
    ],
)
def test_verify_names_the_broken_entry(url: str, tampering: str, faults: list[str]) -> None:
    ledger = Ledger(url)
    for version in range(1, 6):
        ledger.append("promote", "wine", version)
    assert ledger.verify() == []
    disarm(url)
    execute(url, tampering)
    assert ledger.verify() == faults


def test_verify_sees_an_entry_rewritten_with_its_hash(url: str) -> None:
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
    disarm(url)
    execute(url, f"UPDATE ledger SET version = 8, hash = '{digest}' WHERE sequence = 2")
    assert ledger.verify() == [
        "entry 2 (promote of wine v8): is not the one that this home wrote (promote of wine v2)",
        f"entry {entry.sequence} (promote of wine v3): does not follow the entry before it",
    ]


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


def test_a_newer_database_is_refused(url: str) -> None:
    Ledger(url).append("promote", "wine", 1)
    execute(url, "UPDATE gauntlet_revision SET version_num = '9999'")
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
champion = ledger.champion("wine")
print("read", flush=True)
sys.stdin.readline()
while won < count:
    champion = ledger.champion("wine") if won or conflicts else champion
    version = me * 1000 + won
    try:
        ledger.append("promote", "wine", version, payload={"was": champion}, expect_champion=champion)
        won += 1
    except Conflict:
        conflicts += 1
print(won, conflicts)
"""


def _race(url: str, processes: int, promotions: int) -> tuple[Ledger, int]:
    """Let processes start at once on an empty database and promote; the ledger and the conflicts there were.

    All have read that there is no champion before the first one promotes: all but one of them meet a conflict.
    """
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
    for word in ("ready", "read"):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == f"{word}\n"
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
    assert conflicts >= 3, "who read of no champion and was not the first to promote"


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
        racer.stdin.write("\n\n")
        racer.stdin.flush()
        try:
            racer.wait(timeout=life)
        except subprocess.TimeoutExpired:
            racer.kill()
        racer.wait()
        ledger = Ledger(url)
        ledger.append("keep", "wine", 1)
        assert ledger.verify() == []
