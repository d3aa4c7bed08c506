"""Stack files against a real ZenML store."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from zenml.client import Client
from zenml.models import StackRequest

import stacks.stack_file as stack_file
from models.config import load_model
from models.errors import ConfigError
from stacks.home import environment
from stacks.stack_file import (
    Change,
    active_environment,
    apply,
    config_layer,
    ensure_active,
    load_stack,
    plan,
    resolve_stack,
    stack_names,
)

CLOUD = {
    "GAUNTLET_BUCKET": "s3://bucket",
    "GAUNTLET_MLFLOW_URL": "https://mlflow.example",
    "GAUNTLET_REGISTRY": "registry.example/team",
    "GAUNTLET_S3_ENDPOINT": "https://s3.example",
    "GAUNTLET_S3_REGION": "us-east-1",
    "GAUNTLET_S3_KEY_ID": "key-id-value",
    "GAUNTLET_S3_SECRET": "access-key-value",
    "GAUNTLET_MLFLOW_USERNAME": "user-value",
    "GAUNTLET_MLFLOW_PASSWORD": "password-value",
    "GAUNTLET_PREFECT_URL": "https://prefect.example/api",
    "GAUNTLET_PREFECT_AUTH": "me:auth-value",
    "GAUNTLET_DASK_SCHEDULER": "tls://dask.example:8786",
    "GAUNTLET_CLOUD_SECRET": "pseudonym-value",
    "GAUNTLET_DATABASE_URL": "postgresql://u:secret-value@db.example/gauntlet",
}
MINIMAL = {"orchestrator": {"flavor": "prefect"}, "artifact_store": {"flavor": "local"}}
Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _active_stack_stays(home: Path) -> Iterator[None]:
    ensure_active()
    before = Client().active_stack_model.id
    yield
    Client().activate_stack(before)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Write a stack file into a folder of its own; its name is the test's."""
    monkeypatch.setattr(stack_file, "stacks_dir", lambda: tmp_path)
    name = f"t{abs(hash(request.node.nodeid)) % 10**8}"

    def write_file(**parts: object) -> str:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**MINIMAL, **parts}))
        return name

    return write_file


@pytest.mark.parametrize("name", stack_names())
def test_shipped_files_are_sound(name: str) -> None:
    stack = load_stack(name)
    assert stack.orchestrator.flavor == "prefect"
    layer = config_layer(name)
    assert layer is not None and layer.origin == f"stacks/{name}.yaml"
    assert load_model("wine", [layer]).config.name == "wine"


def test_local_is_what_zenml_has() -> None:
    assert plan("local") == [] == apply("local")
    stack = Client().get_stack("local")
    flavors = {str(kind): parts[0].flavor_name for kind, parts in stack.components.items()}
    wanted = {"orchestrator": "prefect", "artifact_store": "local"}
    assert flavors.items() >= {**wanted, "experiment_tracker": "mlflow", "model_registry": "mlflow"}.items()


def test_cloud_is_planned_applied_and_then_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as missing:
        plan("cloud")
    assert all(name in str(missing.value) for name in CLOUD)
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    planned = plan("cloud")
    assert [change.action for change in planned] == ["create"] * 8
    assert planned == plan("cloud"), "a plan changes nothing"
    assert apply("cloud") == planned
    assert plan("cloud") == [] == apply("cloud")
    assert not any(word in " ".join(map(str, planned)) for word in ("-value", "s3://"))
    monkeypatch.setenv("GAUNTLET_BUCKET", "s3://other")
    monkeypatch.setenv("GAUNTLET_DATABASE_URL", "postgresql://elsewhere/gauntlet")
    assert apply("cloud") == [
        Change("update", "secret", "gauntlet_cloud", "GAUNTLET_DATABASE"),
        Change("update", "artifact_store", "cloud", "config.path"),
    ]
    assert plan("cloud") == []
    Client().activate_stack("cloud")
    values = active_environment()
    assert values["GAUNTLET_DATABASE"] == "postgresql://elsewhere/gauntlet"
    assert values["MLFLOW_TRACKING_URI"] == "https://mlflow.example"


def test_a_secret_that_is_made_by_hand_is_asked_for_by_name(write: Write) -> None:
    name = write(secrets={"gauntlet_alerts": None})
    with pytest.raises(ConfigError, match="zenml secret create gauntlet_alerts"):
        plan(name)
    Client().create_secret("gauntlet_alerts", {"slack_token": "token-value"})
    apply(name)
    Client().activate_stack(name)
    assert active_environment() == {"slack_token": "token-value"}


