"""Runs in MLflow, by explicit ids: the record of how a Release came to be."""

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from models.errors import WorkError, bounded
from stacks import logs
from stacks.registry import artifact_root, artifacts_at, client, refused, tracking_uri, write_shared

PARENT_TAG = "mlflow.parentRunId"
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second: no run has an id of this form
_PARAM_LIMIT = 500
_PAGE = 1000
_ENDED = ("FINISHED", "FAILED")
_AT_ONCE = 8


@dataclass(frozen=True)
class Attempt:
    """One nested run: a configuration that was tried.

    Attributes:
        name: What the run is called.
        params: What was tried.
        metrics: What came of it; empty when it failed.
        started: Seconds since the epoch.
        seconds: How long it took.
        failure: Why it failed, if it did.
    """

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    started: float
    seconds: float
    failure: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """A run that is in the store: its id, its tags, and whether it has ended, well or not."""

    run_id: str
    tags: Mapping[str, str]
    finished: bool


def start_run(model: str, tags: Mapping[str, str] | None = None) -> str:
    """Start a run in the model's experiment and return its id.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    store = client()
    try:
        run = store.create_run(experiment_id(model), run_name=model, tags={**(tags or {}), "gauntlet.model": model})
    except MlflowException as error:
        raise refused(f"starting a run of '{model}'", error) from error
    logs.identify(mlflow_run_id=run.info.run_id)
    return str(run.info.run_id)


def finish_run(run_id: str, *, failed: bool = False) -> None:
    """End a run; figures and files can still be added to it by id."""
    client().set_terminated(run_id, "FAILED" if failed else "FINISHED")


def resume_run(run_id: str) -> None:
    """Let a run that was interrupted go on."""
    client().update_run(run_id, status="RUNNING")


def is_unfinished(run_id: str) -> bool:
    """Whether a run has not ended well."""
    return bool(client().get_run(run_id).info.status != "FINISHED")


def unfinished(model: str, tags: Mapping[str, str]) -> list[Known]:
    """Runs of a model with these tags that have not ended well, newest first.

    Raises:
        WorkError: MLflow refused.
    """
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    return _search(experiment_id(model), " and ".join([*wanted, "attributes.status != 'FINISHED'"]))


def nested_runs(parent_run_id: str) -> list[Known]:
    """The runs under a run.

    Raises:
        WorkError: MLflow refused.
    """
    return _search(_experiment_of(tracking_uri(), parent_run_id), f"tags.`{PARENT_TAG}` = '{parent_run_id}'")


def delete_runs(run_ids: Iterable[str]) -> None:
    """Delete runs."""
    for run_id in run_ids:
        client().delete_run(run_id)


def _search(experiment: str, wanted: str) -> list[Known]:
    from mlflow.exceptions import MlflowException

    found: list[Known] = []
    token = None
    while True:
        try:
            page = client().search_runs([experiment], wanted, max_results=_PAGE, page_token=token)
        except MlflowException as error:
            raise refused("looking for runs", error) from error
        found += [Known(run.info.run_id, dict(run.data.tags), run.info.status in _ENDED) for run in page]
        token = page.token
        if not token:
            return found


@lru_cache(maxsize=64)
def _experiment_of(uri: str, run_id: str) -> str:  # noqa: ARG001
    """The experiment that a run of a store is in; it stays there."""
    return str(client().get_run(run_id).info.experiment_id)


def same_run(model: str, run_id: str) -> str:
    """`run_id` if this store has it, else a new, finished run that takes its place.

    A cached step remembers the run it wrote to; the store may be another one by now.
    """
    from mlflow.exceptions import MlflowException

    try:
        client().get_run(run_id)
    except MlflowException:
        run_id = start_run(model, {"gauntlet.replaces": run_id})
        finish_run(run_id)
    return run_id


def experiment_id(model: str) -> str:
    """The experiment of a model, made or restored when needed."""
    from mlflow.exceptions import MlflowException

    store = client()
    found = store.get_experiment_by_name(model)
    if found is None:
        try:
            return str(store.create_experiment(model, artifact_location=_artifact_location(model)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise refused(f"creating the experiment '{model}'", error) from error
            found = store.get_experiment_by_name(model)
    if found is None:
        raise WorkError(f"MLflow's experiment '{model}' vanished while it was being created; run the command again")
    if found.lifecycle_stage == "deleted":
        store.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def log_attempts(parent_run_id: str, attempts: Iterable[Attempt]) -> None:
    """Record nested runs under a run.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    store = client()
    try:
        experiment = _experiment_of(tracking_uri(), parent_run_id)
        for attempt in attempts:
            tags = {**attempt.tags, PARENT_TAG: parent_run_id}
            if attempt.failure:
                tags["gauntlet.failure"] = bounded(attempt.failure, 500)
            start, end = (int(1000 * moment) for moment in (attempt.started, attempt.started + attempt.seconds))
            run_id = store.create_run(experiment, start_time=start, tags=tags, run_name=attempt.name).info.run_id
            metrics = [Metric(name, value, end, 0) for name, value in attempt.metrics.items()]
            params = [Param(name, _text(value)) for name, value in attempt.params.items()]
            store.log_batch(run_id, metrics=metrics, params=params, synchronous=True)
            store.set_terminated(run_id, "FAILED" if attempt.failure else "FINISHED", end)
    except MlflowException as error:
        raise refused("recording the tuning's trials", error) from error


