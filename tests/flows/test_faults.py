"""Two runs of one model at once, and a disk that is full: what is there stays sound, and the next run is well."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Place, toy_frame

# Several whole runs one after another: minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def small_disk(place: Place) -> Iterator[bool]:
    """The home on a file system of its own that can be filled, where this user may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place.home)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    yield mounted
    if mounted:
        subprocess.run(["umount", "-l", str(place.home)], check=True)


def _run(place: Place, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "toy", "--json", *arguments],
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _champions(place: Place) -> list[int]:
    entries = place.gauntlet("history", "toy").json
    assert entries is not None
    return [entry["version"] for entry in entries["entries"] if entry["action"] == "promote"]


def test_two_runs_of_one_model_at_once(place: Place) -> None:
    processes = [_run(place), _run(place)]
    ended = [(process, *process.communicate()) for process in processes]
    assert [process.returncode for process, _, _ in ended] == [0, 0], [said[-2000:] for _, _, said in ended]
    results = [json.loads(output.splitlines()[-1]) for _, output, _ in ended]
    assert sorted(result["verdict"] for result in results) == ["kept", "promoted"], results
    assert {result["champion"] for result in results} == {1}
    assert _champions(place) == [1]
    assert place.gauntlet("doctor").code == 0


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()


def test_a_full_disk_ends_the_run_and_harms_nothing(place: Place, small_disk: bool) -> None:
    if not small_disk:
        pytest.skip("mounting a small file system needs root")
    before = _champions(place)
    toy_frame(300, seed=7).to_csv(place.data / "toy.csv", index=False)
    process = _run(place, "--set", "logging.format=json")
    assert process.stdout is not None and process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "Step `validate` has started" in line:
            _fill(place.home)
    error = json.loads(process.stdout.read().splitlines()[-1])["error"]
    assert process.wait() == 1, said[-3000:]
    assert len(error) < 2_500
    assert "Traceback" not in said
    refused = place.gauntlet("run", "toy")
    assert refused.code == 1
    assert refused.json is not None and re.match(r"the disk is full: \d+ MiB", refused.json["error"])
    (place.home / "filler").unlink()
    assert _champions(place) == before
    health = place.gauntlet("doctor")
    assert health.code == 0, health.printed
    again = place.gauntlet("run", "toy")
    assert again.code == 0, again.printed[-3000:]
