"""Access keys on both engines: what is stored, what is recognised, what the ledger says of them."""

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.errors import ConfigError
from stacks import keys
from stacks.keys import KeyReader, KeyRing, Unfit
from stacks.ledger import Ledger


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def _check(url: str, presented: str, later: timedelta = timedelta()) -> str:
    """The name of the key that is recognised, or the reason why none is."""
    reader = KeyReader(url)
    reader.refresh()
    ring = reader.ring()
    assert ring is not None
    found = ring.check(presented, datetime.now(UTC) + later)
    return found if isinstance(found, str) else found.name


def _rows(url: str) -> list[dict[str, object]]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.text("SELECT * FROM access_keys"))]


def test_a_key_is_recognised_and_nothing_near_it(url: str, ledger: Ledger) -> None:
    _, secret = keys.add("ada", "predict", ledger=ledger)
    _, other = keys.add("bob", "admin", ledger=ledger)
    assert (_check(url, secret), _check(url, other)) == ("ada", "bob")
    wrong = [secret[:-1], secret + "A", secret[:12] + other[12:], other[:12] + secret[12:], secret[:11], "", "gk_"]
    wrong += ["gk_unknown1_" + secret[12:], secret.upper(), "gk_" + "x" * 10_000, "\x00ÿ😀"]
    assert {_check(url, text) for text in wrong} == {"unknown_key"}


def test_a_key_has_256_random_bits_and_a_public_beginning(ledger: Ledger) -> None:
    made = [keys.add(f"key-{n}", "predict", ledger=ledger) for n in range(20)]
    assert {(len(secret), secret[:3], secret[11]) for _, secret in made} == {(55, "gk_", "_")}
    assert len({secret[12:] for _, secret in made}) == len({key.prefix for key, _ in made}) == 20
    assert all(secret.startswith(key.prefix) for key, secret in made)


def test_only_a_salted_hash_is_stored(url: str, ledger: Ledger) -> None:
    _, secret = keys.add("ada", "predict", ledger=ledger)
    keys.add("bob", "predict", ledger=ledger)
    first, second = _rows(url)
    assert first["salt"] != second["salt"]
    stored = " ".join(str(value) for row in (first, second) for value in row.values())
    assert secret[12:] not in stored
    shown = repr(keys.listing(ledger))
    assert not [part for part in (secret[12:], str(first["hash"]), str(first["salt"])) if part in shown]


def test_the_database_s_files_hold_no_key(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'keys.db'}")
    _, secret = keys.add("ada", "predict", why="for the web shop", ledger=ledger)
    keys.revoke("ada", ledger=ledger)
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"web shop" in content
    assert secret[12:].encode() not in content


def test_expiry(url: str, ledger: Ledger) -> None:
    key, secret = keys.add("ada", "predict", valid_for=timedelta(days=90), ledger=ledger)
    assert key.expires is not None and abs(key.expires - key.created - timedelta(days=90)) < timedelta(seconds=1)
    assert keys.listing(ledger) == (key,)
    assert _check(url, secret, timedelta(days=89)) == "ada"
    assert _check(url, secret, timedelta(days=90, seconds=1)) == "expired_key"
    assert key.state(key.expires) == "expired"


def test_revoking(url: str, ledger: Ledger) -> None:
    key, secret = keys.add("ada", "predict", ledger=ledger)
    revoked = keys.revoke("ada", ledger=ledger)
    assert (revoked.prefix, revoked.state(datetime.now(UTC))) == (key.prefix, "revoked")
    assert keys.listing(ledger) == (revoked,)
    assert _check(url, secret) == "revoked_key"
    assert _check(url, secret[:-1]) == "unknown_key", "that it was revoked is told to who has it"
    with pytest.raises(ConfigError, match=r"no key 'ada' to revoke \(there is: nothing\)"):
        keys.revoke("ada", ledger=ledger)


def test_a_name_is_free_again_once_its_key_is_revoked(url: str, ledger: Ledger) -> None:
    _, old = keys.add("ada", "predict", ledger=ledger)
    with pytest.raises(ConfigError, match="there is a key 'ada'"):
        keys.add("ada", "admin", ledger=ledger)
    keys.revoke("ada", ledger=ledger)
    _, new = keys.add("ada", "admin", ledger=ledger)
    assert (_check(url, old), _check(url, new)) == ("revoked_key", "ada")


