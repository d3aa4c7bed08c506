"""Alerting: which findings and decisions a team is told of, once, until they are over."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict
from zenml import step

from models.config import ModelConfig
from models.errors import GauntletError
from models.monitoring import Severity
from models.section import length
from stacks.alerts import Message, Notice, Subject, cancel, claim, owing, set_alerts, settle
from stacks.findings import Finding, Findings, present, read_findings
from stacks.ledger import Ledger, open_ledger
from steps.caching import parse_config
from steps.response import Response
from steps.sinks import Sink, configured, sinks_of

LOG = logging.getLogger(__name__)
# What becomes of a training that did not help.
LOST = ("kept", "rejected", "failed")


class Alerted(BaseModel):
    """What one look told the team.

    Attributes:
        model: Name of the model.
        raised: Subjects that trouble began with.
        lasting: Subjects whose trouble was told again.
        recovered: Subjects whose trouble is over.
        told: How many messages each sink took, those that it was owed from before too.
        owed: How many messages each sink has still to take; they are tried again at the next look.
        failed: Why a sink did not take them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    raised: tuple[Subject, ...] = ()
    lasting: tuple[Subject, ...] = ()
    recovered: tuple[Subject, ...] = ()
    told: dict[str, int] = {}
    owed: dict[str, int] = {}
    failed: dict[str, str] = {}


def tell(
    config: ModelConfig,
    findings: Findings,
    response: Response,
    *,
    ledger: Ledger,
    now: datetime,
    sinks: Mapping[str, Sink] | None = None,
) -> Alerted:
    """Raise, repeat and end the alerts of a model, and hand over what its sinks are owed, the oldest first.

    Args:
        config: The model's configuration.
        findings: What one look found.
        response: What the loop does about it.
        ledger: Whose database holds alerts and findings.
        now: When the look was.
        sinks: Who is told, by name; those of the configuration when left out.

    Returns:
        What was told, and what could not be.

    Raises:
        WorkError: The database cannot be used. A sink that fails raises nothing.
    """
    sinks = sinks_of(config) if sinks is None else sinks
    repeat = length(config.monitoring.alerts.repeat)
    notices = notices_of(config, newest(ledger, findings), response)
    news = set_alerts(ledger, config.name, notices, sinks=tuple(sinks), repeat=repeat, now=now)
    for sink, count in cancel(ledger, config.name, {*sinks, *configured(config)}).items():
        LOG.warning("%s: %d alert messages to '%s' are dropped: it is no sink any more", config.name, count, sink)
    told, failed = deliver(ledger, config.name, sinks)
    owed = owing(ledger, config.name)
    for sink, reason in failed.items():
        left = owed.get(sink, 0)
        LOG.warning("%s: alerts to '%s' failed: %s; %d tried again at the next look", config.name, sink, reason, left)
    of = {state: tuple(m.subject for m in news if m.state == state) for state in ("raised", "lasting", "recovered")}
    return Alerted(model=config.name, **of, told=told, owed=owed, failed=failed)


def newest(ledger: Ledger, findings: Findings) -> tuple[Finding, ...]:
    """Those findings that say something and are not older than what was already found: not those of a replay."""
    judged = [finding for finding in findings.of if finding.state != "unjudged"]
    return tuple(finding for finding in judged if not _is_stale(ledger, finding))


def notices_of(config: ModelConfig, findings: Sequence[Finding], response: Response) -> list[Notice]:
    """What findings and a response say of each subject, checks first.

    Args:
        config: The model's configuration.
        findings: Judged ones, of each check the newest last.
        response: What the loop does about them.
    """
    by_check = {finding.check: finding for finding in findings}
    checks = [_of_check(config, finding, response) for finding in by_check.values()]
    return [*checks, *_of_training(config, findings, response), *_of_rollback(config, response)]


