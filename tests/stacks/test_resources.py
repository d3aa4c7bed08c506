"""What a step used: real processes, real memory, and where ZenML keeps the figures."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from stacks.orchestrator import resources
from stacks.orchestrator.resources import Usage, measured

BURN = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
HOLD = "import sys\nblock = bytearray(int(sys.argv[1]) * 2**20)\nprint('held', flush=True)\ninput()"


def peaked(usage: Callable[[], Usage], mib: float) -> None:
    """Wait for the watching thread, which looks when it gets to it."""
    deadline = time.monotonic() + 120
    while usage().peak_mib < mib:
        assert time.monotonic() < deadline, usage()
        time.sleep(0.05)


@contextmanager
def holding(mib: int) -> Iterator[int]:
    """A child that holds so much memory; its id."""
    command = [sys.executable, "-c", HOLD, str(mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        yield child.pid
        child.communicate(b"\n", timeout=120)


def test_time_and_memory_of_this_process() -> None:
    with measured() as usage:
        before = usage().peak_mib
        block = bytearray(150 * 2**20)
        peaked(usage, before + 140)
        del block
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    used = usage()
    assert used.wall_seconds > 0
    assert used.cpu_seconds >= 0.2
    assert usage() == used, "the block is over"


def test_memory_is_looked_at_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Semaphore(0)
    monkeypatch.setattr(resources, "_memory", lambda process: looked.release() or 7 * resources.MIB)
    monkeypatch.setattr(resources, "_descendants", list)
    with measured() as usage:
        assert looked.acquire(timeout=120) and looked.acquire(timeout=120)
    assert usage().peak_mib == 7


def test_children_that_the_block_started_count() -> None:
    with measured() as usage:
        subprocess.run([sys.executable, "-c", BURN], check=True)
        with holding(600):
            peaked(usage, 600)
    assert usage().cpu_seconds > 0.4


def test_children_that_were_there_before_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    asked: list[int] = []
    monkeypatch.setattr(resources, "_shared_memory", lambda process: looked.append(process) or 1)
    monkeypatch.setattr(resources, "_cpu_seconds_of", lambda process: asked.append(process) or 0.0)
    with holding(0) as older, measured() as usage, holding(0) as younger:
        usage()
    assert younger in looked and younger in asked
    assert older not in looked and older not in asked
