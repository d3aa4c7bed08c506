"""Steps on Dask workers, on the real engines: what reaches them, what comes back, and every way to lose one."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client as Dask
from distributed import Queue, get_worker
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from zenml import get_step_context, pipeline, step
from zenml.client import Client
from zenml.config import ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode, ExecutionStatus, StackComponentType
from zenml.models import StackRequest
from zenml.utils.run_utils import stop_run

from stacks.orchestrator import dask_place
from stacks.orchestrator.dask_step import BATCHES, LARGEST_BATCH, Line, _pass_on, messages_of
from stacks.orchestrator.failure import StepFailed
from stacks.orchestrator.flow_run import prefect_api
from stacks.orchestrator.place import PlaceError
from stacks.orchestrator.step_log import StepLog
from stacks.stack_file import ensure_active
from tests.stacks.dask_cluster import Cluster, free_port, running, until
from tests.stacks.pipelines import find, flow_run_of, last_run, leave, sent, statuses, stored, task_runs

LINES = 40
FLOOD = 5_000


def add_stack(name: str, **config: Any) -> None:
    """A stack as the active one, but for its orchestrator, with a variable of its own."""
    client = Client()
    kind = StackComponentType.ORCHESTRATOR
    parts = {each: [part.id for part in several] for each, several in client.active_stack_model.components.items()}
    orchestrator = client.create_stack_component(name, "prefect", kind, {"runner": "dask", **config})
    client.zen_store.create_stack(
        StackRequest(name=name, components={**parts, kind: [orchestrator.id]}, environment={"OF_STACK": "stack"})
    )


@pytest.fixture(scope="module")
def cluster(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    ensure_active()
    before = Client().active_stack_model.id
    with running(tmp_path_factory.mktemp("dask"), free_port(), "CPU=2 MEMORY=4e9") as cluster, prefect_api():
        add_stack("on-dask", dask_scheduler=cluster.address)
        Client().activate_stack("on-dask")
        yield cluster
    Client().activate_stack(before)


@pytest.fixture
def notes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where steps leave notes; their workers know it, this process's environment does not reach them."""
    monkeypatch.setenv("NOTES", str(cluster.folder))
    monkeypatch.setenv("OF_CALLER", "caller")
    yield cluster.folder
    for note in cluster.folder.iterdir():
        if note.is_file() and note.suffix != ".log":
            note.unlink()


def talk(name: str) -> None:
    for line in range(LINES):
        print(f"{name}: printed {line}")  # noqa: T201
        logging.getLogger("tests.dask").warning("%s: logged %s", name, line)
    sys.stdout.write(f"{name}: half a")
    sys.stdout.write(" line")


@step(environment={"COLOUR": "red"}, settings={"resources": ResourceSettings(cpu_count=2, memory="1GB")})
def left() -> int:
    seen = [os.environ.get(name, "none") for name in ("COLOUR", "OF_STACK", "OF_CALLER")]
    leave("left", " ".join([str(os.getpid()), str(os.getppid()), get_step_context().step_run.name, *seen]))
    find("right")
    talk("left")
    return 1


@step
def right() -> int:
    leave("right", f"{os.getpid()} {os.environ.get('COLOUR', 'none')} {Client().active_stack_model.name}")
    find("left")
    subprocess.run(["sh", "-c", "echo from the shell"], check=True)
    return 2


@step
def join(first: int, second: int) -> int:
    leave("join")
    return first + second


@pipeline(enable_cache=True, settings={"orchestrator": {"tags": ["nightly"]}})
def diamond() -> None:
    join(left(), right())


def test_steps_run_in_processes_on_workers_with_zenml_s_environment_and_cached_ones_nowhere(notes: Path) -> None:
    run = diamond()
    assert run.status == ExecutionStatus.COMPLETED and run.steps["join"].output.load() == 3
    process, parent, *seen = (notes / "left").read_text().split()
    assert seen == ["left", "red", "stack", "none"]
    assert (notes / "right").read_text().split()[1:] == ["none", "on-dask"]
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    assert int(parent) in ours and int(process) not in ours, "the worker's warm server, still there; its fork, gone"
    tasks = task_runs(flow_run_of(run), ["left", "right", "join"])
    assert all(task.state and task.state.is_completed() and task.run_count == 1 for task in tasks.values())
    assert all("nightly" in task.tags for task in tasks.values())
    said = [text.format(line) for line in range(LINES) for text in ("left: printed {}", "left: logged {}")]
    said.append("left: half a line")
    assert [line for line in stored(run.steps["left"]) if line.startswith("left: ")] == said
    assert [line for line in sent(tasks["left"], said[-1]) if line.startswith("left: ")] == said
    assert "from the shell" in stored(run.steps["right"])
    for note in ("left", "right", "join"):
        (notes / note).unlink()
    again = diamond()
    assert set(statuses(again).values()) == {"cached"}
    assert not any((notes / note).exists() for note in ("left", "right", "join"))


