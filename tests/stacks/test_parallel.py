"""Steps in processes of their own, on the real engines: what runs at once, what is kept apart, and the ways to end."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from zenml import get_step_context, pipeline, step
from zenml.client import Client
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.utils.run_utils import stop_run

import stacks.stack_file as stack_file
from stacks.orchestrator import pool
from stacks.orchestrator.failure import StepFailed
from stacks.orchestrator.flow_run import prefect_api
from stacks.stack_file import apply, ensure_active, plan
from tests.stacks.pipelines import find, flow_run_of, last_run, leave, sent, statuses, stored, task_runs

PARALLEL = {
    "orchestrator": {"flavor": "prefect", "config": {"max_parallel": 8}},
    "artifact_store": {"flavor": "local"},
}


@pytest.fixture(scope="module", autouse=True)
def _parallel_stack(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ensure_active()
    before = Client().active_stack_model.id
    folder = tmp_path_factory.mktemp("stacks")
    (folder / "parallel.yaml").write_text(yaml.safe_dump(PARALLEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_file, "stacks_dir", lambda: folder)
        apply("parallel")
        assert plan("parallel") == []
    Client().activate_stack("parallel")
    with prefect_api():
        yield
    Client().activate_stack(before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where steps leave notes; in a variable that they find because their environment is the caller's."""
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv("CALLER", str(os.getpid()))
    return tmp_path


@step
def source() -> int:
    leave("source", os.getpid())
    return 1


def meet(mine: str, other: str) -> None:
    """Be here together with another step, each with an environment, a folder and a context of its own."""
    random.seed(mine)
    os.environ["WHO"] = mine
    os.mkdir(f"{os.environ['NOTES']}/folder-{mine}")  # noqa: PTH102
    os.chdir(f"{os.environ['NOTES']}/folder-{mine}")
    leave(mine, os.getpid())
    find(other)
    context = get_step_context().step_run.name
    seen = [os.environ["WHO"], os.environ["COLOUR"], Path.cwd().name, context, os.environ.get("ONLY_LEFT", "none")]
    leave(f"seen-{mine}", " ".join(seen))
    leave(f"went-{mine}")
    find(f"went-{other}")


@step(environment={"COLOUR": "red", "ONLY_LEFT": "yes"})
def left(value: int) -> int:
    meet("left", "right")
    return value + 1


@step(environment={"COLOUR": "green"})
def right(value: int) -> int:
    meet("right", "left")
    return value + 2


@step
def join(first: int, second: int) -> int:
    leave("join", f"{os.getpid()} {os.environ.get('WHO', 'none')} {os.environ.get('COLOUR', 'none')}")
    return first * second


@pipeline(enable_cache=False)
def diamond() -> None:
    value = source()
    join(left(value), right(value))


def test_steps_meet_in_processes_of_their_own_and_nothing_of_one_is_seen_by_another_or_by_the_caller(
    folder: Path,
) -> None:
    here = Path.cwd()
    run = diamond()
    assert run.status == ExecutionStatus.COMPLETED
    assert run.steps["join"].output.load() == 6
    assert (folder / "seen-left").read_text() == "left red folder-left left yes"
    assert (folder / "seen-right").read_text() == "right green folder-right right none"
    processes = [(folder / name).read_text().split()[0] for name in ("source", "left", "right", "join")]
    assert len({*processes, str(os.getpid())}) == 5
    assert (folder / "join").read_text().split()[1:] == ["none", "none"]
    assert not {"WHO", "COLOUR", "ONLY_LEFT"} & set(os.environ) and Path.cwd() == here
    tasks = task_runs(flow_run_of(run), ["source", "left", "right", "join"])
    assert all(task.state and task.state.is_completed() and task.run_count == 1 for task in tasks.values())
    waited = {task.id for task in tasks["join"].task_inputs["wait_for"]}  # type: ignore[union-attr]
    assert waited == {tasks["left"].id, tasks["right"].id}
    assert str(flow_run_of(run).id) in str(run.run_metadata["orchestrator_url"])