def deliver(ledger: Ledger, model: str, sinks: Mapping[str, Sink]) -> tuple[dict[str, int], dict[str, str]]:
    """Hand over what the sinks are owed; one that fails is left alone until the next look.

    Returns:
        How many messages each sink took, and why those that failed did.

    Raises:
        WorkError: The database cannot be used.
    """
    told: dict[str, int] = {}
    failed: dict[str, str] = {}
    while claimed := claim(ledger, model, sinks.keys() - failed.keys()):
        taken: list[Message] = []
        try:
            for message in claimed.messages:
                sinks[claimed.sink](message)
                taken.append(message)
        except Exception as error:
            # The text of somebody else's error may hold a URL, and that a token.
            failed[claimed.sink] = str(error) if isinstance(error, GauntletError) else type(error).__name__
        finally:
            settle(ledger, claimed, taken)
        told[claimed.sink] = told.get(claimed.sink, 0) + len(taken)
    return {sink: count for sink, count in told.items() if count}, failed


def _is_stale(ledger: Ledger, finding: Finding) -> bool:
    later = read_findings(ledger, finding.model, since=finding.until, until=present(), checks=[finding.check])
    stale = any(other.state != "unjudged" for other in later)
    if stale:
        which = (finding.model, finding.check, f"{finding.until:%Y-%m-%d %H:%M}")
        LOG.warning("%s: what %s found until %s UTC alerts nobody, as later findings are known", *which)
    return stale


def _notice(
    config: ModelConfig, response: Response, subject: Subject, trouble: bool, said: str, then: str = ""
) -> Notice:
    return Notice(
        subject=subject,
        version=response.version,
        severity=_severity(config, subject),
        trouble=trouble,
        said=said,
        then=then,
        runbook=f"{config.monitoring.alerts.runbooks.rstrip('/')}/{subject}.md",
        entry=response.sequence,
    )


def _of_check(config: ModelConfig, finding: Finding, response: Response) -> Notice:
    then = _then(finding, response)
    notice = _notice(config, response, finding.check, finding.state == "found", finding.said, then)
    entry = response.sequence if finding.check in response.checks else None
    return notice.model_copy(update={"version": finding.version, "entry": entry})


def _severity(config: ModelConfig, subject: Subject) -> Severity:
    if subject == "training":
        return "warning"
    return "critical" if subject == "rollback" else config.monitoring.alerts.severity_of(subject)


def _then(finding: Finding, response: Response) -> str:
    if finding.check not in response.checks or response.decision == "watch":
        return "Nothing is done about it by itself yet."
    if response.decision == "retrain":
        return "A training starts by itself."
    if response.decision == "rollback":
        return f"Version {response.to} takes over again by itself."
    return f"A training {_waits(response)}."


def _waits(response: Response) -> str:
    if response.wait_until is None:
        return "starts when a person says so"
    return f"may start by itself from {response.wait_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _of_training(config: ModelConfig, findings: Sequence[Finding], response: Response) -> list[Notice]:
    """Trouble while the loop waits after a training that did not help, or has none left; over when none is needed."""
    waits = response.decision == "wait"
    reasons = []
    if waits and response.last_training in LOST:
        reasons.append(f"The last training that the loop started did not help: {response.last_training}.")
    if waits and response.budget_left == 0:
        reasons.append(f"All {config.monitoring.retrain.budget} trainings of 30 days are used up.")
    if reasons:
        said = " ".join([*reasons, f"Still wanted: {response.why}"])
        return [_notice(config, response, "training", True, said, f"The next one {_waits(response)}.")]
    starting = [finding for finding in findings if finding.check in config.monitoring.retrain.checks]
    calm = response.decision == "watch" and bool(starting) and all(each.state == "held" for each in starting)
    helped = waits and response.last_training == "promoted"
    if not calm and not helped:
        return []
    said = "the last training was promoted" if response.last_training == "promoted" else "none is needed any more"
    return [_notice(config, response, "training", False, said)]


def _of_rollback(config: ModelConfig, response: Response) -> list[Notice]:
    if response.decision != "rollback":
        return []
    said = f"Version {response.to} takes over from version {response.version} (ledger entry {response.sequence}): "
    then = f"Another one: gauntlet promote {config.name} VERSION --why TEXT."
    return [_notice(config, response, "rollback", True, said + response.why, then)]


@step(enable_cache=False)
def alert(config: str, findings: Findings, response: Response) -> Annotated[Alerted, "alerts"]:
    """Tell the team what one look found and what the loop does about it, each trouble once."""
    looked = max((finding.looked for finding in findings.of), default=datetime.now(UTC))
    return tell(parse_config(config), findings, response, ledger=open_ledger(), now=looked)
