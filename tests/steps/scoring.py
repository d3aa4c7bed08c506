"""A champion that needs no training, and what is asked of it, for tests of batch scoring and late labels."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bentos.inputs import plain_rows
from bentos.prediction_log import new_id
from bentos.release import Release
from bentos.served import Served
from stacks.home import clone_dir
from stacks.ledger import Ledger
from steps.apart import apart
from steps.resume import Order
from tests.bentos.following import crown
from tests.bentos.samples import frame_of

MODEL = "heart_disease"
SCRIPT = """
import os
import signal
import sys

from steps import batch
from steps.resume import Order

rows, source, target, last = sys.argv[1:]
batch.ROWS = int(rows)
told = []


def tell(_):
    told.append(1)
    if len(told) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)


batch.predict(Order(model="heart_disease", input=source, output=target, keep=("patient",)), tell=tell)
"""


def crowned(url: str, release: Release, version: int = 1) -> Release:
    """Make a Release the champion by the ledger at `url`."""
    crown(Ledger(url), version, release)
    return release


def patients(count: int, seed: int = 1) -> pd.DataFrame:
    """Raw rows of heart disease with a number of their own and a name, as a hospital's file holds them."""
    known = frame_of(MODEL).drop(columns=["num", "site", "age_group"], errors="ignore")
    rows = known.sample(count, replace=True, random_state=seed).reset_index(drop=True)
    return rows.assign(patient=[f"patient-{row}" for row in range(count)])


def order(source: Path, target: Path, **changes: Any) -> Order:
    """An order for the champion of `MODEL`."""
    return Order(model=MODEL, input=str(source), output=str(target), **changes)


def served_answers(release: Release, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What the service says to the same rows in one batch."""
    served = Served.load(release, 1)
    instances = plain_rows(frame, release.schema.inputs)
    body = json.dumps({"instances": instances}).encode()
    told: list[dict[str, Any]] = json.loads(served.answer(served.ask(body, batch=True)).body)["predictions"]
    return told


def sum_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def strange_id() -> str:
    """An id that no log holds."""
    return new_id(1_790_000_000.0)


def started(folder: Path, url: str, rows: int, source: Path, target: Path, last: int = 0) -> "subprocess.Popen[bytes]":
    """Start batch scoring in a process of its own, in chunks of some rows; after `last` of them it kills itself."""
    script = folder / "score.py"
    script.write_text(SCRIPT)
    env = apart(folder) | {"GAUNTLET_DATABASE": url, "PYTHONPATH": str(clone_dir())}
    command = [sys.executable, str(script), str(rows), str(source), str(target), str(last)]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_when(process: "subprocess.Popen[bytes]", come: Callable[[], bool], seconds: float = 300.0) -> None:
    """`kill -9` a process as soon as something has come."""
    begun = time.monotonic()
    while not come():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() - begun < seconds, "it did not come"
        time.sleep(0.002)
    process.kill()
    process.wait()
