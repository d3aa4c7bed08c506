"""The service's routes as a FastAPI app: each model's own schema in OpenAPI, over whatever versions are current."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from fastapi import FastAPI, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from bentos.bodies import MAX_BODY
from bentos.desk import Desk, Endpoint
from bentos.front import answer
from bentos.messages import Answer, BatchAnswer, Health, Models, Refusal, requests_of
from bentos.metrics import Route
from bentos.outcomes import MOST_ITEMS, OutcomesRequest, Report
from bentos.release import Release
from bentos.reply import Reply
from bentos.summary import HOURS, MOST_HOURS, Summary

_MADE: Final = "A key made by `gauntlet key add`; while there is none, clients on the service's machine need none."
# They are described here, and judged before a request comes here, by `bentos.access`.
_KEYS: Final = (
    Security(HTTPBearer(scheme_name="bearer", description=_MADE, auto_error=False)),
    Security(APIKeyHeader(name="X-API-Key", scheme_name="header", description=_MADE, auto_error=False)),
)
# Read by us: FastAPI's own 422 would repeat the value.
_SUMMARY_HOURS: Final[dict[str, Any]] = {
    "name": "hours",
    "in": "query",
    "required": False,
    "description": "How far back answers and outcomes are counted.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST_HOURS, "default": HOURS},
}
_NO_KEY: Final[dict[str, Any]] = {"security": [{}]}


def new_app(desk: Desk) -> FastAPI:
    """An app with the routes that concern no single model; `add_model` gives it more."""
    app = FastAPI(title="Gauntlet", docs_url=None, redoc_url=None, dependencies=_KEYS)
    app.state.desk = desk

    async def models() -> Response:
        return _response(desk.models())

    same: dict[str, Any] = {"tags": ["Gauntlet"], "openapi_extra": _NO_KEY}
    app.add_api_route("/models", models, response_model=Models, responses=_refusals(), **same)
    return app


def add_model(app: FastAPI, release: Release, at_root: bool) -> None:
    """Add the routes of one model with its own input schema, or renew them, see `describe_model`."""
    describe_model(app, release, at_root)()


def describe_model(app: FastAPI, release: Release, at_root: bool) -> Callable[[], None]:
    """Make the routes of one model with its own input schema, which takes its time.

    Args:
        app: What `new_app` made.
        release: Whose schema it is.
        at_root: Whether it is the only one that this service is for: its routes then lie at the root, and not below
            `/models/<name>`.

    Returns:
        What adds them, or puts them into the place of those that the model has; at once, and more than once.
    """
    desk: Desk = app.state.desk
    model, most = release.schema.model, release.config.serving.max_batch
    base = base_of(model, at_root)
    requests = requests_of(release.schema, most)
    bodies: dict[Route, tuple[Any, Any, int]] = {
        "predict": (requests.single, Answer, 1),
        "batch": (requests.batch, BatchAnswer, most),
        "outcomes": (OutcomesRequest, Report, MOST_ITEMS),
    }

    async def health() -> Response:
        return _response(desk.health(model))

    fresh = FastAPI(dependencies=_KEYS)
    same: dict[str, Any] = {"tags": ["Gauntlet" if at_root else model], "openapi_extra": _NO_KEY}
    name = f"health_{model}"
    fresh.add_api_route(f"{base}/health", health, response_model=Health, responses=_refusals(), name=name, **same)
    metric = release.config.metric

    async def summary(request: Request) -> Response:
        return _response(await desk.summary(model, metric, request.query_params.get("hours")))

    fresh.add_api_route(
        f"{base}/monitoring/summary",
        summary,
        response_model=Summary,
        responses=_refusals() | _refusal(422, "`hours` is none of 1 to 8,760."),
        name=f"summary_{model}",
        **(same | {"openapi_extra": _NO_KEY | {"parameters": [_SUMMARY_HOURS]}}),
    )
    for path, endpoint in desk.open(model, base).items():
        asked, told, most_rows = bodies[endpoint.route]
        fresh.router.add_api_route(
            path,
            _reading(desk, endpoint, asked),
            methods=["POST"],
            response_model=told,
            response_model_exclude_none=True,
            responses=_refusals(most_rows),
            route_class_override=UnparsedRoute,
            name=f"{endpoint.route}_{model}",
            **same,
        )
    made = [route for route in fresh.routes if isinstance(route, APIRoute)]
    paths = {route.path for route in made}

    def show() -> None:
        # In one assignment: requests are routed meanwhile.
        app.router.routes = [r for r in app.router.routes if getattr(r, "path", None) not in paths] + [*made]
        app.openapi_schema = None

    return show


def base_of(model: str, at_root: bool) -> str:
    """The path that the routes of a model lie below."""
    return "" if at_root else f"/models/{model}"


def _reading(desk: Desk, endpoint: Endpoint, asked: Any) -> Callable[..., Awaitable[Response]]:
    """A function that FastAPI describes by the class of its body, which it reads itself."""

    async def read(body: BaseModel, request: Request) -> Response:
        del body
        return _response(await answer(desk, endpoint, request.scope, request.receive))

    read.__annotations__["body"] = asked
    return read


class UnparsedRoute(APIRoute):
    """A route that is described by FastAPI and reads its body itself."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint with the request."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(None, request)
            return response

        return handle


def _refusals(most_rows: int | None = None) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead, by status; `most_rows` is of one that reads a body."""
    told = {
        401: "No key, or one that is unknown, expired or revoked.",
        403: "The key's role is another; or there is no key, and the client is on another machine.",
        429: "More requests than the key's rate; Retry-After says when.",
        503: "No version answers just now, or the answer could not be logged; Retry-After says when to ask again.",
    }
    if most_rows is not None:
        told |= {
            408: "The body did not arrive in time.",
            413: f"More than {MAX_BODY // 2**20} MiB, or more rows than {most_rows}.",
            415: "The body is not application/json.",
            422: "A wrong type, an unknown or missing field, a value out of range.",
        }
    return {code: refusal for each in sorted(told) for code, refusal in _refusal(each, told[each]).items()}


def _refusal(status: int, description: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refusal, "description": description}}


def _response(reply: Reply) -> Response:
    headers = {name.decode(): value.decode() for name, value in reply.headers()}
    return Response(reply.body, reply.status, headers)