def test_changes_of_a_file_are_made(write: Write, tmp_path: Path) -> None:
    name = write(environment={"COLOUR": "red"})
    assert [str(change) for change in apply(name)] == [
        f"create orchestrator '{name}': flavor prefect",
        f"create artifact_store '{name}': flavor local",
        f"create stack '{name}': orchestrator, artifact_store",
    ]
    write(
        orchestrator={"flavor": "prefect", "config": {"tags": ["blue"]}},
        artifact_store={"flavor": "local", "name": f"{name}-other", "config": {"path": str(tmp_path)}},
        environment={"COLOUR": "blue"},
        description="blue now",
    )
    assert [str(change) for change in apply(name)] == [
        f"update orchestrator '{name}': config.tags",
        f"create artifact_store '{name}-other': flavor local",
        f"update stack '{name}': artifact_store, environment, description",
    ]
    assert plan(name) == []
    Client().activate_stack(name)
    assert active_environment() == {"COLOUR": "blue"}
    write()
    assert [str(change) for change in apply(name)] == [
        f"update orchestrator '{name}': config.tags",
        f"update stack '{name}': artifact_store, environment, description",
    ]
    assert plan(name) == []


def test_a_changed_flavor_is_registered_anew() -> None:
    client = Client()
    flavor = client.get_flavor_by_name_and_type("prefect", "orchestrator")
    from zenml.models import FlavorUpdate

    client.zen_store.update_flavor(flavor.id, FlavorUpdate(config_schema={"properties": {}}))
    assert apply("local") == [Change("update", "flavor", "prefect")]
    assert client.get_flavor_by_name_and_type("prefect", "orchestrator").config_schema == flavor.config_schema


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"orchestrater": {"flavor": "prefect"}}, "unknown key; did you mean 'orchestrator'?"),
        ({"orchestrator": {"flavour": "prefect"}}, "did you mean 'flavor'?"),
        ({"orchestrator": {"flavor": 3}}, "orchestrator.flavor: Input should be a valid string"),
        ({"environment": {"PORT": 5432}}, "environment.PORT: Input should be a valid string"),
        ({"secrets": {"db": {"PASSWORD": "hunter2"}}}, "secrets.db.PASSWORD must be a reference like ${PASSWORD}"),
        ({"environment": {"DB": "postgresql://me:hunter2@host/db"}}, "environment.DB holds a password"),
        ({"environment": {"DB": "${NO_SUCH_VARIABLE}"}}, "variables that are not set: NO_SUCH_VARIABLE"),
        ({"orchestrator": {"flavor": "prefct"}}, "unknown flavor 'prefct'; did you mean 'prefect'?"),
        ({"orchestrator": {"flavor": "prefect", "config": {"tag": []}}}, "unknown key 'tag'"),
        ({"alerter": {"flavor": "slack", "config": {"slack_token": "hunter2"}}}, "alerter.slack_token is secret"),
        ({"secrets": {"absent": None}}, "zenml secret create absent"),
        ({"artifact_store": {"flavor": "s3", "config": {"path": "/no/bucket"}}}, "ZenML refuses to create"),
    ],
)
def test_a_wrong_file_is_refused(parts: dict[str, object], said: str, write: Write) -> None:
    name = write(**parts)
    stacks_before = {stack.name for stack in Client().list_stacks(size=100).items}
    with pytest.raises(ConfigError) as error:
        apply(name)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)
    assert {stack.name for stack in Client().list_stacks(size=100).items} == stacks_before


def test_a_component_cannot_change_its_flavor(write: Write) -> None:
    name = write(alerter={"flavor": "slack", "config": {"slack_token": "{{a.b}}"}})
    Client().create_stack_component(name, "discord", "alerter", {"discord_token": "x"})
    with pytest.raises(ConfigError, match="is of flavor discord in ZenML and cannot become slack"):
        plan(name)


def test_unknown_stack_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"unknown stack 'lokal'; did you mean 'local'\? \(there is: cloud, local\)"):
        load_stack("lokal")


def test_variables_are_replaced() -> None:
    tracker = resolve_stack("local").experiment_tracker
    assert tracker is not None and tracker.config == {"tracking_uri": os.environ["MLFLOW_TRACKING_URI"]}


def test_nothing_to_do_is_quick() -> None:
    ensure_active()
    start = time.perf_counter()
    for _ in range(5):
        ensure_active()
    assert (time.perf_counter() - start) / 5 < 0.1


FIRST_USE = """
import sys
from stacks.stack_file import ensure_active
from stacks.home import use_home
use_home()
from zenml.client import Client
from zenml.models import StackRequest
if len(sys.argv) > 1:
    Client().activate_stack(sys.argv[1])
print("active", ensure_active())
"""


