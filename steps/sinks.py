"""Sinks: where alerts go, each a function that takes a message or raises."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from zenml.client import Client
from zenml.enums import StackComponentType

from models.config import ModelConfig
from models.errors import WorkError
from models.monitoring import Severity
from stacks.alerts import EVENTS, Message
from steps.variables import expand
from steps.web import AgainError, posted, retrying

LOG = logging.getLogger(__name__)
RETRIES: Final = 2
TIMEOUT: Final = 10.0
# Alertmanager ends what nobody tells it again. The rarest check looks once a quarter, and each message renews this.
LASTS: Final = timedelta(days=100)
EVENT_LASTS: Final = timedelta(hours=1)
_LEVELS: Final[Mapping[Severity, int]] = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "critical": logging.CRITICAL,
}

Sink = Callable[[Message], None]


def configured(config: ModelConfig) -> tuple[str, ...]:
    """Names of the sinks that a model's YAML asks for."""
    alerts = config.monitoring.alerts
    asked = {"log": True, "webhook": alerts.webhook, "alertmanager": alerts.alertmanager, "alerter": alerts.alerter}
    return tuple(name for name, wanted in asked.items() if wanted)


def sinks_of(config: ModelConfig) -> dict[str, Sink]:
    """The sinks of a model by name, those of its YAML; the alerter only where the active ZenML stack has one."""
    alerts = config.monitoring.alerts
    there = {
        "log": to_log,
        "webhook": lambda message: to_webhook(alerts.webhook or "", message),
        "alertmanager": lambda message: to_alertmanager(alerts.alertmanager or "", message),
        "alerter": to_alerter,
    }
    names = [name for name in configured(config) if name != "alerter" or _has_alerter()]
    return {name: there[name] for name in names}


def to_log(message: Message) -> None:
    """Log a message by its severity; what is over is for information."""
    level = logging.INFO if message.state == "recovered" else _LEVELS[message.severity]
    LOG.log(level, "%s", message.text.replace("\n", "; "), extra={"alert": _fields(message)})


def to_webhook(url: str, message: Message) -> None:
    """Post a message as one JSON object, whose `text` chats such as Slack and Mattermost show.

    Raises:
        ConfigError: A variable of the URL is not set.
        WorkError: The hook did not take it, tried three times where that may help.
    """
    _post(url, "", {**_fields(message), "text": message.text}, "monitoring.alerts.webhook")


def to_alertmanager(url: str, message: Message) -> None:
    """Post a message to an Alertmanager (API v2), where the labels of an alert stay the same until it is over.

    Raises:
        ConfigError: A variable of the URL is not set.
        WorkError: The Alertmanager did not take it, tried three times where that may help.
    """
    _post(url, "/api/v2/alerts", _alerts(message, datetime.now(UTC)), "monitoring.alerts.alertmanager")


def to_alerter(message: Message) -> None:
    """Post a message by the alerter of the active ZenML stack.

    Raises:
        WorkError: The alerter did not take it.
    """
    alerter = Client().active_stack.alerter
    if alerter is None or not alerter.post(message.text):
        raise WorkError("the alerter of the active stack did not take the message; its own log may say why")


def _has_alerter() -> bool:
    # Asked of the record: the stack itself imports what each of its components needs.
    return bool(Client().active_stack_model.components.get(StackComponentType.ALERTER))


def _fields(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude={"was"})


def _post(url: str, path: str, content: Any, where: str) -> None:
    address = expand(url, where)
    with httpx.Client(timeout=TIMEOUT) as client:
        try:
            retrying(RETRIES)(posted, client, address.rstrip("/") + path if path else address, content, where)
        except AgainError as error:
            raise WorkError(f"{error.reason}, after {RETRIES + 1} attempts") from None


def _alerts(message: Message, now: datetime) -> list[dict[str, Any]]:
    """A message as Alertmanager's alerts, the one of another severity ended first, as severity is a label.

    The clock is this machine's, not the look's: an alert that ends in the past is none.
    """
    lasts = EVENT_LASTS if message.subject in EVENTS else LASTS
    ends = now if message.state == "recovered" else now + lasts
    alerts = [_alert(message, message.severity, now, ends)]
    return [_alert(message, message.was, now, now), *alerts] if message.was else alerts


def _alert(message: Message, severity: Severity, now: datetime, ends: datetime) -> dict[str, Any]:
    name = "Gauntlet" + message.subject.title().replace("_", "")
    annotations = {
        "summary": message.summary,
        "description": message.then,
        "runbook_url": message.runbook,
        "version": str(message.version),
    }
    return {
        "labels": {"alertname": name, "model": message.model, "severity": severity},
        "annotations": {key: value for key, value in annotations.items() if value},
        "startsAt": min(message.raised, now).isoformat(),
        "endsAt": ends.isoformat(),
    }
