"""The Prefect side of a run: an API to talk to, a flow run to be in, task runs for the steps."""

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import certifi
from prefect import Flow, Task
from prefect import tags as prefect_tags
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.context import (
    FlowRunContext,
    SettingsContext,
    SyncClientContext,
    TagsContext,
    TaskRunContext,
    get_settings_context,
)
from prefect.exceptions import CancelledRun, ObjectNotFound
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_DEFAULT_RESULT_STORAGE_BLOCK,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_UI_URL,
    Settings,
)
from prefect.states import AwaitingRetry, Cancelled, Crashed, Pending, Retrying, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from stacks.orchestrator.server import ensure_server, lasting_address, public_url


@dataclass(frozen=True)
class TaskPolicy:
    """How a step is run as a task.

    Attributes:
        delays: Seconds to wait before each retry; as many retries as there are delays.
        log_prints: Whether printed text goes to Prefect's log.
        label: A tag of the task run that no concurrency limit goes by.
        stops: Exceptions that mean that somebody stopped the run: never retried, and the task run is cancelled.
        stopping: Set when the run is being stopped: what waits for its retry has it at once, to be refused there.
    """

    delays: Sequence[float] = ()
    log_prints: bool = False
    label: str | None = None
    stops: tuple[type[Exception], ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)


class StepStates:
    """Runs functions as task runs of the current flow run and keeps their final states by step name."""

    def __init__(self) -> None:
        self._states: dict[str, State[Any]] = {}

    def run(
        self,
        name: str,
        key: str,
        upstream: Sequence[str],
        function: Callable[[], State[Any] | None],
        policy: TaskPolicy,
    ) -> None:
        """Run `function` as a task run that comes after those of the `upstream` steps; raises what it raised.

        Args:
            name: Name of the step and of its task run.
            key: What Prefect recognises the same task by, over runs.
            upstream: Names of steps; those without a task run are left out.
            function: The work; it may return a state of its own choice, such as `Completed(name="Cached")`.
            policy: How to run it.
        """
        raised: list[BaseException] = []
        delays = iter((0.0, *policy.delays))

        def attempt() -> State[Any] | None:
            raised.clear()
            _label_task_run(policy.label)
            # Prefect's own delay is a sleep that nothing in a thread could end.
            _await_retry(next(delays), policy.stopping)
            try:
                return function()
            except policy.stops as stop:
                raised.append(stop)
                return Cancelled(message=str(stop))
            except BaseException as error:
                raised.append(error)
                raise

        task = Task(
            attempt,
            name=name,
            task_run_name=name.replace("{", "{{").replace("}", "}}"),
            retries=len(policy.delays),
            cache_policy=NO_CACHE,
            persist_result=False,
            log_prints=policy.log_prints,
        )
        # Prefect makes the key from the function's code, which is the same for all steps.
        task.task_key = key
        before = [self._states[step] for step in upstream if step in self._states]
        state: State[Any] = task(return_state=True, wait_for=before)
        if not state.is_completed():
            raise raised[0] if raised else RuntimeError(f"{name}: {state.message}")
        self._states[name] = state


def show_waiting(reason: str) -> None:
    """Show the current task run as pending in Prefect, until `show_running`."""
    _show(Pending(name="Waiting", message=reason))


def show_running() -> None:
    """Show the current task run as running, if it was shown as waiting."""
    context = TaskRunContext.get()
    if context and context.task_run.state and context.task_run.state.name == "Waiting":
        _show(Running())


def _await_retry(delay: float, stopping: threading.Event) -> None:
    """Wait before a retry of the current task run, shown as Prefect shows it, until the run is being stopped."""
    if delay:
        _show(AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(seconds=delay)))
        stopping.wait(delay)
        _show(Retrying())


def _show(state: State[Any]) -> None:
    # A task run's states are told by the process that runs it, as events; Prefect's engine has begun it already.
    if (context := TaskRunContext.get()) is None:
        return
    task_run, before = context.task_run, context.task_run.state
    state.state_details.task_run_id, state.state_details.flow_run_id = task_run.id, task_run.flow_run_id
    task_run.state, task_run.state_id, task_run.state_type, task_run.state_name = (
        state,
        state.id,
        state.type,
        state.name,
    )
    emit_task_run_state_change_event(task_run, before, state)


def in_flow_run(
    work: Callable[[], None],
    name: str,
    run_name: str,
    tags: Sequence[str],
    label: str | None,
    stopped: Callable[[BaseException], bool] = lambda _: False,
) -> None:
    """Call `work` inside the current flow run, or inside one of its own when there is none.

    Args:
        work: What to do; what it raises is raised here, and fails the flow run.
        name: Name of the flow, for a flow run of its own.
        run_name: Name of that flow run.
        tags: Added to the flow run, and to the task runs that `work` starts.
        label: One more tag, of the flow run only.
        stopped: Whether what `work` raised means that somebody stopped it: its own flow run is then cancelled.
    """
    labels = [label] if label else []
    if current_flow_run_id():
        _add_tags([*tags, *labels])
        with prefect_tags(*tags):
            work()
        return

    raised: list[BaseException] = []

    def untagged_work() -> State[Any] | None:
        try:
            with TagsContext(current_tags=TagsContext.get().current_tags - set(labels)):
                work()
        except BaseException as error:
            if not stopped(error):
                raise
            raised.append(error)
            return Cancelled(message=str(error) or "Stopped.")
        return None

    flow = Flow(
        untagged_work,
        name=flow_name(name),
        flow_run_name=lambda: run_name,
        version="zenml",
        retries=0,
        validate_parameters=False,
        persist_result=False,
        result_storage=_local_results(),
        log_prints=False,
    )
    with prefect_tags(*tags, *labels):
        try:
            flow()
        except CancelledRun:
            raise raised[0] from None