class Flood:
    """Stands where a step's process does, and says more than anybody reads."""

    def messages(self) -> Iterator[dict[str, Any]]:
        for number in range(FLOOD):
            yield {"kind": "line", "stream": "stdout", "text": f"{number} {'x' * 1_000}"}
        yield {"kind": "exit", "status": 0, "reason": None}

    def signal(self, number: int) -> None:
        raise AssertionError("nobody stops it")


def flood() -> None:
    worker = get_worker()
    _pass_on(Flood(), Line(worker, str(worker.get_current_task())).send)


def test_a_flood_of_lines_waits_for_its_reader_and_arrives_whole_and_in_order(cluster: Cluster) -> None:
    with Dask(cluster.address, set_as_default=False) as client:
        box = Queue(messages_of("flood"), client=client, maxsize=BATCHES)
        future = client.submit(flood, key="flood")
        until(lambda: box.qsize() == BATCHES)
        held = [json.loads(box.get()) for _ in range(BATCHES)]
        assert max(len(json.dumps(batch)) for batch in held) < 2 * LARGEST_BATCH
        assert sum(map(len, held)) < FLOOD / 2, "the queue on the scheduler is short"
        while held[-1][-1]["kind"] != "exit":
            held.append(json.loads(box.get(timeout=60)))
        future.result(timeout=60)
        box.close()
    numbers = [int(message["text"].split()[0]) for batch in held for message in batch if message["kind"] == "line"]
    assert numbers == [*range(FLOOD)]


def lives(process: int) -> bool:
    """Whether a process does anything yet; a tether adopts those of a killed worker and reaps them at its own end."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@step
def holds() -> None:
    leave(f"holds-{get_step_context().step_run.name}", os.getpid())
    find("go")


@pipeline(enable_cache=False)
def crowded() -> None:
    for number in range(3):
        holds(id=f"holds_{number}")


def states_in_prefect(name: str) -> list[str]:
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_of(last_run(name)).id]))
        tasks: list[TaskRun] = client.read_task_runs(flow_run_filter=chosen)
    return sorted(task.state.name for task in tasks if task.state)


def watched(run: Callable[[], object], watch: Callable[[], None]) -> object:
    """Run a pipeline here, while a thread looks on."""
    raised: list[BaseException] = []

    def look() -> None:
        try:
            with prefect_api():
                watch()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        return run()
    finally:
        thread.join()
        assert not raised, raised


def test_a_step_that_waits_for_a_free_worker_is_pending_in_prefect(notes: Path) -> None:
    def watch() -> None:
        try:
            until(lambda: len([*notes.glob("holds-*")]) == 2)
            until(lambda: states_in_prefect("crowded") == ["Running", "Running", "Waiting"])
        finally:
            leave("go")

    run: Any = watched(crowded, watch)
    assert run.status == ExecutionStatus.COMPLETED and len([*notes.glob("holds-*")]) == 3
    tasks = task_runs(flow_run_of(run), [f"holds_{number}" for number in range(3)])
    assert {task.state.name for task in tasks.values() if task.state} == {"Completed"}
    assert {task.run_count for task in tasks.values()} == {1}


def kill_my_worker() -> None:
    """Kill the Dask worker whose warm server this step's process was forked from."""
    worker = psutil.Process(os.getppid()).parent()
    assert worker is not None and "dask" in " ".join(worker.cmdline()) + "dask"
    worker.kill()
    time.sleep(120)


@step
def loses_its_worker() -> None:
    print("here until my worker is lost", flush=True)  # noqa: T201
    leave(f"started-{os.getpid()}")
    # A worker that is killed takes with it what it has not passed on yet.
    until(lambda: [*Path(os.environ["NOTES"]).glob("heard")])
    kill_my_worker()


@step(retry=StepRetryConfig(max_retries=1, delay=0))
def loses_it_once() -> int:
    first = not [*Path(os.environ["NOTES"]).glob("once-*")]
    leave(f"once-{os.getpid()}")
    if first:
        kill_my_worker()
    return 5


