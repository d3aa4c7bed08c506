"""The service's routes as a FastAPI app, over whatever Release is loaded."""

import json
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from bentos.messages import Answer, BatchAnswer, Health, Refusal, Variant, requests_of, row_of
from bentos.release import Answers, Release, TooLarge
from bentos.schema import Schema
from models.errors import GauntletError

if TYPE_CHECKING:
    import pandas as pd

    from bentos.explain import Explainer

log = logging.getLogger("gauntlet.service")

MAX_BODY = 64 * 2**20
MAX_FAULTS = 20


@dataclass(frozen=True)
class Served:
    """A Release that answers, and as what; without an explainer it gives no explanations."""

    release: Release
    version: int
    variant: Variant
    since: datetime
    explainer: "Explainer | None" = None

    @classmethod
    def load(cls, release: Release, version: int, variant: Variant = "champion") -> "Served":
        """Build the pipeline and answer a golden row, so that the first request finds everything warm.

        Raises:
            WorkError: The Release cannot be loaded or its content is not what its digest says.
        """
        _ = release.digest
        served = cls(release, version, variant, datetime.now(UTC), _explainer(release, version))
        served.answer([list(row.inputs.values()) for row in release.golden[:1]], batch=False)
        return served

    def answer(self, rows: Sequence[Sequence[Any]], batch: bool, explain: int | None = None) -> list[dict[str, Any]]:
        """Answer rows whose values are in the order of the schema's inputs, with the `explain` largest effects.

        Raises:
            Unacceptable: A row is nothing that the model may be asked.
            Unexplained: Effects are asked for, and there is no explainer.
        """
        from bentos.inputs import examine, typed_rows

        if explain is not None and self.explainer is None:
            raise Unexplained
        inputs = self.release.schema.inputs
        typed = typed_rows(rows, inputs)
        if typed.problems:
            raise Unacceptable([(problem.first, problem.column, problem.reason) for problem in typed.problems])
        findings = examine(typed.frame, inputs)
        if refused := [(f.row, f.column, f.reason) for f in findings if f.rejected]:
            raise Unacceptable(refused)
        try:
            answers = self.release.answer(typed.frame)
        except TooLarge as error:
            raise Unacceptable([(error.row, "", "the values lead beyond what the model can compute with")]) from None
        flags: dict[int, list[dict[str, str]]] = {}
        for finding in findings:
            flags.setdefault(finding.row, []).append({"column": finding.column, "reason": finding.reason})
        identity = uuid.uuid4().hex
        told = self._told(answers)
        for row, answer in enumerate(told):
            answer["prediction_id"] = f"{identity}-{row}" if batch else identity
            answer["flags"] = flags.get(row, [])
        if explain is not None:
            for answer, why in zip(told, self._why(typed.frame, answers, explain), strict=True):
                answer.update(why)
        return told

    def _why(self, frame: "pd.DataFrame", answers: Answers, k: int) -> list[dict[str, Any]]:
        assert self.explainer is not None
        method, told = self.explainer.method, []
        for explanation in self.explainer.explain(frame, answers, k):
            contributions = [asdict(part) for part in explanation.contributions]
            for part in contributions:
                if part["tokens"] is None:
                    del part["tokens"]
            about: dict[str, Any] = {"label": explanation.label} if explanation.label is not None else {}
            about |= {"base": explanation.base, "output": explanation.output}
            about |= {"method": method.name, "scale": method.scale}
            told.append({"contributions": contributions, "explanation": about})
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


class Unacceptable(Exception):
    """Rows that the model may not be asked.

    Attributes:
        faults: Row, column ("" for the row itself) and reason.
    """

    def __init__(self, faults: Sequence[tuple[int, str, str]]) -> None:
        """Keep the faults; the message holds none of them."""
        super().__init__("the rows are not acceptable")
        self.faults = faults


class Unexplained(Exception):
    """The loaded Release gives no explanations."""


def new_app() -> FastAPI:
    """An app without routes; `add_model` gives it some, `app.state.served` is what answers."""
    app = FastAPI(title="Gauntlet", docs_url=None, redoc_url=None)
    app.state.served = None
    return app


