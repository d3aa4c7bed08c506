"""The prediction log on both engines: durable before it is said, through kills, full disks and lost databases."""

import asyncio
import errno
import fcntl
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bentos import prediction_log as module
from bentos import predictions
from bentos.frame import pseudonym
from bentos.prediction_log import (
    COLUMNS,
    LogUnavailable,
    PredictionLog,
    Record,
    first_id,
    is_sampled,
    keyed,
    new_id,
    table_of,
)
from models.config import PredictionLogging
from stacks.home import clone_dir
from stacks.ledger import Ledger, make_engine, parse_url
from tests.databases import POSTGRES, postgres_schema

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EVER = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def single(moment: float | None = None, model: str = "wine", **fields: Any) -> Record:
    moment = time.time() if moment is None else moment
    content = json.dumps({"inputs": {"x": 1.5, "word": "ä\x00"}, "answer": {"prediction": "a"}}).encode()
    plain: dict[str, Any] = {"version": 3, "variant": "champion", "entity": None, "trace": None, "rows": None}
    return Record(new_id(moment), moment, model, **{**plain, "content": content, **fields})


def batch(moment: float, rows: int) -> Record:
    content = {"columns": ["x"], "inputs": [[n] for n in range(rows)], "answers": [{"row": n} for n in range(rows)]}
    return single(moment, rows=rows, content=json.dumps(content).encode())


def logging_to(url: str, do: Callable[[PredictionLog], Coroutine[Any, Any, None]], **limits: int) -> None:
    """Run `do` with a log on an event loop, and close the log."""

    async def run() -> None:
        log = PredictionLog(url, **limits)
        try:
            await do(log)
        finally:
            assert log.close(120)

    asyncio.run(asyncio.wait_for(run(), 240))


def write(url: str, *records: Record) -> None:
    async def all_of_them(log: PredictionLog) -> None:
        await asyncio.gather(*map(log.write, records))

    logging_to(url, all_of_them)


async def until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.02)


async def refused(writing: Awaitable[None], said: str) -> None:
    with pytest.raises(LogUnavailable, match=said) as caught:
        await writing
    assert caught.value.retry_after >= 1