def test_what_steps_are_forked_from_has_one_thread_of_python_and_no_connection(folder: Path) -> None:
    assert len(pool._current) == 1, "the run before has left a warm server"
    (warm,) = pool._current.values()
    server = psutil.Process(warm._server.pid)
    assert [child for child in server.children() if child.status() != psutil.STATUS_ZOMBIE] == []
    assert server.net_connections() == []
    assert [file.path for file in server.open_files() if ".db" in file.path] == []
    threads = {Path(f"/proc/{server.pid}/task/{thread.id}/comm").read_text() for thread in server.threads()}
    # An allocator that pyarrow brings has a thread, which it stops before a fork and starts after it.
    assert {name.strip() for name in threads} - {"jemalloc_bg_thd"} == {"python"}


LINES = 40


@step
def talkative(number: int) -> int:
    leave(f"talkative_{number}")
    find(f"talkative_{7 - number}")
    for line in range(LINES):
        print(f"{number}: printed {line}")  # noqa: T201
        logging.getLogger("tests.talkative").warning("%s: logged %s", number, line)
    sys.stdout.write(f"{number}: half a")
    sys.stdout.write(" line")
    return number


@step
def shouts() -> None:
    print("before the shell", flush=True)  # noqa: T201
    subprocess.run(["sh", "-c", "echo from the shell; echo and on stderr >&2"], check=True)


@pipeline(enable_cache=False)
def eight() -> None:
    for number in range(7):
        talkative(number, id=f"talkative_{number}")
    talkative(7, id="talkative_7")
    shouts()


def test_eight_steps_that_start_at_once_in_a_zen_folder_write_logs_and_records_whole_and_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = folder / ".zen" / "config.yaml"
    configured.parent.mkdir()
    configured.write_text(f"active_stack_id: {Client().active_stack_model.id}\n")
    before = configured.stat().st_mtime_ns
    monkeypatch.chdir(folder)
    run = eight()
    assert configured.stat().st_mtime_ns == before, "a step's process has written it"
    assert set(statuses(run).values()) == {"completed"}
    assert [run.steps[f"talkative_{number}"].output.load() for number in range(8)] == [*range(8)]
    tasks = task_runs(flow_run_of(run), [*(f"talkative_{number}" for number in range(8)), "shouts"])
    for number in range(8):
        said = [text.format(number, line) for line in range(LINES) for text in ("{}: printed {}", "{}: logged {}")]
        said.append(f"{number}: half a line")
        name = f"talkative_{number}"
        assert [line for line in stored(run.steps[name]) if line.startswith(f"{number}: ")] == said
        assert [line for line in sent(tasks[name], said[-1]) if line.startswith(f"{number}: ")] == said
    for lines in (stored(run.steps["shouts"]), sent(tasks["shouts"], "and on stderr")):
        assert {"before the shell", "from the shell", "and on stderr"} <= set(lines)


@step
def bad() -> int:
    find("beside")
    try:
        raise LookupError("deeper")
    except LookupError as error:
        raise ValueError("no such luck") from error


@step
def beside() -> None:
    leave("beside")
    if os.environ["MODE"] != "fail_fast":
        return
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.02)
    leave("beside-ended")


@step
def after_bad(value: int) -> None:
    leave("after_bad")


@step
def after_beside() -> None:
    leave("after_beside")