def flow_name(pipeline: str) -> str:
    """The name of a pipeline's flow: its own, but for characters that Prefect refuses."""
    return "".join("-" if character in "/%&<>" else character for character in pipeline)


@contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """The client of the current context, or one that all of a run shares.

    Its TLS context is made once a process: loading the certificates takes longer than any request.
    """
    if (current := SyncClientContext.get()) is not None:
        yield current.client
        return
    shared = SyncClientContext(httpx_settings={"verify": _tls_context()})
    # Otherwise Prefect takes it for a client of special settings, and makes itself ordinary ones.
    shared._httpx_settings = None
    with shared:
        yield shared.client


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=PREFECT_API_SSL_CERT_FILE.value() or certifi.where())
    if PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value():
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def current_flow_run_id() -> UUID | None:
    """The id of the Prefect flow run that the caller is in."""
    context = FlowRunContext.get()
    return context.flow_run.id if context and context.flow_run else None


def flow_run_url(flow_run_id: UUID) -> str:
    """Where a person looks at the flow run; call it inside `prefect_api`."""
    return f"{PREFECT_UI_URL.value()}/runs/flow-run/{flow_run_id}"


def prefect_address() -> str:
    """What later processes recognise the Prefect by that has the run's record; call it inside `prefect_api`."""
    return lasting_address(PREFECT_HOME.value(), PREFECT_API_URL.value())


@contextmanager
def prefect_api() -> Iterator[None]:
    """Settings for talking to Prefect from here: an API that answers, and no heartbeats, which cost a flat second."""
    context = get_settings_context()
    known = _prepared.get(id(context.settings))
    url = PREFECT_API_URL.value()
    changes: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    if url is None:
        home = PREFECT_HOME.value()
        url = ensure_server(home)
        # A server of this machine's own loopback needs no protection from foreign pages: one request less a client.
        changes |= {
            PREFECT_API_URL: url,
            PREFECT_UI_URL: public_url(home, url),
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
        }
    if known is None or known.url != url or known.base is not context.settings:
        known = _Prepared(context.settings, url, context.settings.copy_with_update(updates=changes))
        _prepared.clear()
        _prepared[id(context.settings)] = known
    with SettingsContext(profile=context.profile, settings=known.settings), prefect_client():
        yield


@dataclass(frozen=True)
class _Prepared:
    """Settings made from `base` for an API address; making them validates everything anew and takes a while."""

    base: Settings
    url: str
    settings: Settings


_prepared: dict[int, _Prepared] = {}


def read_states(flow_run_id: UUID) -> tuple[State[Any] | None, list[TaskRun]]:
    """The state of a flow run and its task runs.

    Raises:
        LookupError: Prefect does not know the flow run.
    """
    with prefect_client() as client:
        try:
            state = client.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            raise LookupError(f"Prefect has no flow run {flow_run_id}") from None
        return state, _task_runs(client, flow_run_id)


def _task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> list[TaskRun]:
    """All task runs of a flow run; a server gives so many at once as it is set up to."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    found: list[TaskRun] = []
    while page := client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.ID_DESC, offset=len(found)):
        found += page
    return [*{task.id: task for task in found}.values()]


def mark_crashed(flow_run_id: UUID, reason: str) -> None:
    """Give a flow run that nobody executes any more, and its unfinished task runs, their final state."""
    _mark(flow_run_id, Crashed(message=reason))


def mark_cancelled(flow_run_id: UUID, reason: str) -> None:
    """The same for one that somebody stopped."""
    _mark(flow_run_id, Cancelled(message=reason))


def _mark(flow_run_id: UUID, final: State[Any]) -> None:
    state, tasks = read_states(flow_run_id)
    with prefect_client() as client:
        for task in tasks:
            if not task.state or not task.state.is_final():
                client.set_task_run_state(task.id, final, force=True)
        if state is None or not state.is_final():
            client.set_flow_run_state(flow_run_id, final, force=True)


def _local_results() -> Path | None:
    """Prefect's own default for results, when nothing else is configured: said once, it is not asked for each run."""
    url = str(PREFECT_API_URL.value())
    if url not in _default_results:
        with prefect_client() as client:
            at_server = client.read_server_default_result_storage().default_result_storage_block_id
        _default_results[url] = at_server is None and PREFECT_DEFAULT_RESULT_STORAGE_BLOCK.value() is None
    return PREFECT_LOCAL_STORAGE_PATH.value() if _default_results[url] else None


_default_results: dict[str, bool] = {}


def _label_task_run(label: str | None) -> None:
    # Set once the task is running: with a tag from the start, Prefect asks for concurrency slots before each task.
    context = TaskRunContext.get()
    if label and context and label not in context.task_run.tags:
        context.task_run.tags.append(label)


def _add_tags(tags: Sequence[str]) -> None:
    flow_run_id = current_flow_run_id()
    assert flow_run_id is not None
    with prefect_client() as client:
        known = client.read_flow_run(flow_run_id).tags
        client.update_flow_run(flow_run_id, tags=sorted({*known, *tags}))