def add_model(app: FastAPI, schema: Schema, max_batch: int) -> None:
    """Add the routes of one model, with its own input schema."""
    requests = requests_of(schema, max_batch)
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": Refusal, "description": text}
        for code, text in {
            401: "No key, or one that is unknown, expired or revoked.",
            403: "The key's role is another; or there is no key, and the client is on another machine.",
            413: f"More than {max_batch} rows, or more than {MAX_BODY // 2**20} MiB.",
            415: "The body is not application/json.",
            422: "A wrong type, an unknown or missing field, a value out of range.",
            429: "More requests than the key's rate; Retry-After says when.",
        }.items()
    }

    async def health() -> Response:
        served = _served(app)
        if served is None:
            return _fault(503, (), "no model is loaded yet", "not_ready")
        told = {
            "status": "ok",
            "model": served.release.schema.model,
            "version": served.version,
            "variant": served.variant,
            "since": served.since.isoformat(timespec="seconds"),
            "digest": served.release.digest,
        }
        return _json(told)

    async def predict(body: BaseModel) -> Response:
        return await _answered(app, [row_of(body.features)], "features", body.explain)  # type: ignore[attr-defined]

    async def predict_batch(body: BaseModel) -> Response:
        rows = [row_of(row) for row in body.instances]  # type: ignore[attr-defined]
        return await _answered(app, rows, "instances", body.explain)  # type: ignore[attr-defined]

    predict.__annotations__["body"] = requests.single
    predict_batch.__annotations__["body"] = requests.batch
    app.add_api_route("/health", health, response_model=Health, tags=["Gauntlet"])
    for path, endpoint, model in (
        ("/predict", predict, Answer),
        ("/predict/batch", predict_batch, BatchAnswer),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_model=model,
            response_model_exclude_none=True,
            responses=refusals,
            route_class_override=StrictJsonRoute,
            tags=["Gauntlet"],
        )
    app.openapi_schema = None


class StrictJsonRoute(APIRoute):
    """A route whose body is validated from the bytes, as strict JSON.

    FastAPI would parse with the standard library first (which takes NaN, and stops with a server error on numbers of
    5,000 digits and deep nesting) and would echo the input in its own 422.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler: media type, size, JSON, then the endpoint with the body's object."""
        assert self.body_field is not None
        adapter: TypeAdapter[Any] = TypeAdapter(self.body_field.field_info.annotation)
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json":
                return _fault(415, (), "send the body as Content-Type: application/json", "media_type")
            content = bytearray()
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    return _fault(413, (), f"the body is larger than {MAX_BODY // 2**20} MiB", "too_large")
            try:
                body = adapter.validate_json(bytes(content))
            except ValidationError as error:
                return _invalid(error)
            return cast(Response, await endpoint(body))

        return handle


def _served(app: FastAPI) -> Served | None:
    return cast(Served | None, app.state.served)


async def _answered(app: FastAPI, rows: Sequence[Sequence[Any]], field: str, explain: int | None) -> Response:
    served = _served(app)
    if served is None:
        return _fault(503, (), "no model is loaded yet", "not_ready")
    batch = field == "instances"
    try:
        # What takes its time does so in a thread, so that probes are answered meanwhile; one row is quicker without.
        if batch or explain is not None:
            answers = await to_thread.run_sync(served.answer, rows, batch, explain)
        else:
            answers = served.answer(rows, False)
    except Unexplained:
        return _fault(422, ("explain",), "this model's answers cannot be explained; ask without", "not_explainable")
    except Unacceptable as error:
        return _refusal([([field, row] if batch else [field], column, why) for row, column, why in error.faults])
    except Exception as error:
        # The message and the traceback of a library may hold values of the request.
        log.error("the model failed to answer: %s in %s", type(error).__name__, _where(error))
        return _fault(500, (), "the model failed to answer", "internal")
    return _json({"predictions": answers} if batch else answers[0])


def _explainer(release: Release, version: int) -> "Explainer | None":
    """None, with an error in the log, where the model's answers are no sum of effects: it serves all the same."""
    from bentos.explain import Explainer

    try:
        return Explainer.of(release)
    except Exception as error:
        why = str(error) if isinstance(error, GauntletError) else f"{type(error).__name__} in {_where(error)}"
        log.error("version %d of %s gives no explanations: %s", version, release.schema.model, why)
        return None


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"


def _invalid(error: ValidationError) -> Response:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    code = 413 if any(p["type"] == "too_long" and p["loc"] == ("instances",) for p in problems) else 422
    return _faults(code, [(p["loc"], p["msg"], p["type"]) for p in problems])


def _refusal(faults: Sequence[tuple[list[str | int], str, str]]) -> Response:
    return _faults(422, [((*path, *([column] if column else [])), why, "value") for path, column, why in faults])


def _fault(code: int, path: tuple[str | int, ...], reason: str, kind: str) -> Response:
    return _faults(code, [(path, reason, kind)])


def _faults(code: int, faults: Sequence[tuple[tuple[str | int, ...], str, str]]) -> Response:
    detail = [
        {"loc": ["body", *(part[:100] if isinstance(part, str) else part for part in path)], "msg": why, "type": kind}
        for path, why, kind in faults[:MAX_FAULTS]
    ]
    return _json({"detail": detail}, code)


def _json(data: Any, code: int = 200) -> Response:
    content = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(content.encode("utf-8", "replace"), code, media_type="application/json")
