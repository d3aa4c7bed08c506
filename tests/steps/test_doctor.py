import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stacks import registry
from stacks.ledger import open_ledger
from steps import doctor
from steps.build import bento_version
from steps.deploy import store_dir
from steps.doctor import Finding, examine
from steps.promote import decide, repair
from tests.steps.arena import Arena, config_of, evaluation_of, package_of


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """A model with a champion and a ledger of its own."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = Arena(tmp_path, dict(os.environ))
    made.add_versions(2)
    decide(config_of(made.model), evaluation_of(made.model), package_of(1, made.model))
    repair()
    return made


def _one(check: Any) -> Finding:
    (finding,) = check()
    assert isinstance(finding, Finding)
    return finding


def test_a_sound_installation(arena: Arena) -> None:
    findings = list(examine())
    assert {finding.name for finding in findings} == set(doctor.CHECKS)
    assert [finding for finding in findings if not finding.ok] == []
    said = {finding.name: finding.said for finding in findings}
    assert said["ledger"].endswith("1 entries, the chain is unbroken")
    assert said["aliases"] == f"{arena.model}: champion v1, previous none, challenger none, production v1"
    assert said["latest"] == f"{arena.model}:latest is the champion, v1"
    assert "files are as they were written" in said["releases"]


def test_versions_that_differ_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = [
        "pytest==0.0.1 ; python_version >= '3' \\",
        "    --hash=sha256:00",
        "never-heard-of==1.0",
        "elsewhere==1.0 ; sys_platform == 'win32'",
    ]
    (tmp_path / "requirements.lock").write_text("\n".join(lock))
    monkeypatch.setattr(doctor, "clone_dir", lambda: tmp_path)
    finding = _one(doctor.check_versions)
    assert not finding.ok
    said = f"pytest {pytest.__version__}, locked 0.0.1; never-heard-of missing, locked 1.0 (2 of 2 differ)"
    assert (finding.said, finding.cure) == (said, "make install")


def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "prefect"))
    wrong = [finding for finding in doctor.check_homes() if not finding.ok]
    assert len(wrong) == 1
    assert wrong[0].said.startswith(f"PREFECT_HOME {tmp_path / 'file' / 'prefect'} cannot be written to")


def test_a_broken_chain(arena: Arena) -> None:
    open_ledger().append("keep", arena.model, 2)
    with sqlite3.connect(arena.folder / "ledger.db") as connection:
        connection.execute("DROP TRIGGER ledger_no_update")
        connection.execute("UPDATE ledger SET why = 'another' WHERE sequence = 1")
    finding = _one(doctor.check_ledger)
    assert not finding.ok
    assert f"entry 1 (promote of {arena.model} v1): was changed" in finding.said
    with sqlite3.connect(arena.folder / "ledger.db") as connection:
        connection.execute("DROP TABLE ledger")
        connection.execute(f"CREATE TABLE ledger AS {' UNION ALL '.join([FORGED.format(n) for n in range(1, 9)])}")
    finding = _one(doctor.check_ledger)
    assert "in all" in finding.said and {f"entry {n}" for n in range(1, 9)} == {f[:7] for f in finding.faults}


FORGED = (
    "SELECT {0} AS sequence, '' AS previous, '' AS hash, '' AS time, 'eve' AS actor, 'keep' AS action, 'x' AS model, "
    "1 AS version, '' AS why, '{{}}' AS payload"
)


def test_aliases_and_latest_that_differ(arena: Arena) -> None:
    registry.client().set_registered_model_alias(arena.model, "champion", "2")
    (store_dir() / arena.model / "latest").write_text(bento_version(2))
    finding = _one(doctor.check_aliases)
    assert (finding.ok, finding.said) == (False, f"champion of {arena.model} is v2, the ledger says v1")
    finding = _one(doctor.check_latest)
    assert (finding.ok, finding.said) == (False, f"{arena.model}:latest is 000002, the champion is 000001")
    assert registry.aliases(arena.model)["champion"] == 2, "the doctor changes nothing"
    repair()
    assert _one(doctor.check_aliases).ok
    assert _one(doctor.check_latest).ok


def test_a_release_with_a_changed_file_and_one_that_is_gone(arena: Arena) -> None:
    assert _one(doctor.check_releases).ok
    with (registry.release_dir(arena.model, 1) / "golden.json").open("a") as file:
        file.write(" ")
    finding = _one(doctor.check_releases)
    assert not finding.ok
    assert "golden.json" in finding.said
    registry.delete_version(arena.model, 1)
    finding = _one(doctor.check_releases)
    assert not finding.ok
    assert "has no version 1" in finding.said
    finding = _one(doctor.check_aliases)
    assert not finding.ok
    assert "v1, is not in MLflow any more (there is: v2)" in finding.said


def test_a_stack_whose_flavor_is_gone(home: Path) -> None:
    from zenml.client import Client

    from stacks.stack_file import ensure_active

    ensure_active("local")
    assert _one(doctor.check_stack).ok
    client = Client()
    flavor = client.get_flavor_by_name_and_type("prefect", "orchestrator")
    source = flavor.source
    from zenml.models import FlavorUpdate

    client.zen_store.update_flavor(flavor.id, FlavorUpdate(source="stacks.orchestrator.gone.Flavor"))
    try:
        finding = _one(doctor.check_stack)
        assert not finding.ok
        assert "the orchestrator flavor 'prefect' cannot be loaded" in finding.said
    finally:
        client.zen_store.update_flavor(flavor.id, FlavorUpdate(source=source))


def test_records_of_prefect_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    record = tmp_path / "gauntlet-server.json"
    assert "no Prefect server" in _one(doctor.check_server).said
    record.write_text("{")
    assert _one(doctor.check_server).cure == f"delete {record}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        record.write_text(json.dumps({"url": url, "pid": gone.pid, "lease_port": 1}))
        assert f"is gone (pid {gone.pid})" in _one(doctor.check_server).said
        silent = [sys.executable, "-c", "input()", "stacks.orchestrator.server"]
        deaf = subprocess.Popen(silent, stdin=subprocess.PIPE)
        try:
            record.write_text(json.dumps({"url": url, "pid": deaf.pid, "lease_port": 1}))
            finding = _one(doctor.check_server)
            assert (finding.ok, finding.cure) == (False, f"kill {deaf.pid}")
        finally:
            deaf.communicate(b"\n", timeout=120)


def test_another_database_than_the_stack_s(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stacks import stack_file

    theirs = "postgresql://me:hunter2@db.example/gauntlet"
    monkeypatch.setattr(stack_file, "active_environment", lambda: {"GAUNTLET_DATABASE": theirs})
    finding = _one(doctor.check_database)
    assert not finding.ok
    assert "postgresql+psycopg://me:***@db.example/gauntlet" in finding.said
    monkeypatch.setenv("GAUNTLET_DATABASE", theirs)
    assert _one(doctor.check_database).ok
    monkeypatch.setattr(stack_file, "active_environment", dict)
    assert _one(doctor.check_database).ok


def test_a_service_that_follows_a_stack_file_looks_where_the_active_stack_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from stacks import stack_file

    theirs = "postgresql://me:hunter2@db.example/gauntlet"
    carried = {"GAUNTLET_DATABASE": theirs}
    monkeypatch.delenv("GAUNTLET_DATABASE", raising=False)
    monkeypatch.setattr(stack_file, "active_environment", lambda: carried)
    for name in ("S3_ENDPOINT", "S3_REGION", "S3_KEY_ID", "S3_SECRET", "CLOUD_SECRET"):
        monkeypatch.setenv(f"GAUNTLET_{name}", "given")
    monkeypatch.setenv("GAUNTLET_DATABASE_URL", theirs)
    monkeypatch.setenv("GAUNTLET_STACK", "cloud")
    assert _one(doctor.check_database).ok
    carried.clear()
    finding = _one(doctor.check_database)
    assert not finding.ok and "gauntlet.db" in finding.said and "GAUNTLET_STACK" in str(finding.cure)


def test_a_check_that_cannot_be_made_is_a_finding(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    (arena.folder / "broken.db").write_text("no database" * 1_000)
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{arena.folder / 'broken.db'}")
    findings = {finding.name: finding for finding in examine()}
    assert set(findings) == set(doctor.CHECKS)
    assert "file is not a database" in findings["ledger"].said
    assert not findings["aliases"].ok
    assert findings["homes"].ok