def test_first_use_activates_local_and_later_the_users_choice_stays(tmp_path: Path) -> None:
    own = {**os.environ, **environment(tmp_path), "ZENML_LOGGING_VERBOSITY": "ERROR"}

    (tmp_path / "first_use.py").write_text(FIRST_USE)

    def start(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "first_use.py"), *arguments], env=own, stdout=subprocess.PIPE, text=True
        )

    together = [start(), start()]
    assert [process.communicate(timeout=280)[0].strip().splitlines()[-1] for process in together] == [
        "active local"
    ] * 2
    assert start("default").communicate(timeout=280)[0].strip().splitlines()[-1] == "active default"


def test_what_was_changed_by_hand_is_shown_by_key_and_put_right(write: Write, tmp_path: Path) -> None:
    name = write(
        orchestrator={"flavor": "prefect", "config": {"tags": ["blue"]}},
        artifact_store={"flavor": "local", "config": {"path": str(tmp_path)}},
        environment={"COLOUR": "blue"},
    )
    apply(name)
    client = Client()
    stack = client.get_stack(name)
    parts = {str(kind): parts[0] for kind, parts in stack.components.items()}
    # What `zenml orchestrator update --max_parallel=3 --tags=...` and `zenml stack update` do.
    client.update_stack_component(
        parts["orchestrator"].id, "orchestrator", configuration={"max_parallel": 3, "tags": ["red-value"]}
    )
    client.update_stack(name, environment={"COLOUR": "red-value"})
    changes = [str(change) for change in plan(name)]
    assert changes == [
        f"update orchestrator '{name}': config.max_parallel, config.tags",
        f"update stack '{name}': environment",
    ]
    assert [str(change) for change in apply(name)] == changes
    assert plan(name) == []


def test_a_component_of_another_stack_too_is_not_changed_under_it(write: Write, tmp_path: Path) -> None:
    store = {"flavor": "local", "name": "shared-store", "config": {"path": str(tmp_path)}}
    name = write(artifact_store=store)
    apply(name)
    client = Client()
    parts = {kind: [each[0].id] for kind, each in client.get_stack(name).components.items()}
    other = client.zen_store.create_stack(StackRequest(name=f"{name}-other", components=parts))
    write(artifact_store={**store, "config": {"path": f"{tmp_path}/elsewhere"}})
    assert [str(change) for change in plan(name)] == [
        f"update artifact_store 'shared-store': config.path (also used by {name}-other)"
    ]
    with pytest.raises(ConfigError, match=f"also used by {name}-other.*name of their own"):
        apply(name)
    found = client.list_stack_components(name="shared-store", type="artifact_store", hydrate=True).items[0]
    assert found.configuration["path"] == str(tmp_path)
    # A stack of ours whose file asks for the same is no hindrance.
    (tmp_path / f"{name}-other.yaml").write_text((tmp_path / f"{name}.yaml").read_text())
    assert [change.kind for change in apply(name)] == ["artifact_store"]
    client.zen_store.delete_stack(other.id)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "uses ZenML secret 'keys', which does not exist: zenml secret create keys --token=VALUE"),
        ({"tokens": "x"}, "uses ZenML secret 'keys', which has no key 'token'; did you mean 'tokens'?"),
        ({"token": "x"}, None),
    ],
)
def test_a_missing_secret_is_named_before_anything_changes(
    given: dict[str, str] | None, said: str | None, write: Write
) -> None:
    name = write(
        alerter={"flavor": "slack", "config": {"slack_token": "{{keys.token}}"}}, environment={"COLOUR": "blue"}
    )
    client = Client()
    if given:
        client.create_secret("keys", given)
    try:
        if said is None:
            assert apply(name)
            return
        with pytest.raises(ConfigError) as error:
            apply(name)
        assert said in str(error.value)
        for kind in ("orchestrator", "artifact_store", "alerter"):
            assert client.list_stack_components(name=name, type=kind).total == 0
    finally:
        if given:
            client.delete_secret("keys")


def test_what_zenml_refused_half_way_is_completed_by_the_next_apply(write: Write, tmp_path: Path) -> None:
    name = write(artifact_store={"flavor": "s3", "config": {"path": "/no/bucket"}})
    with pytest.raises(ConfigError, match="ZenML refuses to create artifact_store"):
        apply(name)
    assert Client().list_stack_components(name=name, type="orchestrator").total == 1
    write()
    assert [change.kind for change in apply(name)] == ["artifact_store", "stack"]
    assert plan(name) == []


def test_the_flavor_is_the_same_wherever_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan("local") == []
    assert Client().get_flavor_by_name_and_type("prefect", "orchestrator").source == (
        "stacks.orchestrator.flavor.PrefectOrchestratorFlavor"
    )
