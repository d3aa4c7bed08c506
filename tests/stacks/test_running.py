"""A run whose process was killed is told from one that is being executed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from stacks.orchestrator import orchestrator
from stacks.orchestrator.running import bury, marked, process_of

CHILD = """
import sys, time
from pathlib import Path
from stacks.orchestrator.running import marked
with marked(Path(sys.argv[1]), "run-1", {"name": "x"}):
    print("marked", flush=True)
    time.sleep(300)
"""


def buried(folder: Path, settled: bool = True) -> list[dict[str, Any]]:
    """The facts of the runs that are found dead."""
    found: list[dict[str, Any]] = []

    def settle(facts: dict[str, Any]) -> bool:
        found.append(facts)
        return settled

    bury(folder, settle)
    return found


def start(folder: Path) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "marked\n"
    return child


def test_a_killed_process_is_found_once(tmp_path: Path) -> None:
    child = start(tmp_path)
    assert process_of(tmp_path, "run-1") == child.pid
    assert buried(tmp_path) == []
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert process_of(tmp_path, "run-1") is None
    assert buried(tmp_path) == [{"name": "x", "pid": child.pid}]
    assert buried(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_run_whose_records_could_not_be_set_right_is_found_again(tmp_path: Path) -> None:
    child = start(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert [facts["name"] for facts in buried(tmp_path, settled=False)] == ["x"]
    assert [facts["name"] for facts in buried(tmp_path)] == ["x"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    assert buried(folder) == []
    with marked(folder, "run-2", {}):
        assert process_of(folder, "run-2") == os.getpid()
        assert buried(folder) == []
    assert list(folder.iterdir()) == [] and process_of(folder, "run-2") is None


def test_two_that_look_bury_it_once(tmp_path: Path) -> None:
    child = start(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    meanwhile: list[object] = []

    def settled(_: dict[str, Any]) -> bool:
        meanwhile.append(buried(tmp_path))
        return True

    bury(tmp_path, settled)
    assert meanwhile == [[]] and list(tmp_path.iterdir()) == []


def test_rubbish_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"name":')
    assert buried(tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ended", "left"), [(lambda: True, 0), (lambda: False, 1), (lambda: 1 // 0 == 1, 1)])
def test_a_run_whose_end_could_not_be_recorded_is_found(ended: Callable[[], bool], left: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="locked"), marked(tmp_path, "run-3", {"name": "y"}, ended):
        raise ValueError("database is locked")
    assert [facts["name"] for facts in buried(tmp_path)] == ["y"] * left
    assert list(tmp_path.iterdir()) == []


HERE = {"prefect": "/home/prefect", "zenml": "sqlite:////home/zenml.db"}


@pytest.mark.parametrize(
    ("facts", "prefect", "zenml", "settled", "told"),
    [
        (HERE, None, None, True, "pz"),
        # Written before the addresses were kept.
        ({}, None, None, True, "pz"),
        (HERE | {"prefect": "https://prefect.example/api"}, None, None, False, ""),
        (HERE | {"zenml": "mysql://db.example/zenml"}, None, None, False, ""),
        (HERE, OSError("away"), None, False, "pz"),
        (HERE, None, OSError("locked"), False, "pz"),
        (HERE, LookupError("deleted"), KeyError("deleted"), True, "pz"),
    ],
)
def test_only_runs_of_these_records_are_set_right_and_only_in_both(
    facts: dict[str, str],
    prefect: Exception | None,
    zenml: Exception | None,
    settled: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def mark(record: str, trouble: Exception | None) -> None:
        heard.append(record)
        if trouble:
            raise trouble

    monkeypatch.setattr(orchestrator, "_records", lambda: HERE)
    monkeypatch.setattr(orchestrator, "mark_crashed", lambda *_: mark("p", prefect))
    monkeypatch.setattr(orchestrator, "fail_run", lambda *_: mark("z", zenml))
    ids = {"flow_run_id": str(uuid4()), "zenml_run_id": str(uuid4())}
    assert orchestrator._settled({**ids, **facts}) is settled
    assert "".join(heard) == told