def test_of_several_that_take_one_name_at_once_one_gets_it(url: str) -> None:
    Ledger(url).append("promote", "wine", 1)
    barrier = threading.Barrier(4)

    def take(_: int) -> bool:
        barrier.wait()
        try:
            return bool(keys.add("ada", "predict", ledger=Ledger(url)))
        except ConfigError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [False, False, False, True]
    assert len(keys.listing(Ledger(url))) == len(Ledger(url).history("")) == 1
    assert Ledger(url).verify() == []


def test_the_database_keeps_names_unique(url: str, ledger: Ledger) -> None:
    keys.add("ada", "predict", ledger=ledger)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.execute(
            sa.text(
                "INSERT INTO access_keys (prefix, name, role, salt, hash, created) "
                "SELECT 'gk_other', name, role, salt, hash, created FROM access_keys"
            )
        )


def test_a_pasted_key_is_revoked_by_its_public_part_and_never_repeated(ledger: Ledger) -> None:
    _, secret = keys.add("ada", "predict", ledger=ledger)
    assert keys.revoke(secret, ledger=ledger).name == "ada"
    with pytest.raises(ConfigError) as caught:
        keys.revoke(secret, ledger=ledger)
    assert secret[12:] not in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "a b", "-x", "gk_abc", "x" * 65, "ä", "a\n"])
def test_a_name_is_plain(name: str, ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="no name for a key"):
        keys.add(name, "predict", ledger=ledger)


