"""The ZenML pipelines: `train` makes a challenger and its package, `release` decides and deploys, `monitor` watches."""

from typing import Any

from zenml import pipeline
from zenml.enums import ExecutionMode

from steps.alert import alert
from steps.deploy import deploy
from steps.evaluate import evaluate
from steps.ingest import ingest
from steps.monitor import monitor
from steps.package import package
from steps.promote import promote
from steps.respond import respond
from steps.show import show
from steps.split import split
from steps.train import train
from steps.tune import tune
from steps.validate import validate


@pipeline(name="train", execution_mode=ExecutionMode.FAIL_FAST)
def train_pipeline(
    parts: dict[str, str],
    source: str,
    source_digest: str,
    champion: int | None,
    reference: int | None,
) -> None:
    """Rows 1 to 6 of a row's way: from a source to a judged and packaged challenger.

    Args:
        parts: For each step, the part of the configuration that it may depend on (`steps.caching.parameter`).
        source: Name of the source to read.
        source_digest: Digest of what the source holds now, so that changed data are read again.
        champion: Version to compare with, so that a new champion is compared again.
        reference: Version whose training rows drift is measured against; None where there is no drift to measure.
    """
    raw, data_digest, _ = ingest(parts["ingest"], source, source_digest)
    report, _ = validate(parts["validate"], raw, reference)
    training, test = split(parts["split"], raw, after="validate")
    tuning = tune(parts["tune"], training)
    release = train(parts["train"], training, tuning, data_digest)
    evaluation = evaluate(parts["evaluate"], release, training, test, report, champion)
    package(release, evaluation, test)


@pipeline(name="release", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def release_pipeline(config: str, evaluation: Any, package: Any, said: str) -> None:
    """Rows 7 and 8: the verdict, and the champion published."""
    verdict = promote(config, evaluation, package, said)
    deploy(verdict)


@pipeline(name="monitor", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def monitor_pipeline(config: str, asked: str) -> None:
    """Row 10: the champion looked at, what follows decided, the team told, and all of it shown.

    Args:
        config: The model's configuration as a `steps.caching.parameter`.
        asked: A `steps.watch.Watch`, likewise.
    """
    findings, _ = monitor(config, asked)
    response = respond(config, findings)
    show(findings, alert(config, findings, response))
