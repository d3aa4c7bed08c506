"""A ledger under attack: whoever owns the database changes what he likes, and the audit names what he touched."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from stacks.audit import recall, remember
from stacks.home import clone_dir
from stacks.ledger import TABLE, Ledger
from tests.databases import disarm, execute

HASHED = ("action", "actor", "model", "payload", "previous", "sequence", "time", "version", "why")
LATE = "2999-01-01T00:00:00.000000Z"


class Victim:
    """A ledger of five entries whose table has lost its triggers and its constraints."""

    def __init__(self, url: str) -> None:
        self.url = url
        ledger = Ledger(url)
        ledger.append("promote", "wine", 1, why="first", actor="ada", payload={"accuracy": 0.9})
        ledger.append("reject", "heart", 1, actor="ada")
        ledger.append("promote", "wine", 2, actor="ada", payload={"accuracy": 0.95})
        ledger.append("key", "", None, actor="ada")
        ledger.append("rollback", "wine", 1, actor="ada")
        self.anchor = ledger._anchor
        self.rows = ledger.export()
        execute(
            url,
            "CREATE TABLE forged AS SELECT * FROM ledger",
            "DROP TABLE ledger",
            "ALTER TABLE forged RENAME TO ledger",
        )

    def attacked(self, *statements: str) -> list[str]:
        """What is found after SQL that starts from the sound ledger."""
        execute(self.url, *statements)
        return self.found()

    def found(self) -> list[str]:
        """What is found, after which the ledger is sound again."""
        faults = Ledger(self.url).verify()
        self.write(self.rows)
        return faults

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Make these the entries."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.delete(TABLE))
            if rows:
                connection.execute(sa.insert(TABLE), rows)

    def rewritten(self, rows: list[dict[str, Any]]) -> list[str]:
        """What is found where all hashes were computed anew."""
        previous, chained = "0" * 64, []
        for number, row in enumerate(rows, 1):
            fields = {**row, "sequence": number, "previous": previous}
            chained.append({**fields, "hash": _digest(fields)})
            previous = chained[-1]["hash"]
        self.write(chained)
        return self.found()


def _digest(row: dict[str, Any]) -> str:
    text = json.dumps({name: row[name] for name in HASHED}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def victim(url: str) -> Victim:
    return Victim(url)


@pytest.fixture(params=[True, False], ids=["its own home", "another home"])
def remembered(request: pytest.FixtureRequest, victim: Victim) -> Iterator[bool]:
    """Whether the entries are looked at from the home that wrote them."""
    if not request.param:
        victim.anchor.unlink()
    yield request.param


CHANGED = "was changed (its hash is another)"
FOLLOWS = "does not follow the entry before it"


def test_every_field_of_the_first_an_inner_and_the_last_entry(victim: Victim) -> None:
    """The chain alone tells, without what the home remembers."""
    victim.anchor.unlink()
    assert victim.attacked() == []
    forged = {"actor": "eve", "action": "keep", "model": "toy", "why": "no", "payload": "{}"}
    for number in (1, 3, 5):
        for name, value in forged.items():
            row = victim.rows[number - 1] | {name: value}
            if row == victim.rows[number - 1]:
                continue
            (fault,) = victim.attacked(f"UPDATE ledger SET {name} = '{value}' WHERE sequence = {number}")
            version = "" if row["version"] is None else f" v{row['version']}"
            of = f" of {row['model']}" if row["model"] else ""
            assert fault == f"entry {number} ({row['action']}{of}{version}): {CHANGED}"
        (fault,) = victim.attacked(f"UPDATE ledger SET version = 7 WHERE sequence = {number}")
        assert re.fullmatch(rf"entry {number} \(.+ v7\): {re.escape(CHANGED)}", fault)
        faults = victim.attacked(f"UPDATE ledger SET previous = '{'1' * 64}' WHERE sequence = {number}")
        assert [fault.partition(": ")[2] for fault in faults] == [FOLLOWS, CHANGED]
        faults = victim.attacked(f"UPDATE ledger SET hash = '{'1' * 64}' WHERE sequence = {number}")
        assert faults[0].startswith(f"entry {number} (")
        assert faults[0].endswith(CHANGED)
        faults = victim.attacked(f"UPDATE ledger SET time = '{LATE}' WHERE sequence = {number}")
        assert faults[0].startswith(f"entry {number} (")
        assert [fault[:7] for fault in faults[1:]] == ([f"entry {number + 1}"] if number < 5 else [])
        faults = victim.attacked(f"UPDATE ledger SET sequence = {number + 100} WHERE sequence = {number}")
        assert any(fault.startswith(f"entry {number}") and fault.endswith("missing") for fault in faults) or number == 5
        assert any(fault.startswith(f"entry {number + 100} (") for fault in faults)


def test_values_of_no_type_that_the_ledger_writes(victim: Victim) -> None:
    for name in (*HASHED, "hash"):
        if name == "sequence" or (name == "version" and victim.url.startswith("postgresql")):
            continue
        faults = victim.attacked(f"UPDATE ledger SET {name} = NULL WHERE sequence = 3")
        assert faults[0].startswith("entry 3 ("), name
        assert "was changed" in faults[0], name
    if victim.url.startswith("sqlite"):
        for name in (*HASHED, "hash"):
            faults = victim.attacked(f"UPDATE ledger SET {name} = x'ff00' WHERE sequence = 3")
            assert "was changed" in " ".join(faults), name
        (fault,) = victim.attacked("UPDATE ledger SET why = CAST(x'ff61' AS TEXT) WHERE sequence = 3")
        assert fault == f"entry 3 (promote of wine v2): {CHANGED}"


def test_entries_that_are_gone(victim: Victim, remembered: bool) -> None:
    named = {1: " (promote of wine v1)", 2: " (reject of heart v1)", 3: " (promote of wine v2)", 4: " (key)"}
    if not remembered:
        named = dict.fromkeys(named, "")
    for number in range(1, 5):
        assert victim.attacked(f"DELETE FROM ledger WHERE sequence = {number}") == [
            f"entry {number}{named[number]}: missing"
        ]
    both = " (reject of heart v1, promote of wine v2)" if remembered else ""
    assert victim.attacked("DELETE FROM ledger WHERE sequence IN (2, 3)") == [f"entry 2 to 3{both}: missing"]
    last = victim.attacked("DELETE FROM ledger WHERE sequence = 5")
    every = victim.attacked("DELETE FROM ledger")
    if remembered:
        assert last == ["entry 5 (rollback of wine v1), which this home wrote last, is gone"]
        assert len(every) == 1
        assert every[0].startswith(
            "entry 1 to 5 (promote of wine v1, reject of heart v1, promote of wine v2 and 2 more)"
        )
    else:
        assert last == every == [], "only the home that wrote them can know"


def test_entries_in_another_order_and_entries_twice(victim: Victim, remembered: bool) -> None:
    moved = "sequence = CASE sequence WHEN 2 THEN 3 WHEN 3 THEN 2 ELSE sequence END"
    faults = victim.attacked(f"UPDATE ledger SET {moved}")
    for name in ("entry 2 (promote of wine v2)", "entry 3 (reject of heart v1)"):
        assert f"{name}: {CHANGED}" in faults
        assert f"{name}: {FOLLOWS}" in faults
    faults = victim.attacked("INSERT INTO ledger SELECT * FROM ledger WHERE sequence = 3")
    assert faults == ["entry 3 (promote of wine v2): stands there twice"]
    faults = victim.attacked(
        "UPDATE ledger SET sequence = sequence + 1 WHERE sequence > 2",
        "INSERT INTO ledger SELECT 3, previous, hash, time, actor, action, model, 9, why, payload FROM ledger "
        "WHERE sequence = 2",
    )
    assert f"entry 3 (reject of heart v9): {CHANGED}" in faults


def test_a_chain_computed_anew(victim: Victim, remembered: bool) -> None:
    """Nothing in such a chain is wrong; only what the home wrote tells."""
    forged = [*victim.rows[:2], {**victim.rows[2], "version": 8}, *victim.rows[3:]]
    faults = victim.rewritten(forged)
    without = victim.rewritten([*victim.rows[:2], *victim.rows[3:]])
    swapped = victim.rewritten([victim.rows[0], victim.rows[2], victim.rows[1], *victim.rows[3:]])
    if not remembered:
        assert faults == without == []
        return
    other = "is not the one that this home wrote"
    assert faults == [f"entry 3 (promote of wine v8): {other} (promote of wine v2)"]
    assert without == [
        f"entry 3 (key): {other} (promote of wine v2)",
        "entry 5 (rollback of wine v1), which this home wrote last, is gone",
    ]
    assert swapped[0] == f"entry 2 (promote of wine v2): {other} (reject of heart v1)"


def test_the_table_and_its_triggers_as_they_are(url: str) -> None:
    """Without its triggers, the table's own constraints still hold; what they let pass is found."""
    ledger = Ledger(url)
    for version in (1, 2, 3):
        ledger.append("promote", "wine", version)
    disarm(url)
    with pytest.raises(sa.exc.IntegrityError):
        execute(url, "INSERT INTO ledger SELECT * FROM ledger WHERE sequence = 2")
    execute(url, "UPDATE ledger SET version = 9 WHERE sequence = 2")
    assert ledger.verify() == [f"entry 2 (promote of wine v9): {CHANGED}"]


