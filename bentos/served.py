"""One Release that answers: from the bytes of a request to the bytes of its answer and of its record in the log."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from bentos.bodies import holds_more
from bentos.messages import Requests, Variant, requests_of, row_of
from bentos.prediction_log import new_id
from bentos.release import Answers, Golden, Release, TooLarge
from bentos.reply import Refused, fault, faults, invalid
from bentos.wire import Request, Teller, Wire, batch_record, single_record
from models.errors import GauntletError, WorkError

if TYPE_CHECKING:
    import numpy as np

    from bentos.explain import Explainer
    from bentos.quick import Quick

log = logging.getLogger("gauntlet.service")

TOLERANCE: Final = 1e-6
_VALUES_BESIDES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Question:
    """A request that was read.

    Attributes:
        request: What it says.
        batch: Whether rows were asked as a batch, even of one.
    """

    request: Request
    batch: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request was answered with.

    Attributes:
        identity: The prediction's id, or the batch's.
        at: When, in seconds since 1970.
        rows: How many.
        entity: Whom it is about, where that was said.
        body: The answer.
        record: Inputs and answers, for the log.
    """

    identity: str
    at: float
    rows: int
    entity: str | None
    body: bytes
    record: bytes


@dataclass(frozen=True)
class Served:
    """A Release that answers, and as what.

    Attributes:
        release: The Release.
        version: Its number.
        variant: As what it answers.
        since: When this process began to serve it.
        wire: Reads plain requests; None where msgspec cannot name the columns.
        teller: Writes answers without flags.
        quick: Answers plain rows; None where the fitted pipeline answers all.
        explainer: Tells effects; None where the answers are no sum of any.
    """

    release: Release
    version: int
    variant: Variant
    since: datetime
    wire: Wire | None
    teller: Teller
    quick: "Quick | None"
    explainer: "Explainer | None"

    @classmethod
    def load(cls, release: Release, version: int, variant: Variant = "champion") -> "Served":
        """Build the pipeline and have it answer its golden inputs, so that the first request finds everything warm.

        Raises:
            WorkError: The Release cannot be loaded, is not what its digest says, or answers otherwise than it did.
        """
        from bentos.quick import Quick

        _ = release.digest
        served = cls(
            release,
            version,
            variant,
            datetime.now(UTC),
            Wire.of(release.schema, release.config.serving.max_batch),
            Teller.of(release, version, variant),
            Quick.of(release),
            _explainer(release, version),
        )
        served._require_golden()
        return served

    def from_now(self) -> "Served":
        """The same, serving since now."""
        return replace(self, since=datetime.now(UTC))

    @property
    def explains_quickly(self) -> bool:
        """Whether one explained answer takes a millisecond and not many."""
        return self.explainer is not None and self.release.family != "random_forest"

    @cached_property
    def requests(self) -> Requests:
        """The request classes of the model."""
        return requests_of(self.release.schema, self.release.config.serving.max_batch)

    def ask(self, body: bytes, batch: bool) -> Question:
        """Read a request.

        Raises:
            Refused: It is none that this model takes.
        """
        request = None
        if batch:
            self._require_few(body, batch)
        if self.wire is not None:
            request = self.wire.batch(body) if batch else self.wire.single(body)
        return Question(request or self._carefully(body, batch), batch)

    def answer(self, question: Question) -> Answered:
        """Answer what was asked.

        Raises:
            Refused: A row is nothing that the model may be asked, or its answers cannot be explained.
        """
        request, at = question.request, time.time()
        if request.explain is not None:
            self._require_explainable(len(request.rows))
        identity = new_id(at)
        prepared = self.quick.prepare(request.rows) if self.quick else None
        if prepared is None:
            told = _json(self._answers(question, identity))
        else:
            told = self._quickly(question, identity, prepared)
        if question.batch:
            body, record = b'{"predictions":%b}' % told, batch_record(self._columns, request.rows, told, request.at)
            return Answered(identity, at, len(request.rows), request.entity, body, record)
        told = told[1:-1]
        return Answered(identity, at, 1, request.entity, told, single_record(self._columns, request, told))

    def _require_explainable(self, rows: int) -> None:
        if self.explainer is None:
            why = "this model's answers cannot be explained; ask without"
            raise Refused(fault(422, why, "not_explainable", ("explain",)))
        if rows > self.explainer.most_rows:
            why = f"of this model, at most {self.explainer.most_rows} rows of one request are explained"
            raise Refused(fault(422, why, "too_many_explained", ("explain",)))

    def _require_few(self, body: bytes, batch: bool) -> None:
        """Refuse a body that holds twice as much as any request that can be answered, before it is parsed."""
        rows = self.release.config.serving.max_batch if batch else 1
        if holds_more(body, 2 * rows * (len(self._columns) + 1) + _VALUES_BESIDES):
            why = f"the body holds more values than {rows} row{'s' if batch else ''} of this model"
            raise Refused(fault(413 if batch else 422, why, "too_many_values"))

    def _carefully(self, body: bytes, batch: bool) -> Request:
        self._require_few(body, batch)
        try:
            read = (self._batch if batch else self._single).validate_json(body)
        except ValidationError as error:
            raise Refused(invalid(error)) from None
        rows = [tuple(row_of(row)) for row in (read.instances if batch else [read.features])]
        return Request(rows, read.explain, read.entity, read.at)

    def _quickly(self, question: Question, identity: str, prepared: "np.ndarray[Any, Any]") -> bytes:
        """JSON of the list of answers to rows that nothing is unusual about."""
        assert self.quick is not None
        request, answers = question.request, self.quick.answers(prepared)
        whys = None
        if request.explain is not None:
            assert self.explainer is not None
            plain = self.quick.plain(request.rows)
            whys = self.explainer.told(self.explainer.explain_prepared(prepared, plain, answers, request.explain))
        if question.batch:
            return self.teller.answers(answers, identity, whys)
        return b"[%b]" % self.teller.answer(answers, identity, whys[0] if whys else None)

    def _answers(self, question: Question, identity: str) -> list[dict[str, Any]]:
        """Answers of the fitted pipeline, whatever the rows are."""
        from bentos.inputs import examine, typed_rows

        inputs, request = self.release.schema.inputs, question.request
        typed = typed_rows(request.rows, inputs)
        if typed.problems:
            raise _unacceptable(
                question, [(problem.first, problem.column, problem.reason) for problem in typed.problems]
            )
        findings = examine(typed.frame, inputs)
        if refused := [(f.row, f.column, f.reason) for f in findings if f.rejected]:
            raise _unacceptable(question, refused)
        try:
            answers = self.release.answer(typed.frame)
        except TooLarge as error:
            reason = "the values lead beyond what the model can compute with"
            raise _unacceptable(question, [(error.row, "", reason)]) from None
        flags: dict[int, list[dict[str, str]]] = {}
        for finding in findings:
            flags.setdefault(finding.row, []).append({"column": finding.column, "reason": finding.reason})
        told = self._told(answers)
        for row, answer in enumerate(told):
            answer["prediction_id"] = f"{identity}-{row}" if question.batch else identity
            answer["flags"] = flags.get(row, [])
        if request.explain is not None:
            assert self.explainer is not None
            whys = self.explainer.told(self.explainer.explain(typed.frame, answers, request.explain))
            for answer, why in zip(told, whys, strict=True):
                answer.update(why)
        return told

    def _told(self, answers: Answers) -> list[dict[str, Any]]:
        release, labels = self.release, self.release.schema.labels
        same = {"model": release.schema.model, "version": self.version, "variant": self.variant}
        if answers.probabilities is None:
            return [{"prediction": value, **same} for value in answers.values.tolist()]
        levels = release.config.serving.risk
        told = []
        for value, shares in zip(answers.told.tolist(), answers.probabilities.tolist(), strict=True):
            probability = shares[-1] if len(labels) == 2 else max(shares)
            answer = {"prediction": value, "probability": probability}
            if answers.abstained is not None:
                answer["abstained"] = value is None
            answer["probabilities"] = dict(zip(labels, shares, strict=True))
            if levels:
                answer["risk"] = [level for level, start in levels.items() if probability >= start][-1]
            told.append(answer | same)
        return told

    @cached_property
    def _columns(self) -> tuple[str, ...]:
        return tuple(self.release.schema.inputs)

    @cached_property
    def _single(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.requests.single)

    @cached_property
    def _batch(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.requests.batch)

    def _require_golden(self) -> None:
        """Answer the golden inputs by the way that requests go, and compare.

        Raises:
            WorkError: An answer is another one.
        """
        rows: list[tuple[Any, ...]] = [tuple(row.inputs.values()) for row in self.release.golden]
        singles = rows if self.quick else rows[:1]
        questions = [Question(Request(rows, None, None, None), batch=True)]
        questions += [Question(Request([row], None, None, None), batch=False) for row in singles]
        try:
            told = [json.loads(self.answer(question).body) for question in questions]
        except Refused:
            raise WorkError(f"version {self.version} of {self._name} refuses its own golden inputs") from None
        for answer, expected in zip([*told[0]["predictions"], *told[1:]], 2 * self.release.golden, strict=False):
            if not _close(answer, expected, self.release.schema.labels):
                raise WorkError(
                    f"the Release of {self._name} answers its golden inputs otherwise than when it was written: "
                    "this environment's packages compute something else; serve with those of the Bento"
                )

    @property
    def _name(self) -> str:
        return self.release.schema.model


