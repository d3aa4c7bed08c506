import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import WorkError
from stacks import registry
from stacks.ledger import open_ledger
from steps import deploy
from steps.build import bento_version
from steps.deploy import bento_file, delete_bento, faults, publish, publish_and_ask, stage, store_dir
from steps.promote import repair, rollback
from tests.steps.arena import Arena


@pytest.fixture
def arena(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    """A model with three versions, all crowned in turn, and a ledger of its own."""
    monkeypatch.setenv("GAUNTLET_DATABASE", f"sqlite:///{tmp_path / 'ledger.db'}")
    made = Arena(tmp_path, dict(os.environ))
    made.add_versions(3)
    for version in (1, 2, 3):
        open_ledger().append("promote", made.model, version)
        publish(made.model)
    return made


def _latest(arena: Arena) -> str:
    return (store_dir() / arena.model / "latest").read_text()


def _tag_of_latest(arena: Arena) -> str:
    """What BentoML itself takes `<model>:latest` for."""
    return ":".join(Path(arena.bentoml("get", f"{arena.model}:latest", "-o", "path").strip()).parts[-2:])


def _answer(arena: Arena) -> str:
    """Serve `<model>:latest` by BentoML's own command and ask it which version it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", f"{arena.model}:latest", "--port", str(port)]
    server = subprocess.Popen(
        command,
        env=arena.env,
        cwd=arena.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, "the server ended"
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/version", data=b"{}", headers={"Content-Type": "application/json"}
            )
            try:
                return urllib.request.urlopen(request, timeout=10).read().decode()
            except OSError:
                assert time.monotonic() < deadline, "the server never answered"
                time.sleep(0.1)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_rolled_back_and_a_version_deleted_latest_serves_the_champion(arena: Arena) -> None:
    rollback(arena.model, why="a test")
    arena.bentoml("delete", f"{arena.model}:{bento_version(3)}", "--yes")
    assert _latest(arena) == bento_version(2)
    assert _answer(arena) == bento_version(2)


def test_a_users_delete_of_another_version_keeps_latest_by_itself(arena: Arena) -> None:
    rollback(arena.model, 1)
    assert _tag_of_latest(arena) == f"{arena.model}:000001"
    for other in (2, 3):
        arena.bentoml("delete", f"{arena.model}:{bento_version(other)}", "--yes")
        assert _tag_of_latest(arena) == f"{arena.model}:000001"
    assert repair() == ()


def test_latest_falls_to_the_previous_champion_when_the_user_deletes_the_champion(arena: Arena) -> None:
    rollback(arena.model, 1)
    rollback(arena.model, 3)
    arena.bentoml("delete", f"{arena.model}:{bento_version(3)}", "--yes")
    assert _tag_of_latest(arena) == f"{arena.model}:000001"
    assert repair() == (f"{arena.model}: {arena.model}:000003 is latest",)
    assert _tag_of_latest(arena) == f"{arena.model}:000003"


def test_a_bento_that_the_user_adds_is_latest_only_until_the_next_command(arena: Arena, tmp_path: Path) -> None:
    source = store_dir() / arena.model / bento_version(1)
    copy = tmp_path / "own"
    shutil.copytree(source, copy)
    info = (copy / "bento.yaml").read_text().replace("'000001'", "mine")
    lines = [
        line if not line.startswith("creation_time") else "creation_time: '2199-01-01T00:00:00+00:00'"
        for line in info.splitlines()
    ]
    (copy / "bento.yaml").write_text("\n".join(lines))
    with tarfile.open(tmp_path / "own.bento", "w:xz") as archive:
        archive.add(copy, ".")
    arena.bentoml("import", str(tmp_path / "own.bento"))
    assert _tag_of_latest(arena) == f"{arena.model}:mine"
    repair()
    assert _tag_of_latest(arena) == f"{arena.model}:000003"
    arena.bentoml("delete", f"{arena.model}:{bento_version(2)}", "--yes")
    assert _tag_of_latest(arena) == f"{arena.model}:000003"


def test_publishing_again_changes_nothing(arena: Arena) -> None:
    before = {path: path.stat().st_mtime_ns for path in (store_dir() / arena.model).rglob("*")}
    published = publish(arena.model)
    assert (published.version, published.tag, published.changed) == (3, f"{arena.model}:000003", False)
    assert {path: path.stat().st_mtime_ns for path in (store_dir() / arena.model).rglob("*")} == before


def test_a_model_without_champion_publishes_nothing(arena: Arena) -> None:
    assert publish("nobody").tag is None
    assert not (store_dir() / "nobody").exists()


def test_a_damaged_champion_is_imported_again(arena: Arena) -> None:
    bento = store_dir() / arena.model / bento_version(3)
    damages: dict[str, Callable[[], object]] = {
        "differs in src/version.txt": lambda: (bento / "src" / "version.txt").write_text("000099"),
        "differs in bento.yaml": lambda: (bento / "bento.yaml").write_text("creation_time: '2020-01-01'\n"),
        "FileNotFoundError": lambda: (bento / "src" / "service.py").unlink(),
        "JSONDecodeError": lambda: (bento / "gauntlet.json").write_text("{"),
        "is not in the store": lambda: shutil.rmtree(bento),
    }
    for words, damage in damages.items():
        damage()
        assert words in faults(arena.model, 3)[0]
        assert publish(arena.model).imported
        assert faults(arena.model, 3) == []
        assert (bento / "src" / "version.txt").read_text() == "000003"
    assert os.access(bento / "env" / "docker" / "entrypoint.sh", os.X_OK)


def test_bytecode_from_serving_is_no_damage(arena: Arena) -> None:
    cache = store_dir() / arena.model / bento_version(3) / "src" / "__pycache__"
    cache.mkdir()
    (cache / "service.cpython-311.pyc").write_bytes(b"x")
    assert faults(arena.model, 3) == []


def test_deleting_keeps_latest_and_refuses_the_champion(arena: Arena) -> None:
    with pytest.raises(WorkError, match=r"v3 of .* is the champion"):
        delete_bento(arena.model, 3)
    delete_bento(arena.model, 2)
    delete_bento(arena.model, 2)
    assert not (store_dir() / arena.model / bento_version(2)).exists()
    assert _tag_of_latest(arena) == f"{arena.model}:000003"


def test_a_bento_that_is_not_what_it_should_be_is_not_published(arena: Arena, tmp_path: Path) -> None:
    arena.add_versions(2)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    shutil.copy(tmp_path / bento_file(arena.model, 1), wrong / bento_file(arena.model, 4))
    registry.log_file(arena.model, 4, wrong / bento_file(arena.model, 4), "bento")
    with pytest.raises(WorkError, match=f"v4 of .* calls itself {arena.model}:000001"):
        stage(arena.model, 4)
    (wrong / bento_file(arena.model, 5)).write_bytes(b"no archive")
    registry.log_file(arena.model, 5, wrong / bento_file(arena.model, 5), "bento")
    with pytest.raises(WorkError, match="cannot be unpacked"):
        stage(arena.model, 5)
    outside = wrong / bento_file(arena.model, 5)
    with tarfile.open(outside, "w:xz") as archive:
        archive.add(tmp_path / bento_file(arena.model, 1), "../outside")
    registry.log_file(arena.model, 5, outside, "bento")
    with pytest.raises(WorkError, match="which is not unpacked"):
        stage(arena.model, 5)
    assert sorted(path.name for path in (store_dir() / arena.model).iterdir()) == [
        "000001",
        "000002",
        "000003",
        "latest",
    ]
    assert not (store_dir().parent / "tmp" / "gauntlet" / arena.model).exists()


def test_a_missing_artifact_is_an_error_in_words(arena: Arena) -> None:
    with pytest.raises(WorkError, match="version 9"):
        stage(arena.model, 9)


def test_who_publishes_at_once_imports_once(arena: Arena) -> None:
    shutil.rmtree(store_dir() / arena.model)
    with ThreadPoolExecutor(4) as pool:
        published = list(pool.map(publish, [arena.model] * 4))
    assert sorted(one.imported for one in published) == [False, False, False, True]
    assert faults(arena.model, 3) == []


def test_publishing_and_repairing_are_cheap_when_nothing_is_wrong(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written and no artifact is fetched; MLflow is asked for the versions of the model once."""
    repair()
    asked: list[str] = []
    versions = registry.versions

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something was written, or an artifact was fetched")

    for name in ("fetch_file", "log_file", "log_files", "set_tag"):
        monkeypatch.setattr(registry, name, refused)
    monkeypatch.setattr(deploy, "_replace", refused)
    monkeypatch.setattr(registry, "versions", lambda model: asked.append(model) or versions(model))
    assert repair() == ()
    assert asked == [arena.model]


def test_a_champion_is_asked_until_it_answers_and_again_once_its_bento_was_written(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def silent(_: str, version: int) -> dict[str, object]:
        asked.append(version)
        raise WorkError("it does not answer")

    monkeypatch.setattr(deploy, "ask_latest", silent)
    for _ in range(2):
        with pytest.raises(WorkError, match="does not answer"):
            publish_and_ask(arena.model)

    def answering(_: str, version: int) -> dict[str, object]:
        asked.append(version)
        return {"version": version}

    monkeypatch.setattr(deploy, "ask_latest", answering)
    assert [publish_and_ask(arena.model).answer for _ in range(2)] == [{"version": 3}, None]
    assert asked == [3, 3, 3]

    shutil.rmtree(store_dir() / arena.model / bento_version(3))
    monkeypatch.setattr(deploy, "ask_latest", silent)
    for _ in range(2):
        with pytest.raises(WorkError, match="does not answer"):
            publish_and_ask(arena.model)
    open_ledger().append("promote", arena.model, 2)
    monkeypatch.setattr(deploy, "ask_latest", answering)
    assert [publish_and_ask(arena.model).answer for _ in range(2)] == [{"version": 2}, None]
    assert asked == [3, 3, 3, 3, 3, 2]
