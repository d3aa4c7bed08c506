"""The Prefect flow `train`: one model's whole life, from its data to a served champion."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from zenml.utils import source_utils

from flows.approval import conclude, question_of, suspended, suspends
from flows.cancelled import end_cancelled
from flows.console import use_logging
from flows.pipelines import train_pipeline
from flows.record import recorded
from flows.release import Run, finished, output, run_release
from flows.resolve import resolve_model
from flows.usage import log_usages, step_usages
from flows.wake import wake_superseded
from models.config import ModelConfig
from models.errors import ConfigError, WorkError
from stacks import registry
from stacks.active import use_stack
from stacks.home import clone_dir
from stacks.installed import remember_installed
from stacks.ledger import UNVERIFIED, current_actor, open_ledger
from stacks.runs import log_run
from stacks.stack_file import ensure_active
from steps.approve import KNOWN_BY_KEY, Asked
from steps.caching import parameter
from steps.ingest import source_digest
from steps.judged import FLOW_RUN_TAG, SOURCE_NAME_TAG, TRAIN_RUN_TAG
from steps.metrics import require_metric
from steps.own import pin_metrics
from steps.promote import repair, require_gates

LOG = logging.getLogger(__name__)
SOURCE_TAG = "gauntlet.source_digest"
STEP_PARTS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("seed", "split", "on_bad_row", "max_bad_rows", "compute"),
    "validate": ("seed", "split", "validation", "monitoring", "derived"),
    "split": ("seed", "split", "sample_size"),
    "tune": ("task", "metric", "seed", "derived", "features", "text", "split", "tuning", "fairness", "search_rows"),
}


def step_parts(config: ModelConfig) -> dict[str, str]:
    """For each step of the train pipeline, the part of `config` that its answer depends on, as it is given it."""
    whole = parameter(config.model_dump(mode="json"))
    own = {"tune": ("evaluation",)} if config.metric in config.evaluation.metrics else {}
    parts = {step: parameter(config.part(*keys, *own.get(step, ()))) for step, keys in STEP_PARTS.items()}
    return {**dict.fromkeys(("train", "evaluate"), whole), **parts}


@flow(name="train", flow_run_name="train-{model}", validate_parameters=False, on_cancellation=[end_cancelled])
def train(
    model: str, source: str | None = None, overrides: list[str] | None = None, why: str = "", actor: str | None = None
) -> dict[str, Any]:
    """Train a challenger, judge it, and let it serve if it earned that.

    A deployment's run whose model has `promotion.approval.wait` suspends when the verdict is `pending`. Resumed, it is
    called from its first line again, in a new process, and goes on to the decision.

    Args:
        model: Name of a YAML in `models/`.
        source: One of its sources; the first when left out.
        overrides: `key=value` texts that go on top of the YAML.
        why: Reason for the ledger.
        actor: Who asked; the actor of this process when left out.

    Returns:
        What `gauntlet run --json` prints; after a decision what `gauntlet promote --json` does.

    Raises:
        GauntletError: The configuration, the data or a step failed; the champion is as before.
    """
    use_stack()
    run = str(flow_run.id)
    question = question_of(model, run)
    if question is None:
        with recorded(model, run) as ended, fitting(model):
            result = _train(model, source, overrides or [], why, acting(actor))
            ended(result["verdict"])
        question = question_of(model, run)
        if question is None:
            return result
    answer = suspended(question)
    with recorded(model, run) as ended:
        result = conclude(question, answer)
        ended(result["verdict"])
    return result


@contextmanager
def fitting(model: str) -> Iterator[None]:
    """Say what to do where the rows of a model do not fit into this process.

    Raises:
        WorkError: They do not. A step's own process may have ended so: then its error is known by its name only.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and "MemoryError" not in str(error):
            raise
        raise WorkError(
            f"'{model}': its rows do not fit into this process's memory; set `compute: dask` in models/{model}.yaml "
            "(docs/dask.md), or give the process more"
        ) from error


def acting(given: str | None) -> str:
    """The actor of a run: the owner of this process's key; without one `given`, which anybody may write: unverified.

    Raises:
        ConfigError: `given` names the owner of another key than `GAUNTLET_KEY`, or that is wrong.
    """
    actor = current_actor()
    if given and given != actor and given.startswith(KNOWN_BY_KEY):
        raise ConfigError("the parameter 'actor' names the owner of a key; set GAUNTLET_KEY to that key instead")
    if not given or actor.startswith(KNOWN_BY_KEY):
        return actor
    return given if given.startswith(UNVERIFIED) else f"{UNVERIFIED}{given}"


def _train(model: str, source: str | None, overrides: Sequence[str], why: str, actor: str) -> dict[str, Any]:
    started = time.monotonic()
    remember_installed()
    # Where ZenML otherwise looks for a repository anew, in this folder and all above, for each function and type.
    source_utils.set_custom_source_root(str(clone_dir()))
    stack = ensure_active()
    resolved = resolve_model(model, overrides, stack)
    config = resolved.config
    use_logging(config.logging, model=model, prefect_flow_run_id=str(flow_run.id))
    require_metric(config, config.target.labels)
    require_gates(config, resolved.origins)
    config = pin_metrics(config)
    used = config.source(source).name
    registry.initialise()
    for line in repair(model):
        LOG.warning("repaired: %s", line)
    champion = open_ledger().champion(model)
    digest = source_digest(config, used)
    trained = finished(
        train_pipeline.with_options(run_name=f"train-{model}-{{date}}-{{time}}", tags=[model])(
            step_parts(config), used, digest, champion, _reference(model, champion, digest)
        )
    )
    run_id = output(trained, "evaluate").load().mlflow_run_id
    ids = {SOURCE_NAME_TAG: used, TRAIN_RUN_TAG: str(trained.id), FLOW_RUN_TAG: str(flow_run.id)}
    log_run(run_id, tags=ids)
    asked = Asked(
        why=why or "gauntlet run",
        actor=actor,
        settings=tuple(text for text in overrides if text.startswith(("gates", "promotion"))),
        flow_run=str(flow_run.id) if suspends(config) else None,
    )
    whole = parameter(config.model_dump(mode="json"))
    released = run_release(model, whole, output(trained, "evaluate"), output(trained, "package"), asked)
    verdict = output(released, "promote").load()
    wake_superseded(model, verdict.version, verdict.sequence)
    result = _result(config, used, stack, trained, released, time.monotonic() - started)
    if result["verdict"] in ("promoted", "pending"):
        registry.set_tag(model, result["version"], SOURCE_TAG, digest)
    return result


def _reference(model: str, champion: int | None, digest: str) -> int | None:
    """The version whose training rows drift is measured against: none where the data are the very same."""
    if champion is None or registry.version(model, champion).tags.get(SOURCE_TAG) == digest:
        return None
    return champion


def _result(
    config: ModelConfig, source: str, stack: str, trained: Run, released: Run, seconds: float
) -> dict[str, Any]:
    evaluation = output(trained, "evaluate").load()
    package = output(trained, "package").load()
    verdict = output(released, "promote").load()
    published = output(released, "deploy").load()
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