@pipeline(enable_cache=False)
def unlucky() -> None:
    after_bad(bad())
    beside()
    after_beside(after=["beside"])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ExecutionMode.FAIL_FAST, {"bad": "failed", "beside": "stopped"}),
        (
            ExecutionMode.CONTINUE_ON_FAILURE,
            {"bad": "failed", "beside": "completed", "after_beside": "completed"},
        ),
    ],
)
def test_a_failure_comes_back_as_it_was_and_stops_what_the_mode_says(
    mode: ExecutionMode, expected: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", mode.value)
    fast = mode == ExecutionMode.FAIL_FAST
    with pytest.raises(ValueError if fast else RuntimeError, match="no such luck") as caught:
        unlucky.with_options(execution_mode=mode)()
    error = caught.value if fast else caught.value.__cause__
    assert type(error) is ValueError and isinstance(error.__cause__, LookupError)
    assert "in bad" in "\n".join(error.__notes__) and "deeper" in "\n".join(error.__notes__)
    run = last_run("unlucky")
    assert statuses(run) == expected and run.status == ExecutionStatus.FAILED
    assert not (folder / "after_bad").exists() and not (folder / "beside-ended").exists()
    tasks = task_runs(flow_run_of(run), list(expected))
    state = tasks["bad"].state
    assert state is not None and state.is_failed() and "no such luck" in (state.message or "")


@step(retry=StepRetryConfig(max_retries=1, delay=0))
def shot_once(again: bool) -> int:
    print("here until I am shot", flush=True)  # noqa: T201
    if again or not (Path(os.environ["NOTES"]) / "shot").exists():
        leave("shot")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@pipeline(enable_cache=False)
def shooting(again: bool) -> None:
    shot_once(again)


def test_a_process_that_is_killed_is_a_failed_step_with_the_reason_and_retried_if_it_may_be(folder: Path) -> None:
    run = shooting(again=False)
    assert run.steps["shot_once"].version == 2 and run.status == ExecutionStatus.COMPLETED
    assert task_runs(flow_run_of(run), ["shot_once"])["shot_once"].run_count == 2
    with pytest.raises(RuntimeError, match=r"'shot_once' ended before the step did: signal 9 \(SIGKILL\)") as caught:
        shooting(again=True)
    assert isinstance(caught.value.__cause__, StepFailed)
    run = last_run("shooting")
    assert statuses(run) == {"shot_once": "failed"} and run.status == ExecutionStatus.FAILED
    info = run.steps["shot_once"].exception_info
    assert info is not None and "SIGKILL" in (info.message or "")
    assert {"here until I am shot", info.message} <= set(stored(run.steps["shot_once"]))
    task = task_runs(flow_run_of(run), ["shot_once"])["shot_once"]
    assert task.run_count == 2 and task.state is not None and "SIGKILL" in (task.state.message or "")


@step(retry=StepRetryConfig(max_retries=2, delay=600))
def tries() -> None:
    leave("tried")
    raise ValueError("not yet")


@step
def gives_up() -> None:
    find("tried")
    raise ValueError("no such luck")


@pipeline(enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def impatient() -> None:
    tries()
    gives_up()


def test_a_step_that_waits_for_its_retry_is_ended_with_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def note(delay: float, stopping: threading.Event) -> None:
        if delay:
            waited.append(delay)
            assert stopping.wait(300), "nobody said that the run is being stopped"

    monkeypatch.setattr("stacks.orchestrator.flow_run._await_retry", note)
    with pytest.raises(ValueError, match="no such luck"):
        impatient()
    run = last_run("impatient")
    assert statuses(run) == {"tries": "stopped", "gives_up": "failed"} and run.status == ExecutionStatus.FAILED
    assert waited in ([600], [])  # nothing, if the run was being stopped before the step had failed


@pipeline(enable_cache=True)
def remembered() -> None:
    join(source(id="one"), source(id="two"))


def test_cached_steps_need_no_process(folder: Path) -> None:
    first = remembered()
    for note in folder.iterdir():
        note.unlink()
    (warm,) = pool._current.values()
    forks = next(warm._numbers)
    second = remembered()
    assert next(warm._numbers) == forks + 1 and list(folder.iterdir()) == []
    assert set(statuses(second).values()) == {"cached"}
    assert second.steps["join"].output.id == first.steps["join"].output.id
    tasks = task_runs(flow_run_of(second), ["one", "two", "join"])
    assert {task.state.name for task in tasks.values() if task.state} == {"Cached"}


def begin(word: str) -> str:
    leave(f"init-{os.getpid()}")
    return word


def end() -> None:
    leave(f"cleanup-{os.getpid()}")


def on_good() -> None:
    leave("success", get_step_context().step_run.name)


def on_bad(error: BaseException) -> None:
    leave("failure", type(error).__name__)


@step
def asks() -> None:
    leave("state", get_step_context().pipeline_state)
    leave("beside")


@pipeline(
    enable_cache=False,
    on_failure=on_bad,
    on_success=on_good,
    on_init=begin,
    on_init_kwargs={"word": "hello"},
    on_cleanup=end,
)
def hooked() -> None:
    asks()
    bad(after=["asks"])


def test_hooks_run_in_each_step_s_process(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        hooked()
    assert [(folder / name).read_text() for name in ("state", "success", "failure")] == ["hello", "asks", "ValueError"]
    began = {path.name.removeprefix("init-") for path in folder.glob("init-*")}
    ended = {path.name.removeprefix("cleanup-") for path in folder.glob("cleanup-*")}
    assert began == ended and len(began) == 2 and str(os.getpid()) not in began


@step(retry=StepRetryConfig(max_retries=2, delay=0))
def sleeps(how: str) -> None:
    leave(f"sleeps-{os.getpid()}")
    find("waits")
    if how == "stop":
        stop_run(last_run("ended"))
    elif how == "interrupt":
        os.kill(int(os.environ["CALLER"]), signal.SIGINT)
    time.sleep(400)


@step
def waits() -> None:
    leave("waits")
    leave(f"sleeps-{os.getpid()}")
    subprocess.run(["sleep", "400"])


@pipeline(enable_cache=False)
def ended(how: str) -> None:
    sleeps(how)
    waits()


@pytest.mark.parametrize("how", ["interrupt", "stop"])
def test_ctrl_c_and_a_stop_end_all_processes_and_both_records(how: str, folder: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ended(how)
    assert time.monotonic() - begun < 290
    processes = [int(path.name.removeprefix("sleeps-")) for path in folder.glob("sleeps-*")]
    assert len(processes) == 2 and not any(psutil.pid_exists(process) for process in processes)
    (warm,) = pool._current.values()
    assert psutil.Process(warm._server.pid).children(recursive=True) == []
    run = last_run("ended")
    assert run.status.is_finished and not run.in_progress
    assert set(statuses(run).values()) <= {"failed", "stopped"}
    if how == "stop":
        assert run.status == ExecutionStatus.STOPPED
    state = flow_run_of(run).state
    assert state is not None and state.is_final() and not state.is_completed()


@step
def add(first: int, second: int) -> int:
    leave("add", os.getpid())
    return first + second


@pipeline(dynamic=True, enable_cache=False)
def grown() -> None:
    add(source(), 1)


def test_steps_of_a_dynamic_pipeline_run_here_as_before(folder: Path) -> None:
    run = grown()
    assert run.status == ExecutionStatus.COMPLETED and run.steps["add"].output.load() == 2
    assert (folder / "add").read_text() == str(os.getpid())


def test_a_server_whose_modules_were_edited_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "edited_logic.py"
    module.write_text("def compute():\n    return 1\n")
    wanted = pool.Wanted([], ["edited_logic.compute"], str(tmp_path))
    first = pool.pool_for(wanted)
    assert pool.pool_for(wanted) is first
    module.write_text("def compute():\n    return 1 + 1\n")
    second = pool.pool_for(wanted)
    assert second is not first and second.alive()
    first._server.wait(20)
    module.write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n")
    assert pool.pool_for(wanted).bare


SCRIPT = """
import os, sys, time
from pathlib import Path
print("top of the script")
from zenml import pipeline, step
LIMIT = 20

def double(value: int) -> int:
    return 2 * value

@step
def one() -> int:
    return LIMIT

@step
def two(first: int, second: int) -> int:
    if "sleep" in sys.argv:
        print("sleeping", flush=True)
        time.sleep(300)
    return double(first + second)

@pipeline(enable_cache=False)
def script_in_parallel():
    two(one(id="left"), one(id="right"))

run = script_in_parallel()
print("answer", run.steps["two"].output.load(), flush=True)
sys.argv.append("sleep")
script_in_parallel()
"""


def _is_fork(process: psutil.Process) -> bool:
    try:
        return "forkserver" in (" ".join(process.cmdline()) or "forkserver")
    except psutil.NoSuchProcess:
        return False


def test_an_unguarded_script_with_a_zen_folder_runs_once_and_killed_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / ".zen").mkdir()
    (tmp_path / ".zen" / "config.yaml").write_text(f"active_stack_id: {Client().active_stack_model.id}\n")
    (tmp_path / "user_script.py").write_text(SCRIPT)
    environment = {**os.environ, "ZENML_LOGGING_VERBOSITY": "WARN"}
    with subprocess.Popen(
        [sys.executable, "user_script.py"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said: list[str] = []
            for line in process.stdout:
                said.append(line.strip())
                if "sleeping" in line:
                    break
            forks = [one for one in psutil.Process(process.pid).children(recursive=True) if _is_fork(one)]
        finally:
            process.kill()
        errors = process.stderr.read()
        assert "sleeping" in said and "answer 80" in said, errors[-3000:]
        assert said.count("top of the script") == 1
        assert len(forks) >= 2
        assert psutil.wait_procs(forks, timeout=30)[1] == []
