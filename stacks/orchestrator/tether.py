"""Run a command that cannot outlive whoever started it, not even by `kill -9`.

`python -m stacks.orchestrator.tether [--grace SECONDS] -- COMMAND...` runs the command in a session of its own and ends
it, with all its descendants, when standard input closes (the kernel does that when the starter ends), on SIGTERM,
SIGINT or SIGHUP, and when the command itself ends. The exit code is passed on; 128 + N when signal N ended it.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

GRACE_SECONDS = 5.0


@contextmanager
def tethered(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    grace: float = GRACE_SECONDS,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `command` while the block is executed; at its end the command and its descendants are gone.

    Args:
        command: Program and arguments.
        env: Its environment; this process's when left out.
        cwd: Its working folder.
        stdout: As for `subprocess.Popen`.
        stderr: As for `subprocess.Popen`.
        grace: Seconds between asking it to end and killing it.

    Yields:
        The process that holds the tether; it ends with the command, and with its exit code.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).absolute()), "--grace", str(grace), "--", *command],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def hold(command: Sequence[str], grace: float = GRACE_SECONDS) -> int:
    """Run `command` until it ends or the tether breaks, and return the exit code."""
    _adopt_orphans()
    broken = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: broken.set())
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"tether: cannot run {command[0]}: {error.strerror}\n")
        return 127
    threading.Thread(target=_await_end_of_input, args=(broken,), daemon=True).start()
    while child.poll() is None and not broken.wait(0.05):
        pass
    _end(child, grace)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _await_end_of_input(broken: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    broken.set()


def _adopt_orphans() -> None:
    """On Linux, become the parent of descendants whose own parent ends, so that they can be found."""
    set_child_subreaper = 36
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end(child: "subprocess.Popen[bytes]", grace: float) -> None:
    """Ask everybody to end, then make them."""
    deadline = time.monotonic() + grace
    _signal(child, signal.SIGTERM)
    while _members(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    while _members(child):
        _signal(child, signal.SIGKILL)
        time.sleep(0.02)
    child.wait()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
    for process in _members(child):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _members(child: "subprocess.Popen[bytes]") -> list[int]:
    """Ids of the living descendants of this process."""
    import psutil

    child.poll()
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
    return alive


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tether", description="Run a command that cannot outlive its starter.")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("command", nargs="+", help="program and arguments, after --")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    sys.exit(hold(given.command, given.grace))
