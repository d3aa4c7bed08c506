"""The Prefect flow `release`: a version that was trained before is judged again and becomes champion by hand."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run
from pydantic import ValidationError
from zenml.client import Client
from zenml.utils import source_utils
from zenml.utils.pagination_utils import depaginate

from flows.cancelled import end_cancelled
from flows.pipelines import release_pipeline
from flows.retire import repair_first
from flows.wake import wake_superseded
from models.errors import ConfigError, WorkError
from stacks import registry
from stacks.active import use_stack
from stacks.home import clone_dir
from stacks.ledger import current_actor, open_ledger
from stacks.stack_file import ensure_active
from steps.approve import Asked
from steps.caching import parameter

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A ZenML run that is over, and all that is known of its steps: ZenML asks its store anew each time."""

    id: Any
    steps: Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What a version was judged by when it was last judged, as ZenML keeps it.

    Attributes:
        config: The configuration, as the step `promote` was given it.
        evaluation: The artifact of its evaluation.
        package: The artifact of its package.
        settings: What `--set` changed in that configuration of gates and promotion.
    """

    config: str
    evaluation: Any
    package: Any
    settings: tuple[str, ...] = ()


@flow(
    name="release",
    flow_run_name="release-{model}-{version}",
    validate_parameters=False,
    on_cancellation=[end_cancelled],
)
def release(model: str, version: int, why: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Promote a version by hand: judged by the code that judges every challenger, then deployed.

    Args:
        model: Name of a YAML in `models/`.
        version: One of its versions.
        why: Reason for the ledger.
        overrides: Names of gates that may fail.

    Returns:
        What `gauntlet promote --json` prints.

    Raises:
        GauntletError: A rule or a gate stands against it, or a step failed; the champion is as before.
    """
    use_stack()
    return promote_version(model, version, why, overrides or (), current_actor())


def promote_version(model: str, version: int, why: str, overrides: Sequence[str], actor: str) -> dict[str, Any]:
    """Run the ZenML pipeline `release` for one version inside the current flow run; see `release`."""
    started = time.monotonic()
    # Where ZenML otherwise looks for a repository anew, in this folder and all above, for each function and type.
    source_utils.set_custom_source_root(str(clone_dir()))
    stack = ensure_active()
    registry.initialise()
    repair_first(model, LOG.warning)
    judged = judgement_of(model, version)
    asked = Asked(why=why, actor=actor, by_hand=True, overrides=tuple(overrides), settings=judged.settings)
    released = run_release(model, judged.config, judged.evaluation, judged.package, asked)
    verdict = output(released, "promote").load()
    wake_superseded(model, verdict.version, verdict.sequence)
    published = output(released, "deploy").load()
    return {
        "model": model,
        "version": version,
        "verdict": verdict.decision,
        "reason": verdict.reason,
        "champion": open_ledger().champion(model),
        "former": verdict.former,
        "gates": [gate.model_dump(mode="json") for gate in verdict.gates],
        "overridden": [gate.name for gate in verdict.gates if gate.overridden],
        "actor": actor,
        "why": why,
        "bento": published.tag,
        "answer": published.answer,
        "stack": stack,
        "zenml_run_id": str(released.id),
        "prefect_flow_run_id": str(flow_run.id),
        "seconds": round(time.monotonic() - started, 1),
    }


def judgement_of(model: str, version: int) -> Judgement:
    """Find what a version was last judged by: the ledger names the ZenML run, which keeps the rest.

    Raises:
        WorkError: The version was never judged, or what it was judged by is gone or of another Gauntlet.
    """
    entries = [e for e in open_ledger().history(model) if e.payload.get("request") and "verdict" in e.payload]
    own = [entry for entry in reversed(entries) if entry.version == version]
    request = next((entry.payload["request"] for entry in own), None)
    anew = f"`gauntlet run {model}` trains and judges a challenger anew"
    if request is None:
        there = ", ".join(f"v{number}" for number in sorted({entry.version or 0 for entry in entries})[-20:])
        raise WorkError(f"v{version} of '{model}' was never judged (judged were: {there or 'none'}); {anew}")
    try:
        step = Client().get_pipeline_run(UUID(request)).steps["promote"]
        inputs = step.inputs["evaluation"][0], step.inputs["package"][0]
        # What is decided by hand goes by the configuration of the training run before.
        trained = next((entry.payload for entry in own if not entry.payload.get("by_hand")), {})
        found = Judgement(step.config.parameters["config"], *inputs, tuple(trained.get("settings", ())))
        packaged = found.package.load()
        found.evaluation.load()
    except (KeyError, ValueError, ValidationError, OSError) as error:
        raise WorkError(
            f"what v{version} of '{model}' was judged by cannot be read any more (ZenML run {request}: "
            f"{type(error).__name__}); {anew}"
        ) from error
    if packaged.version != version:
        raise WorkError(f"v{version} of '{model}' was judged as v{packaged.version}; {anew}")
    return found


def run_release(model: str, config: str, evaluation: Any, package: Any, asked: Asked) -> Run:
    """Run the ZenML pipeline `release` (promote, deploy) to its end.

    Args:
        model: Name of the model.
        config: Its configuration as a `steps.caching.parameter`.
        evaluation: The artifact of a challenger's evaluation.
        package: The artifact of its package.
        asked: Who asks, and for what.

    Raises:
        GauntletError: A step failed, or refused.
    """
    pipeline = release_pipeline.with_options(run_name=f"release-{model}-{{date}}-{{time}}", tags=[model])
    return finished(pipeline(config, evaluation, package, parameter(asked.model_dump(mode="json"))))


def finished(run: Any) -> Run:
    """A ZenML run that ended well, with its steps.

    Raises:
        ConfigError: The stack's orchestrator does not wait for the end.
        WorkError: It ended otherwise.
    """
    if run is None:
        raise ConfigError("the active stack's orchestrator answers before the run is over; follow it in Prefect")
    if not run.status.is_successful:
        raise WorkError(f"the ZenML run {run.name} ended as {run.status}; `zenml pipeline runs list` shows it")
    steps = depaginate(Client().list_run_steps, pipeline_run_id=run.id, exclude_retried=True, hydrate=True)
    return Run(run.id, {step.name: step for step in steps})


def output(run: Run, step: str) -> Any:
    """The artifact of a step that has one output."""
    ((artifact,),) = run.steps[step].outputs.values()
    return artifact
