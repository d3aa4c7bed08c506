"""Which runs are being executed on this machine: a locked file each, so that a killed process can be told.

The kernel gives the lock up when the process ends in whatever way. A file that nobody locks is a run that ended without
a word; the next run reads it and sets the records right.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def marked(
    folder: Path, run_id: str, facts: Mapping[str, Any], ended: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Keep a locked file for the run, with `facts` and this process's id, until the block is left.

    Args:
        folder: Where the files are.
        run_id: Names the file.
        facts: What whoever finds it needs to know.
        ended: Whether the run's record has its end, asked when the block failed: if not, as when ZenML's database was
            locked, the file stays for the next run to find.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_id}.json"
    draft = folder / f"{run_id}.{os.getpid()}.tmp"
    with draft.open("w") as file:
        # Locked before it gets its name: whoever sees it unlocked may take it for dead.
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({**facts, "pid": os.getpid()}, file)
        file.flush()
        draft.replace(path)
        try:
            yield
        except BaseException:
            if _known(ended):
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _known(ended: Callable[[], bool]) -> bool:
    try:
        return ended()
    except Exception:
        return False


def bury(folder: Path, settled: Callable[[dict[str, Any]], bool]) -> None:
    """Have the records of every run set right whose process is gone.

    Args:
        folder: Where the files are.
        settled: Told a run's facts, sets its records right; whether nothing is left to do for it. If something is, as
            when a record's server does not answer or is another one than this process's, the file stays for the next.
    """
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            file = path.open("r+")
        except FileNotFoundError:
            continue
        with file:
            if not _lock(file):
                continue
            try:
                facts = json.load(file)
            except ValueError:
                facts = None
            if not (facts and path.exists()) or settled(facts):
                path.unlink(missing_ok=True)


def process_of(folder: Path, run_id: str) -> int | None:
    """The id of the process that executes the run on this machine, or None when there is none."""
    try:
        with (folder / f"{run_id}.json").open("r+") as file:
            return None if _lock(file) else int(json.load(file)["pid"])
    except (OSError, ValueError, KeyError):
        return None


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