async def refused_at_once(writing: "asyncio.Future[None]", said: str) -> None:
    assert writing.done(), "it was refused before anything else ran"
    await refused(writing, said)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time for a commit."""
    monkeypatch.setattr(module, "PATIENCE", 60)


def test_what_is_written_is_read_back(url: str) -> None:
    moment = NOW.timestamp() + 0.25
    record = single(moment, entity=keyed("ada"), trace="0af7651916cd43dd8448eb211c80319c", variant="canary")
    write(url, record, single(moment, model="other"))
    (found,) = predictions.read(url, "wine", *EVER)
    assert (found.id, found.at, found.model, found.version) == (record.id, NOW + timedelta(seconds=0.25), "wine", 3)
    assert (found.variant, found.entity, found.trace) == ("canary", record.entity, record.trace)
    assert (found.inputs, found.answer) == ({"x": 1.5, "word": "ä\x00"}, {"prediction": "a"})
    assert predictions.find(url, [record.id]) == {record.id: found}


def test_a_batch_is_one_record_and_read_as_its_rows(url: str) -> None:
    record, alone = batch(NOW.timestamp(), 12), single(NOW.timestamp() + 1)
    write(url, record, alone)
    found = list(predictions.read(url, "wine", *EVER))
    assert [p.id for p in found] == [*(f"{record.id}-{n}" for n in range(12)), alone.id]
    assert (found[11].inputs, found[11].answer) == ({"x": 11}, {"row": 11})
    assert predictions.count(url, "wine", *EVER) == 13
    asked = [f"{record.id}-11", f"{record.id}-12", record.id, f"{alone.id}-0", f"{record.id}-011", "nonsense", ""]
    assert set(predictions.find(url, asked)) == {f"{record.id}-11"}
    with Ledger(url).reading() as connection:
        assert predictions.models_of(connection, [*asked, alone.id]) == {f"{record.id}-11": "wine", alone.id: "wine"}
        assert connection.scalar(sa.text(f"SELECT count(*) FROM {table_of(record.id)}")) == 2


def test_a_period_ends_before_its_end(url: str) -> None:
    records = [single(NOW.timestamp() + second) for second in range(4)]
    write(url, *records)
    period = (NOW + timedelta(seconds=1), NOW + timedelta(seconds=3))
    assert [p.id for p in predictions.read(url, "wine", *period)] == [r.id for r in records[1:3]]
    assert predictions.count(url, "wine", *period) == 2


def test_an_empty_or_absent_log_is_read_as_such(url: str, tmp_path: Path) -> None:
    for where in (url, f"sqlite:///{tmp_path / 'absent' / 'x.db'}"):
        assert list(predictions.read(where, "wine", *EVER)) == []
        assert predictions.find(where, [new_id(0)]) == {}
        assert predictions.count(where, "wine", *EVER) == 0


def test_an_id_says_its_time() -> None:
    moment = NOW.timestamp()
    made = [new_id(moment) for _ in range(1_000)]
    assert len({*made}) == 1_000
    assert {(len(i), i[12], i[16] in "89ab", i[:12]) for i in made} == {(32, "7", True, first_id(moment))}
    assert sorted([new_id(moment + 0.001), new_id(moment)])[0][:12] == first_id(moment)
    assert first_id(moment) < min(made) and max(made) < first_id(moment + 0.001)
    edge = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    assert table_of(new_id(edge - 0.001)) == "predictions_2026_11"
    assert table_of(new_id(edge)) == "predictions_2026_12"
    assert table_of("f" * 32).startswith("predictions_10889")


def test_sampling_takes_its_share_and_all_agree() -> None:
    ids = [new_id(NOW.timestamp()) for _ in range(20_000)]
    chosen = [i for i in ids if is_sampled(i, 0.25)]
    assert 4_500 < len(chosen) < 5_500
    assert all(is_sampled(i, 0.5) for i in chosen), "a larger share holds the smaller one"
    assert all(is_sampled(i, 1.0) for i in ids)
    code = "import sys; from bentos.prediction_log import is_sampled; print([is_sampled(i, .25) for i in sys.argv[1:]])"
    said = subprocess.run([sys.executable, "-c", code, *ids[:50]], capture_output=True, text=True, cwd=clone_dir())
    assert said.stdout.strip() == str([i in chosen for i in ids[:50]])


def test_configuration_demands_the_log_unless_told_otherwise() -> None:
    assert PredictionLogging().model_dump() == {"mode": "required", "sample": 1.0, "keep_months": None}
    for wrong in ({"sample": 0}, {"sample": 1.1}, {"keep_months": 0}, {"mode": "off"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PredictionLogging.model_validate(wrong)


def test_an_entity_is_hashed_under_the_secret() -> None:
    assert keyed("ada") == pseudonym("ada", b"test-secret") != pseudonym("ada", b"another")


def test_a_month_is_a_table_made_when_it_is_needed(url: str) -> None:
    edge = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    records = [single(edge + offset) for offset in (-0.002, -0.001, 0.0, 0.001, 40 * 86_400)]
    write(url, *records)
    with Ledger(url).reading() as connection:
        counts = {
            name: connection.scalar(sa.text(f"SELECT count(*) FROM {name}"))
            for name in ("predictions_2026_11", "predictions_2026_12", "predictions_2027_01")
        }
    assert counts == {"predictions_2026_11": 2, "predictions_2026_12": 2, "predictions_2027_01": 1}
    assert [p.id for p in predictions.read(url, "wine", *EVER)] == [r.id for r in records]
    assert set(predictions.find(url, [r.id for r in records])) == {r.id for r in records}


def test_expired_months_go_model_by_model_and_table_by_table(url: str) -> None:
    months = [datetime(2026, month, 15, tzinfo=UTC).timestamp() for month in (8, 9, 10, 11)]
    write(url, *(single(m) for m in months), single(months[0], model="other"), batch(months[1], 3))
    assert predictions.drop_expired(url, "wine", 1, NOW) == ("predictions_2026_09",)
    assert [p.at.month for p in predictions.read(url, "wine", *EVER)] == [10, 11]
    assert [p.at.month for p in predictions.read(url, "other", *EVER)] == [8]
    assert predictions.drop_expired(url, "other", 2, NOW) == ("predictions_2026_08",)
    assert predictions.drop_expired(url, "wine", 12, NOW) == ()
    assert predictions.count(url, "wine", *EVER) == 2


def test_of_two_that_forget_at_once_the_second_finds_it_done(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    months = [datetime(2026, month, 15, tzinfo=UTC).timestamp() for month in (8, 9, 11)]
    write(url, *map(single, months))
    changed, other = predictions._changed, list[tuple[str, ...]]()

    def overtaken(*given: Any) -> int:
        if not other:
            other.append(())
            other.append(predictions.drop_expired(url, "wine", 1, NOW))
        return changed(*given)

    monkeypatch.setattr(predictions, "_changed", overtaken)
    assert predictions.drop_expired(url, "wine", 1, NOW) == ()
    assert other[1] == ("predictions_2026_08", "predictions_2026_09")
    assert [p.at.month for p in predictions.read(url, "wine", *EVER)] == [11]


def test_what_was_true_when_is_read_back(url: str) -> None:
    at = "2026-11-21T16:30:00Z"
    one = single(content=json.dumps({"inputs": {}, "answer": {}, "at": at}).encode())
    many = single(rows=1, content=json.dumps({"columns": [], "inputs": [[]], "answers": [{}], "at": at}).encode())
    write(url, one, many)
    assert {p.true_at for p in predictions.read(url, "wine", *EVER)} == {at}


def test_an_id_written_twice_is_there_once(url: str) -> None:
    record = single(content=b'{"inputs": {}, "answer": {"prediction": "first"}}')
    again = single(content=b'{"inputs": {}, "answer": {"prediction": "second"}}')
    again = Record(record.id, *(getattr(again, name) for name in COLUMNS[1:]))
    write(url, record)
    write(url, single(), again, single())
    assert predictions.count(url, "wine", *EVER) == 3
    assert predictions.find(url, [record.id])[record.id].answer == {"prediction": "first"}


def test_it_is_durable_by_configuration(url: str) -> None:
    from bentos.prediction_log import _connect

    store = _connect(url)
    if url.startswith("sqlite"):
        asked = {"PRAGMA synchronous": 2, "PRAGMA journal_mode": "wal"}
    else:
        asked = {"SHOW synchronous_commit": "on"}
    assert {question: store._connection.execute(question).fetchone()[0] for question in asked} == asked
    store.close()


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections that logs open, in order."""
    opened: list[Any] = []
    connect = module._connect
    monkeypatch.setattr(module, "_connect", lambda url: opened.append(connect(url)) or opened[-1])
    return opened


