"""The Prefect flow `train`: one model's whole life, from its data to a served champion."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from zenml.client import Client
from zenml.utils import source_utils
from zenml.utils.pagination_utils import depaginate

from flows.console import use_logging
from flows.pipelines import release_pipeline, train_pipeline
from flows.record import recorded
from flows.resolve import resolve_model
from flows.usage import log_usages, step_usages
from models.config import ModelConfig
from models.errors import ConfigError, WorkError
from stacks import registry
from stacks.home import clone_dir
from stacks.installed import remember_installed
from stacks.ledger import current_actor, open_ledger
from stacks.runs import log_run
from stacks.stack_file import ensure_active
from steps.caching import parameter
from steps.ingest import source_digest
from steps.metrics import require_metric
from steps.promote import repair, require_gates

SOURCE_TAG = "gauntlet.source_digest"
STEP_PARTS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("seed", "split", "on_bad_row", "max_bad_rows"),
    "validate": ("seed", "split", "validation", "monitoring", "derived"),
    "split": ("seed", "split", "sample_size"),
    "tune": ("task", "metric", "seed", "derived", "features", "text", "split", "tuning"),
}


def step_parts(config: ModelConfig) -> dict[str, str]:
    """For each step of the train pipeline, the part of `config` that its answer depends on, as it is given it."""
    whole = parameter(config.model_dump(mode="json"))
    parts = {step: parameter(config.part(*keys)) for step, keys in STEP_PARTS.items()}
    return {**dict.fromkeys(("train", "evaluate"), whole), **parts}


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
    with recorded(model, str(flow_run.id)) as ended:
        result = _train(model, source, overrides or [], why, actor or current_actor())
        ended(result["verdict"])
    return result


def _train(model: str, source: str | None, overrides: Sequence[str], why: str, actor: str) -> dict[str, Any]:
    started = time.monotonic()
    remember_installed()
    # Where ZenML otherwise looks for a repository anew, in this folder and all above, for each function and type.
    source_utils.set_custom_source_root(str(clone_dir()))
    stack = ensure_active()
    config = resolve_model(model, overrides, stack).config
    use_logging(config.logging, model=model, prefect_flow_run_id=str(flow_run.id))
    require_metric(config, config.target.labels)
    require_gates(config)
    used = config.source(source).name
    registry.initialise()
    repair(model)
    champion = open_ledger().champion(model)
    digest = source_digest(config, used)
    trained = _finished(
        train_pipeline.with_options(run_name=f"train-{model}-{{date}}-{{time}}", tags=[model])(
            step_parts(config), used, digest, champion, _reference(model, champion, digest)
        )
    )
    released = _finished(
        release_pipeline.with_options(run_name=f"release-{model}-{{date}}-{{time}}", tags=[model])(
            parameter(config.model_dump(mode="json")),
            _output(trained, "evaluate"),
            _output(trained, "package"),
            parameter({"why": why or "gauntlet run", "actor": actor}),
        )
    )
    result = _result(config, used, stack, trained, released, time.monotonic() - started)
    if result["verdict"] == "promoted":
        registry.set_tag(model, result["version"], SOURCE_TAG, digest)
    return result


def _reference(model: str, champion: int | None, digest: str) -> int | None:
    """The version whose training rows drift is measured against: none where the data are the very same."""
    if champion is None or registry.version(model, champion).tags.get(SOURCE_TAG) == digest:
        return None
    return champion


@dataclass(frozen=True)
class _Run:
    """A ZenML run that is over, and all that is known of its steps: ZenML asks its store anew each time."""

    id: Any
    steps: Mapping[str, Any]


def _finished(run: Any) -> _Run:
    if run is None:
        raise ConfigError("the active stack's orchestrator answers before the run is over; follow it in Prefect")
    if not run.status.is_successful:
        raise WorkError(f"the ZenML run {run.name} ended as {run.status}; `zenml pipeline runs list` shows it")
    steps = depaginate(Client().list_run_steps, pipeline_run_id=run.id, exclude_retried=True, hydrate=True)
    return _Run(run.id, {step.name: step for step in steps})


def _output(run: _Run, step: str) -> Any:
    """The artifact of a step that has one output."""
    ((artifact,),) = run.steps[step].outputs.values()
    return artifact


def _result(
    config: ModelConfig, source: str, stack: str, trained: _Run, released: _Run, seconds: float
) -> dict[str, Any]:
    evaluation = _output(trained, "evaluate").load()
    package = _output(trained, "package").load()
    verdict = _output(released, "promote").load()
    published = _output(released, "deploy").load()
    (quarantined,) = trained.steps["ingest"].outputs["quarantined"]
    aside = int(quarantined.run_metadata["rows"])
    log_run(evaluation.mlflow_run_id, metrics={"quarantined_rows": aside})
    steps = step_usages(trained, released)
    log_usages(evaluation.mlflow_run_id, steps)
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
        "quarantined_rows": aside,
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
        "steps": [asdict(step) for step in steps],
        "seconds": round(seconds, 1),
    }
