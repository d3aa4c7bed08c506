"""The record of a search in MLflow, and going on from it: one run, a nested run for each trial as it finishes."""

import hashlib
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
from filelock import FileLock, Timeout

from bentos.features import feature_kinds
from models.config import ModelConfig
from stacks import runs
from stacks.home import home_dir
from steps.caching import ROOT, closure
from steps.crossval import row_keys
from steps.trials import Scored, Trial

log = logging.getLogger(__name__)

FINGERPRINT, LOCK, TRIAL, ELAPSED = (f"gauntlet.tuning_{name}" for name in ("fingerprint", "lock", "trial", "elapsed"))
STOPPED_BY = "gauntlet.tuning_stopped_by"
RESUMED_FROM = "gauntlet.tuning_resumed_from"
_LIBRARIES = ("hyperopt", "numpy", "pandas", "scikit-learn", "scipy", "xgboost")
_TAG_LIMIT = 5000


@dataclass(frozen=True)
class Restored:
    """A trial of an interrupted search, and how many seconds the search had taken when it was counted."""

    trial: Trial
    elapsed: float


@dataclass(frozen=True)
class Record:
    """Where a search is recorded, and the trials that are there already."""

    run_id: str
    restored: tuple[Restored, ...]

    def add(self, attempt: runs.Attempt) -> None:
        """Record a trial.

        Raises:
            WorkError: MLflow refused.
        """
        runs.log_attempts(self.run_id, [attempt])


@contextmanager
def recorded(config: ModelConfig, train: pd.DataFrame) -> Iterator[Record]:
    """Give the run that a search is recorded in, held against other searches while the block is executed.

    It is the run of an interrupted search with the same fingerprint, else a new one. An error leaves it as failed,
    and thus to be continued.

    Raises:
        WorkError: MLflow refused.
    """
    key = fingerprint(config, train)
    with _held_run(config.name, key) as record:
        if record.restored:
            runs.log_run(record.run_id, tags={RESUMED_FROM: str(len(record.restored))})
            count, total = len(record.restored), config.tuning.trials
            log.info("tuning: goes on at trial %d of %d, in MLflow run %s", count, total, record.run_id)
        try:
            yield record
        except BaseException:
            runs.finish_run(record.run_id, failed=True)
            raise
        runs.finish_run(record.run_id)


def as_attempt(metric: str, scored: Scored, elapsed: float) -> runs.Attempt:
    """A trial as a nested run, which holds all that `restored_trials` needs."""
    trial = scored.trial
    known = {f"cv_{metric}": trial.score, f"cv_{metric}_estimate": trial.estimate}
    text = trial.model_dump_json()
    tags = {TRIAL: text, ELAPSED: repr(elapsed)} if len(text) <= _TAG_LIMIT else {}
    if trial.dropped_after:
        tags["gauntlet.dropped_after_folds"] = str(trial.dropped_after)
    return runs.Attempt(
        name=f"trial-{trial.number:03d}-{trial.family}",
        params={"family": trial.family, **trial.params},
        metrics={name: value for name, value in known.items() if value is not None},
        started=scored.started,
        seconds=scored.seconds,
        failure=trial.failure,
        tags=tags,
    )


def fingerprint(config: ModelConfig, train: pd.DataFrame) -> str:
    """A digest of all that a search's course depends on: configuration, rows in order, code, libraries, machine.

    The number of workers is no part of it.
    """
    keys = ("task", "metric", "seed", "derived", "features", "text", "split", "tuning", "target")
    parts = config.model_dump(mode="json", include=set(keys))
    parts["tuning"] = {name: value for name, value in parts["tuning"].items() if name != "workers"}
    parts["kinds"] = feature_kinds(config)
    parts["reweigh"] = list(config.fairness.reweigh)
    columns = sorted(train.columns)
    rows = hashlib.sha256(row_keys(train[columns]).to_numpy().tobytes()).hexdigest()
    whole = {"config": parts, "columns": columns, "rows": rows, "with": _environment()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@cache
def _environment() -> Mapping[str, Any]:
    import numpy as np

    simd: Any = np.show_config(mode="dicts")
    return {
        "code": {name: hashlib.sha256(_source(name)).hexdigest() for name in sorted(closure("steps.tune"))},
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "machine": [platform.machine(), simd.get("SIMD Extensions", {}).get("found", [])],
    }


def _source(module: str) -> bytes:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py").read_bytes()


@contextmanager
def _held_run(model: str, key: str) -> Iterator[Record]:
    """An interrupted run with this fingerprint that nobody works on, else a new one; locked while in use.

    The lock is a file in this home: the kernel frees it however its process ends. Runs of other machines and homes,
    whose locks cannot be seen from here, are left alone.
    """
    folder = home_dir() / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    place = f"{platform.node()}:{folder}/"
    for run in runs.unfinished(model, {FINGERPRINT: key}):
        name = run.tags.get(LOCK, "")
        if not name.startswith(place) or STOPPED_BY in run.tags:
            continue
        lock = FileLock(folder / Path(name).name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        with _freed(lock):
            # Another search may have ended it between the look and the lock.
            if runs.is_unfinished(run.run_id):
                runs.resume_run(run.run_id)
                yield Record(run.run_id, restored_trials(run.run_id))
                return
    lock = FileLock(folder / f"{uuid4().hex}.lock")
    lock.acquire()
    with _freed(lock):
        yield Record(runs.start_run(model, {FINGERPRINT: key, LOCK: f"{place}{Path(lock.lock_file).name}"}), ())


@contextmanager
def _freed(lock: FileLock) -> Iterator[None]:
    try:
        yield
        # A run that ended well is never gone on with; another one is found by its lock.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def restored_trials(run_id: str) -> tuple[Restored, ...]:
    """The trials of a run, from number 0 to the first that is not complete; what is left of others is deleted.

    Raises:
        WorkError: MLflow refused.
    """
    whole: dict[int, Restored] = {}
    runs_of: dict[int, str] = {}
    broken: list[str] = []
    for nested in runs.nested_runs(run_id):
        trial = _trial(nested)
        if trial is None or trial.trial.number in whole:
            broken.append(nested.run_id)
        else:
            whole[trial.trial.number] = trial
            runs_of[trial.trial.number] = nested.run_id
    found = _prefix(whole)
    runs.delete_runs([*broken, *(runs_of[number] for number in whole if number >= len(found))])
    return found


def _prefix(trials: Mapping[int, Restored]) -> tuple[Restored, ...]:
    found: list[Restored] = []
    while len(found) in trials:
        found.append(trials[len(found)])
    return tuple(found)


def _trial(nested: runs.Known) -> Restored | None:
    if not nested.finished or TRIAL not in nested.tags:
        return None
    try:
        return Restored(Trial.model_validate_json(nested.tags[TRIAL]), float(nested.tags[ELAPSED]))
    except (KeyError, ValueError):
        return None