def log_run(
    run_id: str,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Add parameters, figures and tags to a run; what is there already under a name is kept or replaced.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    logs.identify(mlflow_run_id=run_id)
    now = int(1000 * time.time())
    store = client()
    try:
        # A parameter cannot change in MLflow: a step that runs again on the same run leaves the first one.
        known = store.get_run(run_id).data.params if params else {}
        store.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()],
            params=[Param(name, _text(value)) for name, value in (params or {}).items() if name not in known],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
            synchronous=True,
        )
    except MlflowException as error:
        raise refused(f"writing to run {run_id}", error) from error


def metrics_of(run_id: str) -> dict[str, float]:
    """The last value of each of a run's metrics.

    Raises:
        WorkError: There is no such run, or MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        return dict(client().get_run(run_id).data.metrics)
    except MlflowException as error:
        raise refused(f"reading run {run_id}", error) from error


def tags_of(run_id: str) -> dict[str, str]:
    """A run's tags; none where there is no such run any more.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        return dict(client().get_run(run_id).data.tags)
    except MlflowException as error:
        if error.error_code in _GONE:
            return {}
        raise refused(f"reading run {run_id}", error) from error


def read_files(run_id: str, folder: str, ending: str) -> dict[str, bytes]:
    """The files under a folder of a run's artifacts whose name ends so, by path within the folder, sorted.

    Returns:
        Empty where there is no such run or folder any more.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    found, waiting = list[str](), [folder]
    try:
        there = _artifacts(run_id)
        while waiting:
            for entry in there.list_artifacts(waiting.pop()):
                (waiting if entry.is_dir else found).append(entry.path)
        wanted = sorted(path for path in found if path.endswith(ending))
        with tempfile.TemporaryDirectory() as draft, ThreadPoolExecutor(_AT_ONCE) as threads:
            copies = threads.map(lambda path: Path(there.download_artifacts(path, draft)).read_bytes(), wanted)
            return {path.removeprefix(f"{folder}/"): content for path, content in zip(wanted, copies, strict=True)}
    except (MlflowException, OSError) as error:
        if isinstance(error, MlflowException) and error.error_code in _GONE:
            return {}
        raise refused(f"reading {folder} of run {run_id}", error) from error


def list_files(run_id: str, folder: str, name: str, most: int) -> tuple[str, ...]:
    """Paths of the last files of a name under a folder of a run's artifacts, sorted; nothing is fetched.

    Folders are looked into from the last one on, and no more of them than that takes.

    Returns:
        Empty where there is no such run or folder any more.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    found, waiting = list[str](), [folder]
    try:
        there = _artifacts(run_id)
        while waiting and len(found) < most:
            inside = sorted(there.list_artifacts(waiting.pop()), key=lambda entry: entry.path)
            waiting += [entry.path for entry in inside if entry.is_dir]
            found += [entry.path for entry in inside if not entry.is_dir and entry.path.endswith(f"/{name}")]
    except (MlflowException, OSError) as error:
        if isinstance(error, MlflowException) and error.error_code in _GONE:
            return ()
        raise refused(f"looking into {folder} of run {run_id}", error) from error
    return tuple(sorted(found))


def address_of(run_id: str, path: str) -> str | None:
    """Address of an artifact in the MLflow server's pages, without user and password; None where there is no server."""
    uri = urlsplit(tracking_uri())
    if uri.scheme not in ("http", "https") or not uri.hostname:
        return None
    host = f"[{uri.hostname}]" if ":" in uri.hostname else uri.hostname
    at = f"{uri.scheme}://{host}{f':{uri.port}' if uri.port else ''}{quote(uri.path.rstrip('/'), safe='/%')}"
    return f"{at}/#/experiments/{_experiment_of(tracking_uri(), run_id)}/runs/{run_id}/artifacts/{quote(path)}"


def log_dataset(run_id: str, *, name: str, digest: str, schema: Mapping[str, str], rows: int, context: str) -> None:
    """Record the data that a run used: name, digest and types, none of the values.

    Args:
        run_id: The run.
        name: Name of the data.
        digest: Their digest (MLflow keeps 36 characters).
        schema: Column to type.
        rows: How many.
        context: What for, for example "training".

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    columns = {"mlflow_colspec": [{"type": kind, "name": column, "required": True} for column, kind in schema.items()]}
    dataset = Dataset(
        name=name,
        digest=digest[:36],
        source_type="code",
        source=json.dumps({"tags": {"gauntlet.data_digest": digest}}),
        schema=json.dumps(columns),
        profile=json.dumps({"num_rows": rows}),
    )
    entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
    try:
        write_shared(lambda: client().log_inputs(run_id, datasets=[entry]))
    except MlflowException as error:
        raise refused(f"recording the data of run {run_id}", error) from error


def log_files(run_id: str, folder: Path, artifact_path: str) -> None:
    """Add all files of a folder to a run's artifacts.

    Raises:
        WorkError: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        client().log_artifacts(run_id, str(folder), artifact_path)
    except (MlflowException, OSError) as error:
        raise refused(f"writing {artifact_path} to run {run_id}", error) from error


def _artifacts(run_id: str) -> Any:
    """Where a run's artifacts lie; MLflow's own client asks its server for that, and for the run, at every file."""
    return artifacts_at(client().get_run(run_id).info.artifact_uri)


def _artifact_location(model: str) -> str | None:
    root = artifact_root()
    return f"{root.rstrip('/')}/{model}" if root else None


def _text(value: Any) -> str:
    return bounded(str(value), _PARAM_LIMIT)
