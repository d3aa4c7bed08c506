"""Where requests are answered: read, answered by the current version, durable in the log, and only then told."""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError

from bentos.fleet import Fleet, Slot
from bentos.gauges import Gauges
from bentos.metrics import metrics
from bentos.prediction_log import LogUnavailable, PredictionLog, Record, is_sampled, keyed
from bentos.reply import Refused, Reply, as_json, fault, invalid
from bentos.served import Answered, Question, Served, where
from bentos.summary import Summaries
from models.errors import GauntletError

if TYPE_CHECKING:
    from bentos.metrics import Route

log = logging.getLogger("gauntlet.service")

LARGE_AT_ONCE: Final = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of who asks.

    Attributes:
        trace: OpenTelemetry's trace id, 32 hex digits.
    """

    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers a POST.

    Attributes:
        model: Whose it is; "" where it is no single one's.
        route: Its name among the metrics.
        answer: From model, body and caller to a reply.
    """

    model: str
    route: "Route"
    answer: Callable[[str, bytes, Caller], Awaitable[Reply]]


class Desk:
    """Answers for the models of a fleet; one object a process."""

    def __init__(self, fleet: Fleet, predictions: PredictionLog | None = None) -> None:
        """Answer for these models, and keep what was answered in this log."""
        self.fleet = fleet
        self.predictions = predictions or PredictionLog()
        self._gate: CapacityLimiter | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self.gauges = Gauges()
        self._summaries = Summaries()

    def open(self, model: str, base: str) -> dict[str, Endpoint]:
        """Answer for a model under a path, "" or `/models/<name>`; what answers at which."""
        opened = {
            f"{base}/predict": Endpoint(model, "predict", self.predict),
            f"{base}/predict/batch": Endpoint(model, "batch", self.predict_batch),
            f"{base}/outcomes": Endpoint(model, "outcomes", self.outcomes),
        }
        self._endpoints |= opened
        return opened

    def endpoint(self, path: str) -> Endpoint | None:
        """What answers a POST to a path."""
        return self._endpoints.get(path)

    async def predict(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Answer one row."""
        return await self._guarded(model, body, caller, batch=False)

    async def predict_batch(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Answer many rows."""
        return await self._guarded(model, body, caller, batch=True)

    async def outcomes(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Keep what turned out to be true of predictions of a model."""
        del caller
        served: Served | None = None
        try:
            served = self.fleet.current(model) or await self._summoned(model)
            reply = await self._aside(partial(_record_outcomes, served, body))
        except Refused as refused:
            reply = refused.reply
        except GauntletError as error:
            log.error("outcomes cannot be kept: %s", error)
            reply = fault(503, "outcomes cannot be kept just now", "log_unavailable", retry_after=2)
        return replace(reply, version=served.version, variant=served.variant) if served else reply

    def models(self) -> Reply:
        """Which models are served, and what answers for each."""
        slots = sorted(self.fleet.health().items())
        return as_json({"models": [{"model": name, **_standing(slot)} for name, slot in slots]})

    async def health(self, model: str) -> Reply:
        """Which version of a model answers; one that left memory comes back for it."""
        try:
            served = await self._summoned(model)
        except Refused as refused:
            return refused.reply
        return as_json(
            {
                "status": "ok",
                "model": model,
                "version": served.version,
                "variant": served.variant,
                "since": served.since.isoformat(timespec="seconds"),
                "digest": served.release.digest,
                "log": "ok" if self.predictions.fault is None else "unavailable",
            }
        )

    async def summary(self, model: str, metric: str, hours: str | None) -> Reply:
        """What monitoring knows of a model, see `bentos.summary`."""
        return await self._summaries.reply(model, metric, hours)

    async def _guarded(self, model: str, body: bytes, caller: Caller, batch: bool) -> Reply:
        served: Served | None = None
        try:
            served = self.fleet.current(model) or await self._summoned(model)
            answered = await self._answered(served, body, batch)
            await self._keep(served, answered, caller, batch)
            return Reply(200, answered.body, None, "", served.version, served.variant, answered.rows)
        except Refused as refused:
            reply = refused.reply
        except Exception as error:
            # The message and the traceback of a library may hold values of the request.
            log.error("the model failed to answer: %s in %s", type(error).__name__, where(error))
            reply = fault(500, "the model failed to answer", "internal")
        return replace(reply, version=served.version, variant=served.variant) if served else reply

    async def _summoned(self, model: str) -> Served:
        try:
            return await self.fleet.summon(model)
        except GauntletError as error:
            log.error("%s cannot be brought back into memory: %s", model, error)
            said = "the model cannot be loaded just now"
            raise Refused(fault(503, said, "not_loaded", retry_after=5)) from None

    async def _answered(self, served: Served, body: bytes, batch: bool) -> Answered:
        if batch:
            return await self._aside(partial(_read_and_answer, served, body))
        question = served.ask(body, batch=False)
        # What takes its time does so in a thread, so that others are answered meanwhile.
        if question.request.explain is not None and not served.explains_quickly:
            return await self._aside(partial(served.answer, question))
        return served.answer(question)

    async def _keep(self, served: Served, answered: Answered, caller: Caller, batch: bool) -> None:
        """Have an answer in the log, durably, where its model wants that."""
        settings = served.release.config.serving.log
        if not is_sampled(answered.identity, settings.sample):
            return
        record = Record(
            answered.identity,
            answered.at,
            served.release.schema.model,
            served.version,
            served.variant,
            keyed(answered.entity) if answered.entity else None,
            caller.trace,
            answered.rows if batch else None,
            answered.record,
        )
        if settings.mode == "best_effort":
            self.predictions.offer(record)
            return
        try:
            await self.predictions.write(record)
        except LogUnavailable as error:
            metrics().log_failed(answered.rows)
            said = "the answer could not be logged, so it is not given"
            raise Refused(fault(503, said, "log_unavailable", retry_after=error.retry_after)) from None

    async def _aside(self, work: Callable[[], _T]) -> _T:
        self._gate = self._gate or CapacityLimiter(LARGE_AT_ONCE)
        return await to_thread.run_sync(work, limiter=self._gate)


def _read_and_answer(served: Served, body: bytes) -> Answered:
    question: Question = served.ask(body, batch=True)
    return served.answer(question)


def _record_outcomes(served: Served, body: bytes) -> Reply:
    from bentos.outcomes import OutcomesRequest, Value, record
    from stacks.ledger import database_url

    try:
        items = OutcomesRequest.model_validate_json(body).root
    except ValidationError as error:
        raise Refused(invalid(error)) from None
    own, labels = served.release.schema.model, served.release.schema.labels

    def acceptable(model: str, value: Value) -> bool:
        return model == own and (value in labels if labels else isinstance(value, float))

    report = record(database_url(), items, time.time(), acceptable)
    return as_json(json.loads(report.model_dump_json()))


def _standing(slot: Slot) -> dict[str, object]:
    """What answers for a model, and whether it is in memory."""
    if slot.refusal:
        return {"version": None, "resident": False}
    version = slot.current.version if slot.current else slot.crown.version if slot.crown else None
    return {"version": version, "resident": slot.current is not None}