def test_an_entry_that_is_written_while_it_is_audited_is_no_fault(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 1)

    def overtaken(path: Path) -> Any:
        Ledger(url).append("promote", "wine", 2)
        return recall(path)

    monkeypatch.setattr("stacks.ledger.recall", overtaken)
    assert ledger.verify() == []


def test_a_note_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    path = tmp_path / "anchors" / "a.json"
    path.parent.mkdir()
    path.write_text('{"ledger": "of before", "sequence": 1, "hash": "ab"}')
    remember(path, ledger.append("keep", "wine", 1))
    with path.open("a") as file:
        file.write('\n{"sequence": 2, "ha')
    second = ledger.append("keep", "wine", 2)
    remember(path, second)
    noted = recall(path)
    assert (sorted(noted), noted[2].hash, noted[2].named) == ([1, 2], second.hash, "keep of wine v2")


def test_the_recipe_of_the_docs_checks_an_export_with_the_standard_library_alone(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.append("promote", "wine", 1, why='größer ≥ "5" \\ 🍷', payload={"accuracy": 0.1 + 0.2, "none": None})
    ledger.append("key", "", None, why="line\nbreak\ttab")
    text = (clone_dir() / "docs" / "ledger.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    export = {"genesis": "0" * 64, "entries": ledger.export()}

    def checked(entries: list[dict[str, Any]]) -> tuple[int, str]:
        path = tmp_path / "ledger.json"
        path.write_text(json.dumps({**export, "entries": entries}, ensure_ascii=False), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", recipe, str(path)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.strip() or done.stderr.strip()

    first, second = export["entries"]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert checked([first, second]) == (0, f"2 entries, the last one is {second['hash']}")
    assert checked([{**first, "why": "greater"}, second]) == (1, "entry 1 was changed")
    assert checked([second]) == (1, "entry 2 does not follow")
    assert checked([second, first])[0] == 1
