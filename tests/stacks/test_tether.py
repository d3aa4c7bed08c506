"""A tethered command ends with its starter, however the starter ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stacks.orchestrator.tether import tethered

# A family of three: a child that ignores SIGTERM, its own child in a session of its own, and an orphan.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
apart = subprocess.Popen(sleep, start_new_session=True)
parent = f"import subprocess; print(subprocess.Popen({sleep!r}, stdout=subprocess.DEVNULL).pid)"
orphan = subprocess.check_output([sys.executable, "-c", parent], text=True)
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(f"{os.getpid()} {apart.pid} {orphan}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
time.sleep(300)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_family_ends_when_the_starter_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom stacks.orchestrator.tether import tethered\n"
            "with tethered([sys.executable, '-c', sys.argv[1], sys.argv[2]], grace=0.3): time.sleep(300)",
            FAMILY,
            str(pids),
        ]
    )
    try:
        wait_for(pids.exists)
        family = [int(pid) for pid in pids.read_text().split()]
        assert len(family) == 3 and all(alive(pid) for pid in family)
    finally:
        os.kill(starter.pid, signal.SIGKILL)
        starter.wait()
    wait_for(lambda: not any(alive(pid) for pid in family))


def test_module_form_ends_on_sigterm(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", FAMILY, str(pids)]
    tether = subprocess.Popen(
        [sys.executable, "-m", "stacks.orchestrator.tether", "--grace", "0.3", "--", *command], stdin=subprocess.PIPE
    )
    wait_for(pids.exists)
    family = [int(pid) for pid in pids.read_text().split()]
    tether.send_signal(signal.SIGTERM)
    assert tether.wait(120) == 128 + signal.SIGKILL
    assert not any(alive(pid) for pid in family)
    assert tether.stdin is not None
    tether.stdin.close()


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_code_is_passed_on(code: str, expected: int) -> None:
    with tethered([sys.executable, "-c", code]) as process:
        assert process.wait(120) == expected


def test_output_and_environment_reach_the_command(tmp_path: Path) -> None:
    with tethered(
        [sys.executable, "-c", "import os; print(os.environ['WORD'], os.getcwd())"],
        env={**os.environ, "WORD": "hello"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [b"hello", str(tmp_path).encode()]


def test_unknown_program_says_so() -> None:
    with tethered(["no-such-program"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"cannot run no-such-program" in process.stderr.read()
        assert process.wait(120) == 127


def test_leaving_the_block_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with tethered([sys.executable, "-c", FAMILY, str(pids)], grace=0.2):
        wait_for(pids.exists)
        family = [int(pid) for pid in pids.read_text().split()]
    assert not any(alive(pid) for pid in family)
