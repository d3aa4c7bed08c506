"""Metrics of one process, then of several that share a directory, one of them killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from bentos.metrics import BUCKETS, DIRECTORY_VARIABLE, Metrics
from stacks.home import clone_dir

# A worker: counts, says so, then does what each further line asks for.
WORKER = """
import sys
from bentos.metrics import metrics, page
counted = metrics()
for number in range(int(sys.argv[1])):
    counted.answered("wine", 3, "champion", "predict", 200, 0.004)
counted.answered("wine", 3, "champion", "batch", 200, 0.4, rows=500)
counted.answered("wine", 3, "champion", "predict", 503, 0.001)
counted.failed("value", "wine", 3)
counted.log_queue(int(sys.argv[1]))
counted.resident(int(sys.argv[2]))
counted.ready(sys.argv[3] == "ready")
for champion, since in ((2, 1_000.0), (3, 2_000.0)):
    counted.champion("wine", champion, since)
counted.watch()
print("counted", flush=True)
for line in sys.stdin:
    sys.stdout.buffer.write(page()[0] + b"# end\\n")
    sys.stdout.flush()
"""


class Worker:
    """A process of its own that counts into a directory."""

    def __init__(self, directory: Path, answers: int, resident: int, ready: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(answers), str(resident), ready],
            cwd=clone_dir(),
            env=os.environ | {DIRECTORY_VARIABLE: str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "counted\n"

    def page(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Samples that this worker's page shows, by name and labels."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("page\n")
        text = "".join(iter(self.process.stdout.readline, "# end\n"))
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> list[float]:
        """Values of the samples of that name with those labels among others."""
        return [
            value
            for (found, of), value in sorted(self.page().items())
            if found == name and labels.items() <= dict(of).items()
        ]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    """Two workers on one directory, the second not ready."""
    both = Worker(tmp_path, 100, 3, "ready"), Worker(tmp_path, 40, 5, "not yet")
    yield both
    for worker in both:
        worker.end()


def test_two_workers_add_up_and_a_killed_one_leaves_its_counts_only(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    first, second = workers
    served = {"model": "wine", "version": "3", "variant": "champion"}
    assert first.page().keys() == second.page().keys()
    assert first.of("gauntlet_requests_total", **served, route="predict", status="200") == [140]
    assert first.of("gauntlet_requests_total", **served, route="predict", status="503") == [2]
    assert first.of("gauntlet_request_seconds_count", **served, route="predict") == [140], "errors are no latencies"
    assert first.of("gauntlet_request_seconds_bucket", **served, route="predict", le="0.0025") == [0]
    assert first.of("gauntlet_request_seconds_bucket", **served, route="predict", le="0.005") == [140]
    assert first.of("gauntlet_request_seconds_sum", **served, route="batch") == [pytest.approx(0.8)]
    assert first.of("gauntlet_rows_total", **served) == [1_140]
    assert first.of("gauntlet_errors_total", model="wine", version="3", kind="value") == [2]
    assert first.of("gauntlet_log_queue") == [140]
    assert sorted(first.of("gauntlet_resident_models")) == [3, 5]
    assert first.of("gauntlet_ready") == [0], "ready is what every worker is"
    assert first.of("gauntlet_champion_since_seconds", version="2") == [0]
    assert first.of("gauntlet_champion_since_seconds", version="3") == [2_000]

    # Killed and, as under a supervisor that does not look, not yet waited for: a zombie.
    os.kill(second.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while left := list(tmp_path.glob(f"gauge_*_{second.process.pid}.db")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert first.of("gauntlet_resident_models") == [3]
    while left := [f for f in tmp_path.glob(f"*_{second.process.pid}.db") if f.stat().st_size > 2**16]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    pids = {dict(labels)["pid"] for (name, labels) in first.page() if name == "gauntlet_worker_memory_bytes"}
    assert pids == {str(first.process.pid)}
    assert (first.of("gauntlet_log_queue"), first.of("gauntlet_ready")) == ([100], [1])
    assert first.of("gauntlet_requests_total", **served, route="predict", status="200") == [140]

    third = Worker(tmp_path, 7, 4, "ready")
    assert third.of("gauntlet_requests_total", **served, route="predict", status="200") == [147]
    assert len(third.of("gauntlet_worker_cpu_seconds")) == 2
    assert min(third.of("gauntlet_worker_memory_bytes")) > 2**20
    third.end()


def test_a_full_disk_does_not_kill_a_worker(tmp_path: Path) -> None:
    """Trap: prometheus_client maps files that it has not taken up; writing there on a full disk is a bus error."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system that can be filled cannot be mounted here")
    filling = """
import contextlib, os, pathlib
from bentos.metrics import metrics
counted = metrics()
with contextlib.suppress(OSError), open(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/filler", "wb", 0) as file:
    while True:
        file.write(bytes(4_096))
for number in range(100):
    counted.answered(f"model{number}", 1, "champion", "predict", 200, 0.004)
    counted.champion(f"model{number}", 1, 1.0)
print("alive")
"""
    try:
        done = subprocess.run(
            [sys.executable, "-c", filling],
            cwd=clone_dir(),
            env=os.environ | {DIRECTORY_VARIABLE: str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


def test_what_has_no_labels_begins_at_nothing_and_a_champion_s_swaps_do_too() -> None:
    registry = CollectorRegistry()
    counted = Metrics(registry)
    assert registry.get_sample_value("gauntlet_log_failures_total") == 0
    counted.champion("wine", 3, 1.0)
    for outcome in ("switched", "refused", "late"):
        assert registry.get_sample_value("gauntlet_swaps_total", {"model": "wine", "outcome": outcome}) == 0
    counted.swapped("wine", "refused")
    counted.log_failed(3)
    counted.log_lost()
    counted.refused("rate")
    counted.failed("no_such_model")
    assert registry.get_sample_value("gauntlet_swaps_total", {"model": "wine", "outcome": "refused"}) == 1
    assert registry.get_sample_value("gauntlet_log_failures_total") == 3
    assert registry.get_sample_value("gauntlet_log_lost_total") == 1
    assert registry.get_sample_value("gauntlet_refusals_total", {"reason": "rate"}) == 1
    nobody = {"model": "-", "version": "-", "kind": "no_such_model"}
    assert registry.get_sample_value("gauntlet_errors_total", nobody) == 1


def test_a_version_that_is_champion_again_is_so_from_then_on() -> None:
    registry = CollectorRegistry()
    counted = Metrics(registry)
    for version, since in ((1, 10.0), (2, 20.0), (1, 30.0), (1, 30.0)):
        counted.champion("wine", version, since)
    name = "gauntlet_champion_since_seconds"
    told = [registry.get_sample_value(name, {"model": "wine", "version": version}) for version in ("1", "2")]
    assert told == [30, 0]


def test_the_limits_that_are_promised_have_a_bucket_of_their_own() -> None:
    assert {0.001, 0.025, 0.5, 10.0} <= set(BUCKETS)


def test_a_gauge_that_cannot_be_set_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    counted = Metrics(CollectorRegistry())

    def failing() -> None:
        raise RuntimeError("the log is away")

    for also in (failing, failing, lambda: None, failing):
        counted._look(also)
    said = "this worker cannot be measured: RuntimeError: the log is away"
    assert [record.getMessage() for record in caplog.records] == [said, said]
