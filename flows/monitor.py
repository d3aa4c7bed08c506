"""The Prefect flow `monitor`: a champion looked at, on schedules and when somebody asks, and what follows is done."""

import logging
import time
from datetime import timedelta
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.states import Completed
from zenml.utils import source_utils

from flows.cancelled import end_cancelled
from flows.console import use_logging
from flows.pipelines import monitor_pipeline
from flows.release import Run, finished, output
from flows.resolve import resolve_model
from flows.retire import repair_first
from flows.retrain import act
from stacks import registry
from stacks.active import use_stack
from stacks.findings import Findings, read_findings
from stacks.home import clone_dir
from stacks.ledger import open_ledger
from stacks.stack_file import ensure_active
from steps.caching import parameter
from steps.watch import require_champion, watch_of

LOG = logging.getLogger(__name__)


@flow(name="monitor", flow_run_name="monitor-{model}", validate_parameters=False, on_cancellation=[end_cancelled])
def monitor(
    model: str, checks: list[str] | str | None = None, window: str | None = None, at: str | None = None
) -> dict[str, Any] | State[Any]:
    """Look at a champion, tell the team of trouble, and train or roll back where the model's YAML says so.

    What is found is kept in the ledger's database, with ZenML and with MLflow.

    Args:
        model: Name of a YAML in `models/`.
        checks: Names of checks, or one; all when left out.
        window: How far back each looks, such as `7d`; as far as the YAML says when left out.
        at: Where the windows end (ISO 8601); now when left out.

    Returns:
        What `gauntlet monitor --json` prints; for a deployment's run without a champion the state Skipped.

    Raises:
        GauntletError: The configuration or what is asked is wrong, there is no champion, a step failed, or what was
            decided could not be done; the team was told of the findings then.
    """
    started = time.monotonic()
    use_stack()
    if skipped := _skipped_run(model):
        return skipped
    watch = watch_of([checks] if isinstance(checks, str) else checks or (), window, at)
    # Where ZenML otherwise looks for a repository anew, in this folder and all above, for each function and type.
    source_utils.set_custom_source_root(str(clone_dir()))
    stack = ensure_active()
    config = resolve_model(model, (), stack).config
    use_logging(config.logging, model=model, prefect_flow_run_id=str(flow_run.id))
    require_champion(model, open_ledger())
    registry.initialise()
    repair_first(model, LOG.warning)
    pipeline = monitor_pipeline.with_options(run_name=f"monitor-{model}-{{date}}-{{time}}", tags=[model])
    whole, asked = parameter(config.model_dump(mode="json")), parameter(watch.model_dump(mode="json"))
    run = finished(pipeline(whole, asked))
    findings = _findings(run)
    response, alerted = (output(run, step).load() for step in ("respond", "alert"))
    acted = act(whole, response)
    return {
        "model": model,
        "version": findings.of[0].version,
        "findings": [finding.model_dump(mode="json", exclude={"model", "version", "run"}) for finding in findings.of],
        "notes": _notes(model, findings),
        "response": response.model_dump(mode="json", exclude={"model", "version"}),
        "alerts": alerted.model_dump(mode="json", exclude={"model"}),
        "acted": {key: value for key, value in acted.items() if key not in ("model", "decision")},
        "stack": stack,
        "zenml_run_id": str(run.id),
        "prefect_flow_run_id": str(flow_run.id),
        "seconds": round(time.monotonic() - started, 1),
    }


def _skipped_run(model: str) -> State[Any] | None:
    """How a schedule's look at a model ends that has no champion yet: that is no failure of anything; else None.

    Raises:
        WorkError: The ledger cannot be used.
    """
    if not deployment.id or open_ledger().champion(model) is not None:
        return None
    LOG.info("%s has no champion yet: there is nothing to look at", model)
    return Completed(name="Skipped", message=f"'{model}' has no champion yet: gauntlet run {model}")


def _findings(run: Run) -> Findings:
    (artifact,) = run.steps["monitor"].outputs["findings"]
    found: Findings = artifact.load()
    return found


def _notes(model: str, findings: Findings) -> list[str]:
    """What a reader of all of it has to know: windows that end later are on record, they change nothing here."""
    # Two monitors at once end their windows seconds apart.
    until = findings.of[0].until + timedelta(minutes=1)
    later = read_findings(open_ledger(), model, since=until)
    if not later:
        return []
    newest = f"{later[-1].until:%Y-%m-%d %H:%M} UTC"
    return [
        f"windows that end later, up to {newest}, were looked at before ({len(later):,} findings): this look is at the "
        "past, or a clock was set back"
    ]