def test_many_share_a_commit_and_nothing_is_opened_before_the_first(url: str, stores: list[Any]) -> None:
    groups: list[int] = []

    async def write_many(log: PredictionLog) -> None:
        assert (log._thread, stores) == (None, [])
        await log.write(single())
        insert, all_wait = stores[0].insert, threading.Event()

        def insert_held(table: str, rows: list[Any]) -> None:
            assert all_wait.wait(120)
            groups.append(len(rows))
            insert(table, rows)

        stores[0].insert = insert_held
        futures = [log.write(single()) for _ in range(200)]
        assert log.depth == 200
        all_wait.set()
        await asyncio.gather(*futures)
        assert (log.depth, log.fault, log.lost, len(stores)) == (0, None, 0, 1)

    logging_to(url, write_many)
    assert sum(groups) == 200
    assert len(groups) <= 10
    assert predictions.count(url, "wine", *EVER) == 201


def test_what_waits_is_written_at_the_end_and_nothing_after(url: str) -> None:
    async def close_early(log: PredictionLog) -> None:
        futures = [log.write(single()) for _ in range(300)]
        assert log.close(10)
        await asyncio.gather(*futures)
        await refused(log.write(single()), "closed")

    logging_to(url, close_early)
    assert predictions.count(url, "wine", *EVER) == 300


