"""What the flavor says of itself for each configuration, and which stacks it refuses."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from zenml.client import Client
from zenml.enums import ExecutionMode
from zenml.orchestrators import BaseOrchestrator
from zenml.stack import Stack

from stacks.orchestrator import validation
from stacks.orchestrator.flavor import PrefectOrchestratorConfig
from stacks.orchestrator.orchestrator import PrefectOrchestrator
from stacks.stack_file import ensure_active


@pytest.fixture(autouse=True)
def _local_stack(home: Path) -> Iterator[None]:
    ensure_active()
    yield


def component(config: PrefectOrchestratorConfig) -> PrefectOrchestrator:
    """The stack's orchestrator with another configuration."""
    model = Client().get_stack("local").components["orchestrator"][0]  # type: ignore[index]
    orchestrator = PrefectOrchestrator.from_model(model)
    assert isinstance(orchestrator, PrefectOrchestrator)
    orchestrator._config = config
    return orchestrator


HERE = {"is_local": True, "is_synchronous": True, "is_schedulable": False}


@pytest.mark.parametrize(
    ("config", "says", "step_level"),
    [
        ({}, HERE, False),
        ({"runner": "inline"}, HERE, False),
        ({"runner": "process"}, HERE, True),
        ({"max_parallel": 4}, HERE, True),
        ({"runner": "dask"}, HERE, True),
        ({"runner": "dask", "dask_scheduler": "tls://dask:8786"}, {**HERE, "is_local": False}, True),
        ({"work_pool": "p"}, {"is_local": False, "is_synchronous": True, "is_schedulable": True}, False),
        (
            {"work_pool": "p", "synchronous": False, "runner": "process"},
            {"is_local": False, "is_synchronous": False, "is_schedulable": True},
            True,
        ),
        (
            {"work_pool": "p", "runner": "dask", "dask_scheduler": "tcp://127.0.0.1:8786"},
            {"is_local": False, "is_synchronous": True, "is_schedulable": True},
            True,
        ),
    ],
)
def test_capabilities_are_true_for_each_configuration(
    config: dict[str, Any], says: dict[str, bool], step_level: bool
) -> None:
    made = PrefectOrchestratorConfig(**config)
    assert {name: getattr(made, name) for name in says} == says
    assert (made.is_remote, made.supports_client_side_caching, made.handles_step_retries) == (False, False, True)
    orchestrator = component(made)
    assert orchestrator.run_init_cleanup_at_step_level is step_level
    assert set(orchestrator.supported_execution_modes) == set(ExecutionMode)
    assert orchestrator.supports_dynamic_pipelines and orchestrator.can_run_isolated_steps
    assert orchestrator.can_stop_isolated_steps
    assert orchestrator.supports_schedule_updates and orchestrator.supports_schedule_deletion
    assert type(orchestrator).fetch_status is not BaseOrchestrator.fetch_status


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"runner": "inline", "max_parallel": 2}, "runner 'inline' runs one step at a time"),
        ({"dask_scheduler": "tcp://x:1"}, "dask_scheduler is for runner 'dask'"),
        ({"work_queue": "q"}, "work_queue is a queue of a work pool"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrefectOrchestratorConfig(**config)


def stack_with(config: dict[str, Any], pool: str | None, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack `local` with another orchestrator; `pool` is what Prefect says of its work pool's type."""
    monkeypatch.setattr(validation, "_pool_type", lambda _: pool)
    stack = Stack.from_model(Client().get_stack("local"))
    orchestrator = component(PrefectOrchestratorConfig(**config))
    return Stack(stack.id, stack.name, orchestrator=orchestrator, artifact_store=stack.artifact_store)


@pytest.mark.parametrize(
    ("config", "pool", "said"),
    [
        ({}, None, None),
        ({"runner": "dask"}, None, None),
        ({"runner": "dask", "dask_scheduler": "tcp://127.0.0.1:8786"}, None, None),
        ({"work_pool": "p"}, "process", None),
        ({"work_pool": "p"}, None, None),
        (
            {"runner": "dask", "dask_scheduler": "tls://dask.example:8786"},
            None,
            "Dask scheduler tls://dask.example:8786",
        ),
        ({"work_pool": "p"}, "kubernetes", r"work pool 'p' \(type kubernetes\)"),
        ({"work_pool": "p"}, "docker", r"work pool 'p' \(type docker\)"),
    ],
)
def test_what_runs_elsewhere_needs_an_artifact_store_that_is_not_only_here(
    config: dict[str, Any], pool: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_with(config, pool, monkeypatch)
    if said is None:
        stack.validate()
        return
    with pytest.raises(Exception, match=said) as error:
        stack.validate()
    assert "orchestrator 'local'" in str(error.value) and "artifact store 'local' (flavor local)" in str(error.value)


def test_what_runs_elsewhere_needs_a_database_that_is_not_only_here(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_with({"work_pool": "p"}, "kubernetes", monkeypatch)
    shared = SimpleNamespace(name="shared", flavor="local", path="/mnt/shared", config=SimpleNamespace(is_local=True))
    monkeypatch.setattr(Stack, "artifact_store", shared)
    fine, reason = validation.fits(PrefectOrchestratorConfig(work_pool="p"), stack)
    assert not fine and "ZenML's database, the SQLite file of this machine" in reason and "ZENML_STORE_URL" in reason
