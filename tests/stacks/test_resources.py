"""What a step used: real processes, real memory, and where ZenML keeps the figures."""

import subprocess
import sys
import time

from stacks.orchestrator.resources import measured

BURN = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
HOLD = "block = bytearray(600 * 2**20)\nimport time; time.sleep(2)"


def test_time_and_memory_of_this_process() -> None:
    with measured() as usage:
        before = usage().peak_mib
        block = bytearray(150 * 2**20)
        time.sleep(0.4)
        del block
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    used = usage()
    assert used.wall_seconds >= 0.6
    assert 0.2 <= used.cpu_seconds <= used.wall_seconds + 0.2
    assert used.peak_mib - before > 140
    assert usage() == used, "the block is over"


def test_children_that_the_block_started_count() -> None:
    with measured() as usage:
        subprocess.run([sys.executable, "-c", BURN], check=True)
        subprocess.run([sys.executable, "-c", HOLD], check=True)
    assert usage().cpu_seconds > 0.4
    assert usage().peak_mib > 600


def test_children_that_were_there_before_do_not_count() -> None:
    older = subprocess.Popen([sys.executable, "-c", f"{HOLD}\ninput()"], stdin=subprocess.PIPE)
    try:
        time.sleep(0.5)
        with measured() as usage:
            time.sleep(0.3)
        with measured() as again:
            time.sleep(0.3)
        assert abs(usage().peak_mib - again().peak_mib) < 50
        assert usage().cpu_seconds < 0.3
    finally:
        older.communicate(b"\n", timeout=30)
