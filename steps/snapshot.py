"""What a live source gave: read once for the digest, and taken up by ingest, so that both mean the same rows."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pandas as pd

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
    """Keep a snapshot for the step that will ask for it; those that nobody took for a day are removed."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > OLDEST:
            shutil.rmtree(old, ignore_errors=True)
    draft = folder / f"{digest}.{token_hex(4)}"
    draft.mkdir()
    for name, frame in (("frame", snapshot.frame), ("quarantined", snapshot.quarantined)):
        with (draft / f"{name}.parquet").open("wb") as file:
            write_frame(frame, file)
    (draft / "notices.json").write_text(json.dumps(snapshot.notices), encoding="utf-8")
    try:
        draft.rename(folder / digest)
    except OSError:  # another run kept the same rows
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


def _folder() -> Path:
    return home_dir() / "cache" / "snapshots"
