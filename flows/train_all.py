"""The Prefect flow `train-all`: every model, a few at a time; one that fails stops no other."""

import contextvars
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from prefect import Task, flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from flows.all_view import Watch, watching
from flows.lanes import Lane, LaneLost, Order, close_all, how_many, new_lane
from models.config import model_names, models_dir
from models.errors import ConfigError, GauntletError, WorkError, bounded, guess
from stacks.active import use_stack

VERDICTS = ("promoted", "kept", "rejected", "pending")
SHOWN = ("version", "verdict", "reason", "champion", "metric", "zenml_run_id", "mlflow_run_id", "bento")


class ModelsFailed(WorkError):
    """Some models failed; the others are done.

    Attributes:
        report: What `train_all` returns when none fails.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        failed = [result["model"] for result in report["results"] if result["error"]]
        shown = ", ".join(failed[:20]) + (", …" if len(failed) > 20 else "")
        super().__init__(f"{len(failed)} of {report['models']} models failed: {shown}")
        self.report = report


@flow(name="train-all", flow_run_name="train-all", validate_parameters=False)
def train_all(
    limit: int | None = None,
    models: list[str] | None = None,
    source: str | None = None,
    overrides: list[str] | None = None,
    why: str = "",
    actor: str | None = None,
) -> dict[str, Any]:
    """Train every model, at most `limit` at a time.

    Args:
        limit: How many at once; as many as there are cores when left out.
        models: Names of YAMLs in `models/`; all when left out.
        source: Which of the YAMLs' sources; each one's first when left out.
        overrides: `key=value` texts that go on top of every YAML.
        why: Reason for the ledger.
        actor: Who asked; the user of this process when left out.

    Returns:
        What `gauntlet run --all --json` prints.

    Raises:
        ConfigError: There is no model, or no such one, or `limit` is below one.
        ModelsFailed: All were tried and some failed; it carries the report.
    """
    started = time.monotonic()
    use_stack()
    names = _wanted(models)
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit} models at a time lets none run; give one or more")
    lanes = how_many(limit, len(names))
    order = Order("", source, list(overrides or []), why, actor, "")
    with watching(len(names)) as watch:
        results = _Crew(str(flow_run.id), order, watch).train(names, lanes)
    report = _report(results, lanes, time.monotonic() - started)
    if report["failed"]:
        raise ModelsFailed(report)
    return report


def _wanted(models: Sequence[str] | None) -> list[str]:
    known = model_names()
    if not known:
        raise ConfigError(f"there is no model in {models_dir().name}/; `gauntlet new` writes one")
    for name in models or ():
        if name not in known:
            raise ConfigError(f"unknown model '{name}'{guess(name, known)}")
    return list(dict.fromkeys(models)) if models else known


def _report(results: Sequence[Mapping[str, Any]], lanes: int, seconds: float) -> dict[str, Any]:
    return {
        "models": len(results),
        **{verdict: sum(result["verdict"] == verdict for result in results) for verdict in VERDICTS},
        "failed": sum(bool(result["error"]) for result in results),
        "results": list(results),
        "lanes": lanes,
        "prefect_flow_run_id": str(flow_run.id),
        "seconds": round(seconds, 1),
    }


@dataclass
class _Crew:
    """The lanes of one flow run and the models they have still to train."""

    flow_run_id: str
    order: Order
    watch: Watch
    _waiting: list[str] = field(default_factory=list)
    _results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lanes: dict[int, Lane] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def train(self, names: Sequence[str], lanes: int) -> list[dict[str, Any]]:
        """Train all; results in the order of the names."""
        self._waiting = list(reversed(names))
        with self._ending_lanes(), ThreadPoolExecutor(lanes) as threads:
            try:
                for number in range(lanes):  # all start while the first one prepares
                    with suppress(WorkError):
                        self._lane(number)
                self._prepare()
                # Prefect's settings, client and flow run are in the context, which threads do not inherit.
                work = [threads.submit(contextvars.copy_context().run, self._work, number) for number in range(lanes)]
                for done in work:
                    done.result()
            except BaseException:
                self._close()
                raise
        return [self._results[name] for name in names]

    @contextmanager
    def _ending_lanes(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._close()

    def _prepare(self) -> None:
        try:
            self._lane(0).prepare()
        except LaneLost:
            self._lane(0).prepare()

    def _lane(self, number: int) -> Lane:
        """Lane `number`, another one where it is used up or lost."""
        lane = self._lanes.get(number)
        if lane and not lane.used_up:
            return lane
        if lane:
            lane.close()
        settings = (PREFECT_API_URL, PREFECT_UI_URL)
        prefect = {setting.name: str(setting.value()) for setting in settings if setting.value()}
        with self._guard:
            if self._closed:
                raise WorkError("interrupted")
            try:
                lane = self._lanes[number] = new_lane(prefect)
            except OSError as error:
                raise WorkError(f"no process to train in could be started: {error.strerror}") from error
        return lane

    def _close(self) -> None:
        with self._guard:
            self._closed = True
            self._waiting.clear()
            lanes = list(self._lanes.values())
            self._lanes.clear()
        close_all(lanes)

    def _next(self) -> str | None:
        with self._guard:
            return self._waiting.pop() if self._waiting else None

    def _work(self, number: int) -> None:
        """Train one waiting model after another in lane `number`."""
        while (model := self._next()) is not None:
            result = self._train(number, model)
            if not self._closed:
                self._results[model] = result
                self.watch.finished(result)

    def _train(self, number: int, model: str) -> dict[str, Any]:
        started = time.monotonic()
        said: dict[str, Any] = {}

        def tell(message: Mapping[str, Any]) -> None:
            said.update(message)
            self.watch.step(number, model, message.get("step", ""))

        result: Mapping[str, Any] = {}
        error = None
        tell({})
        try:
            task_run_id = _placeholder(self.flow_run_id, model)
            result = self._lane(number).train(replace(self.order, model=model, parent_task_run_id=task_run_id), tell)
        except LaneLost as lost:
            error = f"{said['step']}: {lost}" if "step" in said else str(lost)
            _mark_crashed(said.get("flow_run_id"), error)
        except GauntletError as failure:
            error = str(failure)
        except Exception as failure:
            error = f"{type(failure).__name__}: {bounded(str(failure), 800)}"
        return {
            "model": model,
            **{key: result.get(key) for key in SHOWN},
            "score": result.get("metrics", {}).get(result.get("metric")),
            "prefect_flow_run_id": said.get("flow_run_id"),
            "seconds": round(time.monotonic() - started, 1),
            "error": error,
        }


def _placeholder(flow_run_id: str, model: str) -> str:
    """The task run of `train-all` that stands for a model's own flow run; the server keeps their states equal."""
    task = Task(lambda: None, name=model)
    task.task_key = f"train-all.{model}"
    with get_client(sync_client=True) as client:
        return str(client.create_task_run(task, UUID(flow_run_id), dynamic_key=model, name=model).id)


def _mark_crashed(flow_run_id: str | None, reason: str) -> None:
    from stacks.orchestrator.flow_run import mark_crashed

    if flow_run_id:
        mark_crashed(UUID(flow_run_id), reason)
