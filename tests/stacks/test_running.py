"""A run whose process was killed is told from one that is being executed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stacks.orchestrator.running import bury, marked, process_of

CHILD = """
import sys, time
from pathlib import Path
from stacks.orchestrator.running import marked
with marked(Path(sys.argv[1]), "run-1", {"name": "x"}):
    print("marked", flush=True)
    time.sleep(300)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "marked\n"
    return child


def test_a_killed_process_is_found_once(tmp_path: Path) -> None:
    child = start(tmp_path)
    assert process_of(tmp_path, "run-1") == child.pid
    assert list(bury(tmp_path)) == []
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert process_of(tmp_path, "run-1") is None
    assert list(bury(tmp_path)) == [{"name": "x", "pid": child.pid}]
    assert list(bury(tmp_path)) == [] and list(tmp_path.iterdir()) == []


def test_a_run_that_ends_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "running"
    assert list(bury(folder)) == []
    with marked(folder, "run-2", {}):
        assert process_of(folder, "run-2") == os.getpid()
        assert list(bury(folder)) == []
    assert list(folder.iterdir()) == [] and process_of(folder, "run-2") is None


def test_two_that_look_bury_it_once(tmp_path: Path) -> None:
    child = start(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    first, second = bury(tmp_path), bury(tmp_path)
    assert next(first)["name"] == "x"
    assert list(second) == []
    assert list(first) == []


def test_rubbish_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"name":')
    assert list(bury(tmp_path)) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ended", "left"), [(lambda: True, 0), (lambda: False, 1), (lambda: 1 // 0 == 1, 1)])
def test_a_run_whose_end_could_not_be_recorded_is_found(ended: Callable[[], bool], left: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="locked"), marked(tmp_path, "run-3", {"name": "y"}, ended):
        raise ValueError("database is locked")
    assert [facts["name"] for facts in bury(tmp_path)] == ["y"] * left
    assert list(tmp_path.iterdir()) == []
