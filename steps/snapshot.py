"""What a live source gave: read once for the digest, and taken up by ingest, so that both mean the same rows."""

import contextlib
import errno
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pandas as pd

from models.errors import WorkError
from stacks.home import home_dir
from steps.frames import read_frame, write_frame

OLDEST = 24 * 3600.0


@dataclass(frozen=True)
class Snapshot:
    """Typed rows without personal values, as the artifacts of ingest keep them: nothing more lies on the disk."""

    frame: pd.DataFrame
    quarantined: pd.DataFrame
    notices: tuple[str, ...]


def keep(digest: str, snapshot: Snapshot) -> None:
    """Keep a snapshot for the step that will ask for it; those that nobody took for a day are removed.

    Raises:
        WorkError: It cannot be written, the disk being full for example; nothing of it is left.
    """
    folder = _folder()
    draft = folder / f"{digest}.{token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
        _write(draft, snapshot)
        draft.rename(folder / digest)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # another run kept the same rows
            return
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise WorkError(
            f"the {len(snapshot.frame):,} rows that were read cannot be kept for the run ({reason}): {folder}; "
            "make room there, then run it again"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def take(digest: str) -> Snapshot | None:
    """The snapshot of that digest, which is removed, or None where this machine has none."""
    place = _folder() / digest
    try:
        with (place / "frame.parquet").open("rb") as file:
            frame = read_frame(file)
        with (place / "quarantined.parquet").open("rb") as file:
            quarantined = read_frame(file)
        notices = tuple(json.loads((place / "notices.json").read_text(encoding="utf-8")))
    except OSError:
        return None
    shutil.rmtree(place, ignore_errors=True)
    return Snapshot(frame, quarantined, notices)


def _remove_old(folder: Path) -> None:
    for old in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run took or removed it
            if time.time() - old.stat().st_mtime > OLDEST:
                shutil.rmtree(old, ignore_errors=True)


def _write(draft: Path, snapshot: Snapshot) -> None:
    draft.mkdir()
    for name, frame in (("frame", snapshot.frame), ("quarantined", snapshot.quarantined)):
        with (draft / f"{name}.parquet").open("wb") as file:
            write_frame(frame, file)
    (draft / "notices.json").write_text(json.dumps(snapshot.notices), encoding="utf-8")


def _folder() -> Path:
    return home_dir() / "cache" / "snapshots"