def test_too_much_that_waits_is_refused_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    async def overfill(log: PredictionLog) -> None:
        huge = single(content=b'{"inputs": {}, "answer": "' + b"x" * 5_000 + b'"}')
        first = log.write(huge)
        await refused_at_once(log.write(huge), "1 records wait")
        await first
        futures = [log.write(single()) for _ in range(10)]
        await refused_at_once(log.write(single()), "10 records wait")
        log.offer(batch(time.time(), 7))
        await asyncio.gather(*futures)
        await until(lambda: log.lost == 7)
        log.offer(single())
        await until(lambda: log.depth == 0)
        assert log.lost == 7

    logging_to(url, overfill, most_records=10, most_bytes=4_000)
    assert predictions.count(url, "wine", *EVER) == 12


def test_who_has_left_is_not_waited_for(url: str) -> None:
    async def leave(log: PredictionLog) -> None:
        log.write(single()).cancel()
        await log.write(single())
        await until(lambda: log.depth == 0)

    logging_to(url, leave)
    assert predictions.count(url, "wine", *EVER) == 1


WRITER = """
import asyncio, sys, time
from bentos.prediction_log import LogUnavailable, PredictionLog, Record, new_id

async def client(log):
    while True:
        now = time.time()
        record = Record(new_id(now), now, "wine", 3, "champion", None, None, None, b'{"inputs": {}, "answer": {}}')
        try:
            await log.write(record)
        except LogUnavailable:  # a disk that hangs for five seconds: the service would answer 503
            await asyncio.sleep(0.1)
        else:
            print(record.id, flush=True)

async def main():
    log = PredictionLog(sys.argv[1])
    await asyncio.gather(*(client(log) for _ in range(20)))

asyncio.run(main())
"""


