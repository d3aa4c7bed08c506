"""The real command on a stack whose steps run in processes of their own: same ends, same exit codes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from zenml.client import Client

import stacks.stack_file as stack_file
from models.errors import LIMIT
from stacks.stack_file import apply, ensure_active
from tests.flows.conftest import Invoke, Place
from tests.flows.test_whole_run import TRAIN_STEPS

STACK = {
    "orchestrator": {"flavor": "prefect", "config": {"max_parallel": 2}},
    "artifact_store": {"flavor": "local"},
    "experiment_tracker": {"flavor": "mlflow", "config": {"tracking_uri": "${MLFLOW_TRACKING_URI}"}},
    "model_registry": {"flavor": "mlflow"},
}


@pytest.fixture(scope="module")
def here(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    ensure_active()
    before = Client().active_stack_model.id
    folder = tmp_path_factory.mktemp("stacks")
    (folder / "in_processes.yaml").write_text(yaml.safe_dump(STACK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNTLET_MODELS", str(place.models))
        patch.setenv("GAUNTLET_DATA", str(place.data))
        patch.setattr(stack_file, "stacks_dir", lambda: folder)
        apply("in_processes")
        Client().activate_stack("in_processes")
        yield place
    Client().activate_stack(before)


def test_bad_data_end_the_command_as_they_do_in_one_process(here: Place, invoke: Invoke) -> None:
    (here.data / "bad.csv").write_bytes(b"")
    done = invoke(["run", "toy", "--set", "sources=[{name: bad, kind: csv, path: bad.csv}]"])
    assert done.code == 1, done.printed[-2000:]
    assert done.json is not None and done.json["exit_code"] == 1
    assert "empty" in done.json["error"] and len(done.json["error"]) <= LIMIT
    assert "Traceback" not in done.printed


@pytest.mark.prove
def test_a_whole_run(here: Place, invoke: Invoke, proof: Callable[[str, object, str], None], home: Path) -> None:
    done = invoke(["run", "toy", "--set", "logging.format=json"])
    assert done.code == 0, done.printed[-2000:]
    assert done.json is not None and done.json["verdict"] == "promoted"
    said = [line for line in map(json.loads, done.stderr.splitlines()) if line["logger"].startswith("steps.")]
    assert {line["step"] for line in said} >= {"ingest", "validate", "tune", "promote", "deploy"}
    for line in said:
        assert (line["model"], line["prefect_flow_run_id"]) == ("toy", done.json["prefect_flow_run_id"])
        assert (line["zenml_run_id"] == done.json["zenml_run_id"]) == (line["step"] in TRAIN_STEPS)
        if line["step"] in ("tune", "train", "evaluate"):
            assert line["mlflow_run_id"] == done.json["mlflow_run_id"], line
    proof("every step of a training run in a process of its own", 1, f"{done.json['seconds']} s")