def _close(answer: Mapping[str, Any], expected: Golden, labels: Sequence[str]) -> bool:
    given = [answer["probabilities"][label] for label in labels] if labels else [answer["prediction"]]
    wanted: Sequence[Any] = (expected.probabilities or ()) if labels else (expected.prediction,)
    pairs = zip(given, wanted, strict=True)
    return all(abs(one - other) <= TOLERANCE * max(1.0, abs(other)) for one, other in pairs)


def _unacceptable(question: Question, found: Sequence[tuple[int, str, str]]) -> Refused:
    """Refuse rows for what is wrong with them: row, column ("" for the row itself) and reason."""

    def path(row: int, column: str) -> list[str | int]:
        return [*(["instances", row] if question.batch else ["features"]), *([column] if column else [])]

    return Refused(faults(422, [(path(row, column), why, "value") for row, column, why in found]))


def _explainer(release: Release, version: int) -> "Explainer | None":
    """None, with an error in the log, where the model's answers are no sum of effects: it serves all the same."""
    from bentos.explain import Explainer

    try:
        return Explainer.of(release)
    except Exception as error:
        why = str(error) if isinstance(error, GauntletError) else f"{type(error).__name__} in {where(error)}"
        log.error("version %d of %s gives no explanations: %s", version, release.schema.model, why)
        return None


def where(error: BaseException) -> str:
    """The place in the code that an error comes from; its text may hold values of a request."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"


def _json(data: Any) -> bytes:
    content = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return content.encode("utf-8", "replace")
