"""What handing a run to a work pool costs: until it is accepted, and per run of a queue against one run alone.

`python -m benchmarks.submit [--runs N] [--alone N] [--slots N]` starts a Prefect server and a worker of a process pool,
prints a table and, as its last line, one JSON object. A run is one step that sleeps for a second. Its overhead is wall
time less that second: of a run alone from its submission to its end, of a queue of runs its whole wall time, times the
runs that the worker takes at once, over their number. Accepted is when `submit_pipeline` returns; the first submission,
which makes the deployment, is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._stacks import add_stacks, own_home
from flows.up import free_ports
from stacks.orchestrator.tether import tethered

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse

POOL = "bench"
ACCEPTED_LIMIT = 1.0
QUEUE_LIMIT = 1.2
STEP_SECONDS = 1.0
LOOK_SECONDS = 0.2


def main() -> int:
    """Measure, print, and return 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100, help="runs of the queue")
    parser.add_argument("--alone", type=int, default=5, help="runs one after another")
    parser.add_argument("--slots", type=int, default=1, help="runs that the worker takes at once")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        own_home(Path(folder))
        with _server_and_worker(Path(folder), given.slots):
            figures = _measured(given.runs, given.alone, given.slots)
    ratio = figures["queued_s"] / figures["alone_s"]
    print(f"accepted after {figures['accepted_s']:.2f} s (at most {ACCEPTED_LIMIT:g})")
    print(f"overhead of a run alone {figures['alone_s']:.2f} s, of each queued one {figures['queued_s']:.2f} s")
    print(f"ratio {ratio:.2f} (at most {QUEUE_LIMIT})")
    shown = {name: round(value, 3) for name, value in {**figures, "ratio": ratio}.items()}
    print(json.dumps({"bench": "submit", "runs": given.runs, "slots": given.slots, **shown, "limit": QUEUE_LIMIT}))
    return int(ratio > QUEUE_LIMIT or figures["accepted_s"] > ACCEPTED_LIMIT)


@contextmanager
def _server_and_worker(home: Path, slots: int) -> Iterator[None]:
    (port,) = free_ports((14300,))
    url = f"http://127.0.0.1:{port}/api"
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_LOGGING_SERVER_LEVEL": "ERROR", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    prefect = str(Path(sys.executable).with_name("prefect"))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    with (
        (home / "services.log").open("wb") as log,
        tethered([prefect, "server", "start", "--port", str(port)], stdout=log, stderr=log) as server,
    ):
        while not _answers(f"{url}/health"):
            if server.poll() is not None:
                raise RuntimeError(f"the Prefect server ended with code {server.returncode}")
            time.sleep(LOOK_SECONDS)
        subprocess.run([prefect, "work-pool", "create", POOL, "--type", "process"], check=True, stdout=log)
        worker = [prefect, "worker", "start", "--pool", POOL, "--limit", str(slots)]
        with tethered(worker, stdout=log, stderr=log):
            yield


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def _measured(runs: int, alone: int, slots: int) -> dict[str, float]:
    """Seconds: until accepted, overhead of a run alone, overhead of a run in a queue; medians but for the last."""
    from zenml.client import Client

    from benchmarks.noop import one_sleeper

    add_stacks({"pool": {"work_pool": POOL, "synchronous": False}})
    Client().activate_stack("pool")
    snapshot = one_sleeper.create_snapshot(name="bench")
    _await([_submit(snapshot)[1]])
    overheads = []
    for _ in range(alone):
        begin = time.perf_counter()
        _await([_submit(snapshot)[1]])
        overheads.append(time.perf_counter() - begin - STEP_SECONDS)
    begin = time.perf_counter()
    queue = [_submit(snapshot) for _ in range(runs)]
    _await([run for _, run in queue])
    wall = time.perf_counter() - begin
    return {
        "accepted_s": statistics.median(seconds for seconds, _ in queue),
        "alone_s": statistics.median(overheads),
        "queued_s": wall * slots / runs - STEP_SECONDS,
    }


def _submit(snapshot: "PipelineSnapshotResponse") -> tuple[float, "PipelineRunResponse"]:
    """Submit one run; seconds that the orchestrator took for it, and the run."""
    from zenml.client import Client
    from zenml.pipelines.run_utils import create_placeholder_run

    run = create_placeholder_run(snapshot)
    stack = Client().active_stack
    begin = time.perf_counter()
    stack.orchestrator.submit_pipeline(snapshot, stack, {}, {}, run)
    return time.perf_counter() - begin, run


def _await(runs: list["PipelineRunResponse"]) -> None:
    from zenml.client import Client

    for run in runs:
        while not (status := Client().get_pipeline_run(run.id, hydrate=False).status).is_finished:
            time.sleep(LOOK_SECONDS)
        if not status.is_successful:
            raise RuntimeError(f"run {run.name} is {status}")


if __name__ == "__main__":
    sys.exit(main())
