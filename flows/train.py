"""The Prefect flow `train`: one model's whole life, from its data to a served champion."""

import time
from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.console import use_logging
from flows.pipelines import release_pipeline, train_pipeline
from flows.resolve import resolve_model
from models.config import ModelConfig
from models.errors import ConfigError, WorkError
from stacks import registry
from stacks.ledger import current_actor, open_ledger
from stacks.stack_file import ensure_active
from steps.ingest import source_digest
from steps.metrics import require_metric
from steps.promote import repair, require_gates

STEP_PARTS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("seed", "split"),
    "validate": ("seed", "split", "validation", "monitoring", "derived"),
    "split": ("seed", "split", "sample_size"),
    "tune": ("task", "metric", "seed", "derived", "features", "split", "tuning"),
}


def step_parts(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """For each step of the train pipeline, the part of `config` that its answer depends on."""
    whole = config.model_dump(mode="json")
    parts = {step: config.part(*keys) for step, keys in STEP_PARTS.items()}
    return {**dict.fromkeys(("train", "evaluate", "package"), whole), **parts}


@flow(name="train", flow_run_name="train-{model}", validate_parameters=False)
def train(
    model: str, source: str | None = None, overrides: list[str] | None = None, why: str = "", actor: str | None = None
) -> dict[str, Any]:
    """Train a challenger, judge it, and let it serve if it earned that.

    Args:
        model: Name of a YAML in `models/`.
        source: One of its sources; the first when left out.
        overrides: `key=value` texts that go on top of the YAML.
        why: Reason for the ledger.
        actor: Who asked; the user of this process when left out.

    Returns:
        What `gauntlet run --json` prints.

    Raises:
        GauntletError: The configuration, the data or a step failed; the champion is as before.
    """
    started = time.monotonic()
    stack = ensure_active()
    config = resolve_model(model, overrides or [], stack).config
    use_logging(config.logging, model=model, prefect_flow_run_id=str(flow_run.id))
    require_metric(config, config.target.labels)
    require_gates(config)
    used = config.source(source).name
    registry.initialise()
    repair(model)
    champion = open_ledger().champion(model)
    trained = _finished(
        train_pipeline.with_options(run_name=f"train-{model}-{{date}}-{{time}}", tags=[model])(
            step_parts(config), used, source_digest(config, used), champion
        )
    )
    released = _finished(
        release_pipeline.with_options(run_name=f"release-{model}-{{date}}-{{time}}", tags=[model])(
            config.model_dump(mode="json"),
            _output(trained, "evaluate"),
            _output(trained, "package"),
            why or "gauntlet run",
            actor or current_actor(),
        )
    )
    return _result(config, used, stack, trained, released, time.monotonic() - started)


def _finished(run: Any) -> Any:
    if run is None:
        raise ConfigError("the active stack's orchestrator answers before the run is over; follow it in Prefect")
    if not run.status.is_successful:
        raise WorkError(f"the ZenML run {run.name} ended as {run.status}; `zenml pipeline runs list` shows it")
    return run


def _output(run: Any, step: str) -> Any:
    """The artifact of a step that has one output."""
    ((artifact,),) = run.steps[step].outputs.values()
    return artifact


def _result(
    config: ModelConfig, source: str, stack: str, trained: Any, released: Any, seconds: float
) -> dict[str, Any]:
    evaluation = _output(trained, "evaluate").load()
    package = _output(trained, "package").load()
    verdict = _output(released, "promote").load()
    published = _output(released, "deploy").load()
    return {
        "model": config.name,
        "version": verdict.version,
        "verdict": verdict.decision,
        "reason": verdict.reason,
        "champion": open_ledger().champion(config.name),
        "metric": evaluation.metric,
        "metrics": evaluation.challenger,
        "plain_linear": evaluation.linear,
        "dummy": evaluation.dummy,
        "test_rows": evaluation.test_rows,
        "compared_rows": verdict.rows,
        "gates": [gate.model_dump(mode="json") for gate in verdict.gates],
        "release_digest": evaluation.release_digest,
        "data_digest": evaluation.data_digest,
        "source": source,
        "stack": stack,
        "zenml_run_id": str(trained.id),
        "prefect_flow_run_id": str(flow_run.id),
        "mlflow_run_id": evaluation.mlflow_run_id,
        "bento": package.tag,
        "answer": published.answer,
        "seconds": round(seconds, 1),
    }