def _killed_writers(url: str, processes: int, told: int) -> list[str]:
    """Ids that writers said were durable before they were killed in the middle of their work."""
    command = [sys.executable, "-c", WRITER, url]
    writers = [subprocess.Popen(command, cwd=clone_dir(), stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    ids: list[str] = []
    try:
        for writer in writers:
            assert writer.stdout is not None
            ids += [writer.stdout.readline().strip() for _ in range(told)]
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
    for writer in writers:
        assert writer.stdout is not None
        ids += [line.strip() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
    return ids


def test_what_was_said_to_be_durable_survives_kill_9(url: str) -> None:
    ids = _killed_writers(url, processes=2, told=150)
    assert len({*ids}) == len(ids) >= 300
    assert set(predictions.find(url, ids)) == set(ids)
    write(url, single())


@pytest.mark.prove
def test_twenty_kills_lose_no_answered_id(url: str, proof: Callable[[str, object, str], None]) -> None:
    total = 0
    for kill in range(20):
        ids = _killed_writers(url, processes=2, told=20 + 20 * kill)
        total += len(ids)
        assert set(predictions.find(url, ids)) == set(ids)
    engine = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    proof(f"Two writing processes killed with -9 ({engine}): every id said durable is in the log", 20, f"{total} ids")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_got_over(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{small_disk / 'log.db'}"
    kept: list[str] = []
    freed = threading.Event()
    # What proves that the database is back is small, and may find room where a record did not.
    monkeypatch.setattr(PredictionLog, "_pause", lambda log: freed.wait(120))

    async def fill_and_free(log: PredictionLog) -> None:
        kept.append((first := single()).id)
        await log.write(first)
        filler = small_disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(4_096)):
                    pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        with pytest.raises(LogUnavailable, match="full"):
            while True:  # the write-ahead log may have room for some
                record = single(content=b'{"inputs": {}, "answer": "' + b"x" * 20_000 + b'"}')
                await log.write(record)
                kept.append(record.id)
        assert log.fault is not None and "full" in log.fault
        await refused_at_once(log.write(single()), "full")
        log.offer(batch(time.time(), 5))
        await until(lambda: log.lost == 5)
        filler.unlink()
        freed.set()
        await until(lambda: log.fault is None)
        kept.append((last := single()).id)
        await log.write(last)

    logging_to(url, fill_and_free)
    assert set(predictions.find(url, kept)) == set(kept)


def test_a_lost_connection_is_made_again(stores: list[Any]) -> None:
    for url in postgres_schema():

        async def terminate(log: PredictionLog, url: str = url) -> None:
            await log.write(single())
            _execute(url, f"SELECT pg_terminate_backend({stores[0]._connection.info.backend_pid})")
            await refused(log.write(single()), "terminating connection|closed")
            await until(lambda: log.fault is None)
            await log.write(single())

        logging_to(url, terminate)
        assert predictions.count(url, "wine", *EVER) == 2


def test_a_database_that_is_gone_is_asked_for_until_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    for url in postgres_schema():
        name = url.rpartition("%3D")[2]

        async def take_away(log: PredictionLog, name: str = name) -> None:
            await log.write(single())
            _execute(POSTGRES, f"ALTER SCHEMA {name} RENAME TO {name}_away")
            await refused(log.write(single()), "cannot be written")
            await refused_at_once(log.write(single()), "cannot be written")
            await until(lambda: "InvalidSchemaName" in str(log.fault))
            _execute(POSTGRES, f"ALTER SCHEMA {name}_away RENAME TO {name}")
            await until(lambda: log.fault is None)
            await log.write(single())

        with caplog.at_level("INFO", "gauntlet.log"):
            logging_to(url, take_away)
        assert predictions.count(url, "wine", *EVER) == 2
        assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"], "said once each"


def test_a_locked_file_is_waited_for_and_then_said(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    async def lock(log: PredictionLog) -> None:
        await log.write(single())
        other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await refused(log.write(single()), "database is locked")
        await refused_at_once(log.write(single()), "database is locked")
        other.execute("ROLLBACK")
        other.close()
        await until(lambda: log.fault is None)
        await log.write(single())

    logging_to(url, lock)
    assert predictions.count(url, "wine", *EVER) == 2


def test_a_writer_that_hangs_does_not_let_answers_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"

    async def hang(log: PredictionLog) -> None:
        await log.write(single())
        with (tmp_path / "log.db.turn").open("ab") as turns, monkeypatch.context() as impatient:
            impatient.setattr(module, "PATIENCE", 1)
            fcntl.flock(turns, fcntl.LOCK_EX)
            await refused(log.write(single()), "no commit in 1 s")
            await refused_at_once(log.write(single()), "no commit in 1 s")
            assert log.depth == 0
        await until(lambda: log.fault is None)
        await log.write(single())

    logging_to(url, hang)
    assert predictions.count(url, "wine", *EVER) == 2, "what nobody waits for any more is not written"


def test_a_database_that_was_never_there_is_found_when_it_comes(tmp_path: Path) -> None:
    place = tmp_path / "log.db"
    place.mkdir()

    async def come(log: PredictionLog) -> None:
        log.start()
        await until(lambda: log.fault is not None)
        await refused_at_once(log.write(single()), "unable to open database file")
        place.rmdir()
        await until(lambda: log.fault is None)
        await log.write(single())

    logging_to(f"sqlite:///{place}", come)
    assert predictions.count(f"sqlite:///{place}", "wine", *EVER) == 1


def test_a_fault_holds_no_value_and_no_password(url: str) -> None:
    async def spoil(log: PredictionLog) -> None:
        wrong = single(model=None, entity="hunter2", content=b'{"inputs": {"x": "hunter2"}, "answer": {}}')
        with pytest.raises(LogUnavailable) as caught:
            await log.write(wrong)
        assert "hunter2" not in str(caught.value)
        await until(lambda: log.fault is None)

    async def misname(log: PredictionLog) -> None:
        log.start()
        await until(lambda: log.fault is not None)
        assert "mysql" in str(log.fault)
        assert "hunter2" not in str(log.fault)

    logging_to(url, spoil)
    logging_to("mysql://me:hunter2@db/x", misname)


def _execute(url: str, statement: str) -> None:
    with make_engine(parse_url(url)).begin() as connection:
        connection.execute(sa.text(statement))
