"""Rows kept between the digest and ingest, where there is no room for them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from models.errors import WorkError
from stacks.home import home_dir
from steps import snapshot
from steps.snapshot import Snapshot

FRAME = pd.DataFrame({"name": [f"secret-{number}" for number in range(5_000)]})
ROWS = Snapshot(FRAME, FRAME.head(0), ("a notice",))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAUNTLET_HOME", str(tmp_path))
    return home_dir() / "cache" / "snapshots"


@contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Files of this process end at `size` bytes; the kernel refuses more as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_cannot_be_kept_are_a_clear_stop_and_leave_nothing(folder: Path) -> None:
    with _room_for(1_000), pytest.raises(WorkError) as failed:
        snapshot.keep("digest", ROWS)
    said = str(failed.value)
    assert said.startswith("the 5,000 rows that were read cannot be kept for the run (File too large): ")
    assert str(folder) in said and said.endswith("make room there, then run it again") and "secret-" not in said
    assert list(folder.iterdir()) == []
    snapshot.keep("digest", ROWS)
    taken = snapshot.take("digest")
    assert taken is not None and taken.notices == ROWS.notices
    pd.testing.assert_frame_equal(taken.frame, FRAME)


def test_a_cache_that_is_a_file_is_a_clear_stop(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    with pytest.raises(WorkError, match=r"cannot be kept for the run \((File exists|Not a directory)\)"):
        snapshot.keep("digest", ROWS)


def test_of_two_runs_that_keep_the_same_rows_the_first_one_s_stay(folder: Path) -> None:
    snapshot.keep("digest", ROWS)
    snapshot.keep("digest", replace(ROWS, notices=("the second run's",)))
    assert [path.name for path in folder.iterdir()] == ["digest"]
    taken = snapshot.take("digest")
    assert taken is not None and taken.notices == ROWS.notices