def test_an_unknown_role_is_said_with_those_there_are(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'predict'\? \(there is: predict, outcome, admin\)"):
        keys.add("ada", "predikt", ledger=ledger)
    with pytest.raises(ConfigError) as caught:
        keys.add("ada", "x" * 10_000, ledger=ledger)
    assert len(str(caught.value)) < 200


def test_the_ledger_says_who_made_and_ended_which_key(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "root-of-all")
    ledger.append("promote", "wine", 1)
    key, secret = keys.add("ada", "predict", why="web shop", rate=60, ledger=ledger)
    keys.revoke("ada", why="leaked", ledger=ledger)
    with pytest.raises(ConfigError):
        keys.revoke("ada", ledger=ledger)
    added, revoked = ledger.history("")
    assert (added.action, added.actor, added.version, added.why) == ("key", "unverified:root-of-all", None, "web shop")
    assert added.payload == {
        "change": "added",
        "name": "ada",
        "prefix": key.prefix,
        "role": "predict",
        "expires": None,
        "rate": 60,
    }
    assert (revoked.payload["change"], revoked.why) == ("revoked", "leaked")
    assert secret[12:] not in repr((added, revoked))
    assert (ledger.verify(), ledger.models(), ledger.champion("wine")) == ([], ("wine",), 1)


def test_what_the_ledger_refuses_leaves_no_key(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    keys.add("ada", "predict", ledger=ledger)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_insert", fail)
        with pytest.raises(RuntimeError):
            keys.add("bob", "predict", ledger=ledger)
    with pytest.raises(ConfigError):
        keys.add("ada", "predict", ledger=ledger)
    assert [key.name for key in keys.listing(ledger)] == ["ada"]
    assert len(ledger.history("")) == 1


def test_a_database_of_the_first_revision_gains_the_table(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("stacks.ledger.REVISION", "0001")
        Ledger(url).append("promote", "wine", 1)
    reader = KeyReader(url)
    reader.refresh()
    ring = reader.ring()
    assert reader.fault is None and ring is not None and not ring.demands()
    keys.add("ada", "predict", ledger=Ledger(url))
    assert [entry.action for entry in Ledger(url).history("wine")] == ["promote"]
    assert Ledger(url).verify() == []


def test_a_reader_sees_a_key_and_its_end_at_its_next_reading(url: str, ledger: Ledger) -> None:
    clock = Clock()
    reader = KeyReader(url, clock)

    def check(secret: str) -> str:
        reader.refresh()
        ring = reader.ring()
        assert ring is not None
        found = ring.check(secret, datetime.now(UTC))
        return found if isinstance(found, str) else found.name

    assert check("gk_nothing") == "unknown_key"
    _, secret = keys.add("ada", "predict", ledger=ledger)
    assert check(secret) == "unknown_key", "not read again within the second"
    clock.seconds += 1
    assert check(secret) == "ada"
    keys.revoke("ada", ledger=ledger)
    clock.seconds += 1
    assert check(secret) == "revoked_key"


def test_a_reader_makes_no_file_and_writes_nothing(tmp_path: Path) -> None:
    reader = KeyReader(f"sqlite:///{tmp_path / 'keys.db'}")
    reader.refresh()
    ring = reader.ring()
    assert reader.fault is None and ring is not None and not ring.demands()
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_last_holds_for_a_minute_without_the_database(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "keys.db"
    _, secret = keys.add("ada", "predict", ledger=Ledger(f"sqlite:///{file}"))
    reader = KeyReader(f"sqlite:///{file}", clock)
    reader.refresh()
    hidden = file.rename(tmp_path / "away.db")
    for passed, known in ((1, True), (60, True), (60.1, False), (500, False)):
        clock.seconds = 1_000 + passed
        reader.refresh()
        assert (reader.ring() is not None) == known
        assert reader.fault is not None
    hidden.rename(file)
    clock.seconds += 1
    reader.refresh()
    ring = reader.ring()
    assert reader.fault is None and ring is not None
    assert ring.check(secret, datetime.now(UTC)) == keys.listing(Ledger(f"sqlite:///{file}"))[0]


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@127.0.0.1:1/x", "mysql://me:hunter2@db/x"])
def test_a_database_that_never_answered_is_no_database_without_keys(url: str) -> None:
    reader = KeyReader(url)
    reader.refresh()
    assert reader.ring() is None
    assert reader.fault is not None and "hunter2" not in reader.fault


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("not a database at all, but long enough to be looked at" * 50)
    reader = KeyReader(f"sqlite:///{tmp_path / 'keys.db'}")
    reader.refresh()
    assert reader.ring() is None and "not a database" in (reader.fault or "")


def test_an_expired_key_goes_on_demanding_one_and_a_revoked_one_does_not(ledger: Ledger, url: str) -> None:
    def asked() -> tuple[bool, bool]:
        reader = KeyReader(url)
        reader.refresh()
        ring = reader.ring()
        assert ring is not None
        return ring.demands(), ring.usable(datetime.now(UTC) + timedelta(hours=2))

    assert asked() == (False, False)
    keys.add("ada", "predict", valid_for=timedelta(hours=1), ledger=ledger)
    assert asked() == (True, False)
    keys.add("bob", "predict", ledger=ledger)
    assert asked() == (True, True)
    keys.revoke("ada", ledger=ledger)
    keys.revoke("bob", ledger=ledger)
    assert asked() == (False, False)


def test_every_check_compares_in_constant_time(monkeypatch: pytest.MonkeyPatch, ledger: Ledger, url: str) -> None:
    _, secret = keys.add("ada", "predict", ledger=ledger)
    reader = KeyReader(url)
    reader.refresh()
    compared: list[tuple[int, int]] = []
    compare: Callable[[str, str], bool] = keys.hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    ring = reader.ring()
    assert isinstance(ring, KeyRing)
    unfit: list[Unfit | object] = [
        ring.check(text, datetime.now(UTC)) for text in (secret, secret[:-1], "gk_nobody99_x", "")
    ]
    assert unfit[1:] == ["unknown_key"] * 3
    assert compared == [(64, 64)] * 4, "an unknown prefix costs a comparison too"


def test_the_hash_is_sha_256_of_salt_and_key(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'keys.db'}")
    _, secret = keys.add("ada", "predict", ledger=ledger)
    with sqlite3.connect(tmp_path / "keys.db") as connection:
        salt, digest = connection.execute("SELECT salt, hash FROM access_keys").fetchone()
    assert hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest() == digest


def test_an_admins_key_names_the_actor_and_what_is_written_with_it(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.add("ada", "admin", ledger=ledger)
    monkeypatch.setenv("GAUNTLET_DATABASE", url)
    monkeypatch.setenv("GAUNTLET_KEY", secret)
    assert ledger.append("keep", "wine", 1).actor == "key:ada"
    keys.revoke("ada", ledger=ledger)
    with pytest.raises(ConfigError, match=r"GAUNTLET_KEY: that key was revoked; nothing was done"):
        ledger.append("keep", "wine", 2)
    assert [entry.actor for entry in ledger.history("")][-1] == "key:ada"
    assert len(ledger.history("wine")) == 1
