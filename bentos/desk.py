"""Where requests are answered: read, answered by the current version, durable in the log, and only then told."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from pydantic import ValidationError

from bentos.bodies import Bodies, holds_more
from bentos.fleet import Fleet, Slot
from bentos.gauges import Gauges
from bentos.metrics import metrics
from bentos.prediction_log import LogUnavailable, PredictionLog, Record, is_sampled, keyed
from bentos.reply import Refused, Reply, as_json, fault, invalid
from bentos.served import Answered, Served, where
from bentos.summary import Summaries
from models.errors import GauntletError

if TYPE_CHECKING:
    from bentos.metrics import Route

log = logging.getLogger("gauntlet.service")

LARGE_AT_ONCE: Final = 2
LARGE_WAITING: Final = 64
LARGE: Final = 256 * 2**10  # bytes of a body that are not read on the event loop
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
        self.bodies = Bodies()
        self._gate: CapacityLimiter | None = None
        self._large_ones = 0
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

    def asked(self, scope: MutableMapping[str, Any]) -> Endpoint | None:
        """What answers a request, where it is a POST to a model."""
        return self._endpoints.get(scope["path"]) if scope["method"] == "POST" else None

    async def predict(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Answer one row."""
        return await self._guarded(model, partial(self._predictions, body, caller, False))

    async def predict_batch(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Answer many rows."""
        return await self._guarded(model, partial(self._predictions, body, caller, True))

    async def outcomes(self, model: str, body: bytes, caller: Caller) -> Reply:
        """Keep what turned out to be true of predictions of a model."""
        del caller
        return await self._guarded(model, partial(self._outcomes, body))

    def models(self) -> Reply:
        """Which models are served, and what answers for each."""
        slots = sorted(self.fleet.health().items())
        return as_json({"models": [{"model": name, **_standing(slot)} for name, slot in slots]})

    def health(self, model: str) -> Reply:
        """Which version of a model answers; one that left memory stays out of it."""
        try:
            slot = self.fleet.slot(model)
        except Refused as refused:
            return refused.reply
        served, crown = slot.current, slot.crown
        log_state = "ok" if self.predictions.fault is None else "unavailable"
        told: dict[str, Any] = {"status": "ok", "model": model, "log": log_state}
        if served is None:
            assert crown is not None
            cold = {"version": crown.version, "variant": "champion", "since": None, "digest": None}
            return as_json(told | cold)
        since = served.since.isoformat(timespec="seconds")
        warm = {"version": served.version, "variant": served.variant, "since": since, "digest": served.release.digest}
        return as_json(told | warm)

    async def summary(self, model: str, metric: str, hours: str | None) -> Reply:
        """What monitoring knows of a model, see `bentos.summary`."""
        return await self._summaries.reply(model, metric, hours)

    async def _guarded(self, model: str, work: Callable[[Served], Awaitable[Reply]]) -> Reply:
        """Have a model's version answer; whatever happens, there is a reply."""
        served: Served | None = None
        try:
            served = self.fleet.current(model) or await self._summoned(model)
            reply = await work(served)
        except Refused as refused:
            reply = refused.reply
        except Exception as error:
            # The message and the traceback of a library may hold values of the request.
            log.error("the model failed to answer: %s in %s", type(error).__name__, where(error))
            reply = fault(500, "the model failed to answer", "internal")
        return replace(reply, version=served.version, variant=served.variant) if served else reply

    async def _predictions(self, body: bytes, caller: Caller, batch: bool, served: Served) -> Reply:
        answered = await self._answered(served, body, batch)
        await self._keep(served, answered, caller, batch)
        return Reply(200, answered.body, rows=answered.rows)

    async def _outcomes(self, body: bytes, served: Served) -> Reply:
        try:
            return await self._large(partial(_record_outcomes, served, body))
        except GauntletError as error:
            log.error("outcomes cannot be kept: %s", error)
            return fault(503, "outcomes cannot be kept just now", "log_unavailable", retry_after=2)

    async def _summoned(self, model: str) -> Served:
        try:
            return await self.fleet.summon(model)
        except GauntletError as error:
            log.error("%s cannot be brought back into memory: %s", model, error)
            said = "the model cannot be loaded just now"
            raise Refused(fault(503, said, "not_loaded", retry_after=5)) from None

    async def _answered(self, served: Served, body: bytes, batch: bool) -> Answered:
        # What takes its time does so in a thread, so that others are answered meanwhile.
        if batch or len(body) > LARGE:
            return await self._large(partial(_read_and_answer, served, body, batch))
        question = served.ask(body, batch=False)
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

    async def _large(self, work: Callable[[], _T]) -> _T:
        """Do in a thread what may take long; refused where so many wait that most would time out."""
        if self._large_ones >= LARGE_AT_ONCE + LARGE_WAITING:
            raise Refused(fault(503, "too many large requests at once; try again", "overloaded", retry_after=1))
        self._large_ones += 1
        try:
            return await self._aside(work)
        finally:
            self._large_ones -= 1

    async def _aside(self, work: Callable[[], _T]) -> _T:
        self._gate = self._gate or CapacityLimiter(LARGE_AT_ONCE)
        return await to_thread.run_sync(work, limiter=self._gate)


def _read_and_answer(served: Served, body: bytes, batch: bool) -> Answered:
    return served.answer(served.ask(body, batch))


def _record_outcomes(served: Served, body: bytes) -> Reply:
    from bentos.outcomes import MOST_ITEMS, OutcomesRequest, Value, record
    from stacks.ledger import database_url

    if holds_more(body, 8 * MOST_ITEMS):
        raise Refused(fault(413, f"the body holds more values than {MOST_ITEMS:,} outcomes", "too_many_values"))
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