@pipeline(enable_cache=False)
def losing() -> None:
    loses_its_worker()


@pipeline(enable_cache=False)
def losing_once() -> None:
    loses_it_once()


@pytest.fixture
def hears(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a note when the caller has the last line of ``loses_its_worker``, which waits for it."""
    plain = StepLog.line

    def line(log: StepLog, stream: str, text: str) -> None:
        plain(log, stream, text)
        if text == "here until my worker is lost":
            leave("heard")

    monkeypatch.setattr(StepLog, "line", line)


def test_a_lost_worker_is_a_failed_step_with_the_reason_and_not_run_again(
    notes: Path, cluster: Cluster, hears: None
) -> None:
    with pytest.raises(
        RuntimeError, match=r"Dask worker tcp://127.0.0.1:\d+ \([ab]\), process \d+, was lost"
    ) as caught:
        losing()
    assert isinstance(caught.value.__cause__, StepFailed)
    run = last_run("losing")
    assert statuses(run) == {"loses_its_worker": "failed"} and run.status == ExecutionStatus.FAILED
    info = run.steps["loses_its_worker"].exception_info
    assert info is not None and "connection to the scheduler ended" in (info.message or "")
    assert {"here until my worker is lost", info.message} <= set(stored(run.steps["loses_its_worker"]))
    task = task_runs(flow_run_of(run), ["loses_its_worker"])["loses_its_worker"]
    assert task.state is not None and task.state.is_failed() and "was lost" in (task.state.message or "")
    assert len([*notes.glob("started-*")]) == 1
    until(lambda: not any(lives(int(note.name.partition("-")[2])) for note in notes.glob("started-*")))


def test_a_step_with_retries_is_tried_again_on_another_worker(notes: Path, cluster: Cluster) -> None:
    run = losing_once()
    assert run.status == ExecutionStatus.COMPLETED and run.steps["loses_it_once"].output.load() == 5
    assert run.steps["loses_it_once"].version == 2 and len([*notes.glob("once-*")]) == 2
    assert task_runs(flow_run_of(run), ["loses_it_once"])["loses_it_once"].run_count == 2
    assert cluster.state() == {}, "queues of steps are left on the scheduler"


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_no_step_runs_twice_however_often_a_worker_is_lost(
    notes: Path, hears: None, proof: Callable[..., None]
) -> None:
    times = 5
    for done in range(times):
        (notes / "heard").unlink(missing_ok=True)
        with pytest.raises(RuntimeError, match="was lost"):
            losing()
        assert len([*notes.glob("started-*")]) == done + 1
    proof("A lost Dask worker never makes a ZenML step run twice (kill -9 mid-step)", times, f"{times} starts, 0 twice")


@step
def fails() -> None:
    find("beside")
    raise ValueError("no such luck")


@step
def beside() -> None:
    leave("beside", os.getpid())
    time.sleep(120)
    leave("beside-ended")


@pipeline(enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def unlucky() -> None:
    fails()
    beside()


def test_a_failure_comes_back_as_it_was_and_ends_what_runs_on_other_workers(notes: Path) -> None:
    with pytest.raises(ValueError, match="no such luck") as caught:
        unlucky()
    assert "in fails" in "\n".join(caught.value.__notes__)
    run = last_run("unlucky")
    assert statuses(run) == {"fails": "failed", "beside": "stopped"} and run.status == ExecutionStatus.FAILED
    assert not lives(int((notes / "beside").read_text())) and not (notes / "beside-ended").exists()


@step
def never() -> None:
    leave("never")


@step(retry=StepRetryConfig(max_retries=2, delay=0))
def occupies(how: str, caller: int) -> None:
    leave(f"occupies-{os.getpid()}")
    until(lambda: len(occupants()) == 2)
    if occupants()[0] == os.getpid():
        if how == "stop":
            stop_run(last_run("ended"))
        else:
            os.kill(caller, signal.SIGINT)
    time.sleep(400)


def occupants() -> list[int]:
    return sorted(int(note.name.partition("-")[2]) for note in Path(os.environ["NOTES"]).glob("occupies-*"))


@pipeline(enable_cache=False)
def ended(how: str, caller: int) -> None:
    for number in range(3):
        occupies(how, caller, id=f"occupies_{number}")


@pytest.mark.parametrize("how", ["interrupt", "stop"])
def test_ctrl_c_and_a_stop_end_what_runs_and_what_waits(how: str, notes: Path, cluster: Cluster) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ended(how, os.getpid())
    assert time.monotonic() - begun < 290
    assert len(occupants()) == 2 and not any(lives(process) for process in occupants())
    run = last_run("ended")
    assert run.status.is_finished and set(statuses(run).values()) <= {"failed", "stopped"}
    state = flow_run_of(run).state
    assert state is not None and state.is_final() and not state.is_completed()
    assert cluster.state() == {}


@step(settings={"resources": ResourceSettings(cpu_count=1, gpu_count=1)})
def needs_gpu() -> None:
    leave("never")


@pipeline(enable_cache=False)
def demanding() -> None:
    never(id="first")
    needs_gpu(after=["first"])


def ended_clearly(name: str) -> None:
    run = last_run(name)
    assert run.status == ExecutionStatus.FAILED
    state = flow_run_of(run).state
    assert state is not None and state.is_failed()


def test_what_no_worker_has_is_refused_before_anything_starts(notes: Path) -> None:
    with pytest.raises(PlaceError, match=r"needs_gpu: CPU=1 GPU=1.*offer: .*CPU=2 MEMORY=4e\+09.*--resources"):
        demanding()
    assert not (notes / "never").exists()
    ended_clearly("demanding")


@step
def plain() -> int:
    return 7


@pipeline(enable_cache=False)
def simple() -> None:
    plain()


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "somebody else"])
def test_a_scheduler_that_does_not_answer_is_a_failed_run_in_bounded_time(
    listens: bool, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_place, "CONNECT_SECONDS", 1.0)
    before = Client().active_stack_model.id
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        add_stack(f"silent-{listens}", dask_scheduler=address)
        Client().activate_stack(f"silent-{listens}")
        try:
            with pytest.raises(PlaceError, match=rf"{address} could not be reached within 1 seconds.*dask scheduler"):
                simple()
        finally:
            Client().activate_stack(before)
    ended_clearly("simple")


@pipeline(enable_cache=False)
def bereft() -> None:
    beside()


def test_a_scheduler_that_dies_is_a_failed_step_and_the_next_run_succeeds(notes: Path, cluster: Cluster) -> None:
    def watch() -> None:
        until((notes / "beside").exists)
        cluster.kill_scheduler()

    with pytest.raises(RuntimeError, match=rf"{cluster.address}"):
        watched(bereft, watch)
    assert statuses(last_run("bereft")) == {"beside": "failed"}
    ended_clearly("bereft")
    until(lambda: not lives(int((notes / "beside").read_text())))
    cluster.stop()
    cluster.start()
    assert simple().status == ExecutionStatus.COMPLETED


SCRIPT = """
import os, sys, time
from zenml import pipeline, step

def double(value: int) -> int:
    return 2 * value

@step
def one() -> int:
    assert os.environ["OF_CALLER"] == "caller" and "OMP_NUM_THREADS" not in os.environ
    return 20

@step
def two(first: int, second: int) -> int:
    if "sleep" in sys.argv:
        print("sleeping", flush=True)
        time.sleep(300)
    return double(first + second)

@pipeline(enable_cache=False)
def script_on_dask():
    two(one(id="left"), one(id="right"))

run = script_on_dask()
print("answer", run.steps["two"].output.load(), flush=True)
sys.argv.append("sleep")
script_on_dask()
"""


@pytest.mark.prove
def test_a_script_on_a_cluster_of_this_machine_that_dies_with_it(cluster: Cluster, tmp_path: Path) -> None:
    before = Client().active_stack_model.id
    add_stack("here-on-dask", max_parallel=2)
    Client().activate_stack("here-on-dask")
    (tmp_path / "user_script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"ZENML_LOGGING_VERBOSITY": "WARN", "OF_CALLER": "caller"}
    command = [sys.executable, "user_script.py"]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                said: list[str] = []
                for line in process.stdout:
                    said.append(line.strip())
                    if "sleeping" in line:
                        break
                started = psutil.Process(process.pid).children(recursive=True)
                listening = {at.laddr.ip for one in started for at in one.net_connections() if at.status == "LISTEN"}
            finally:
                process.kill()
            errors = process.stderr.read()
    finally:
        Client().activate_stack(before)
    assert "sleeping" in said and "answer 80" in said, errors[-3000:]
    assert listening == {"127.0.0.1"}
    ours = [one for one in started if "prefect" not in " ".join(_words(one))]
    assert len(ours) >= 6, "tether, scheduler, two workers, their warm servers and the step"
    assert psutil.wait_procs(ours, timeout=30)[1] == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
