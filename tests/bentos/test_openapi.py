"""What the OpenAPI of every model promises, against cases that Schemathesis makes from it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, CheckFunction, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from bentos.quick import EVIDENCE
from models.config import Family, model_names
from tests.bentos.samples import client_of, write

Calls = Counter[tuple[str, int]]

FAMILIES: Final[Mapping[str, Family]] = {
    "heart_disease": "xgboost",
    "houses": "linear_regression",
    "obesity": "random_forest",
    "obesity_habits": "xgboost",
    "personality": "logistic_regression",
    "pipeline_errors": "logistic_regression",
    "wine": "random_forest",
}
CHECKS: Final[list[CheckFunction]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CONFIG: Final = schemathesis.Config.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": [413, 422]}}}
)
MARK: Final = "Zq7-private"
OPERATIONS: Final = {
    *("GET /health", "GET /models", "GET /monitoring/summary"),
    *("POST /outcomes", "POST /predict", "POST /predict/batch"),
}


@pytest.fixture(scope="module")
def schema_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """The OpenAPI of a model's service, ready to be asked; each has a home of its own, without keys."""
    folder = tmp_path_factory.mktemp("openapi")

    with pytest.MonkeyPatch.context() as patch:

        def schema(model: str) -> Any:
            patch.setenv("GAUNTLET_HOME", str(folder / model))
            release = write(folder / model / "release", model, FAMILIES[model], evidence={EVIDENCE: {"used": True}})
            front: Any = client_of(release).app

            async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
                await front({**scope, "client": ("127.0.0.1", 50_000)}, receive, send)

            return schemathesis.openapi.from_asgi("/openapi.json", app, config=CONFIG)

        yield schema


def test_every_model_is_asked() -> None:
    assert set(FAMILIES) == {*model_names(), "houses"}


@pytest.mark.parametrize("model", FAMILIES)
def test_a_service_keeps_to_its_openapi(model: str, schema_of: Callable[[str], Any]) -> None:
    calls = _ask_all(schema_of(model), 12)
    assert calls.total() >= 100


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_every_service_keeps_to_its_openapi(
    schema_of: Callable[[str], Any], proof: Callable[[str, object, str], None]
) -> None:
    calls = sum((_ask_all(schema_of(model), 36) for model in FAMILIES), Calls())
    assert calls.total() >= 2_000
    told = ", ".join(f"{count:,} x {status}" for status, count in sorted(_by_status(calls).items()))
    line = "cases of Schemathesis over the OpenAPI of every model: no 5xx, every answer as it is described"
    proof(line, f"{calls.total():,}", told)


def _ask_all(schema: Any, cases: int) -> Calls:
    """Ask every operation with `cases` cases of each kind: as described, otherwise, and with a marked value."""
    calls = Calls()
    for found in schema.get_all_operations():
        operation = found.ok()
        good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        _ask(good, cases, calls, _accepts_the_form)
        if operation.method == "post":
            _ask(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), cases, calls, negative_data_rejection)
            _ask(st.builds(_marked, good, st.integers(0, 999)), cases, calls, _keeps_the_value)
    assert {label for label, _ in calls} == OPERATIONS
    assert {label for label, status in calls if status == 200} == OPERATIONS
    assert {label for label, status in calls if status == 422} == {name for name in OPERATIONS if "POST" in name}
    return calls


def _accepts_the_form(context: Any, response: Response, case: Case) -> None:
    """What is as described is refused for a value only: a date or a number too large, a blank text.

    And for 5.0 effects: to JSON Schema that is an integer.
    """
    if response.status_code == 422:
        explain = case.body.get("explain") if isinstance(case.body, dict) else None
        allowed = {"value", "explain"} if isinstance(explain, float) else {"value"}
        assert {fault["type"] for fault in response.json()["detail"]} <= allowed


def _keeps_the_value(context: Any, response: Response, case: Case) -> None:
    assert response.status_code == 200 or MARK not in response.text


def _ask(cases: Any, count: int, calls: Calls, check: CheckFunction) -> None:
    """Ask with so many cases, the same ones every time."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Case) -> None:
        response = case.call()
        case.validate_response(response, checks=[*CHECKS, check])
        calls[case.operation.label, response.status_code] += 1

    ask()


def _marked(case: Case, place: int) -> Case:
    """The same case with a marked text instead of one of the values in its body."""
    paths = list(_paths(case.body))
    body = inner = json.loads(json.dumps(case.body))
    *way, last = paths[place % len(paths)]
    for step in way:
        inner = inner[step]
    inner[last] = MARK
    case.body = body
    return case


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where the values of a body are; what is empty counts as one."""
    inside = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}
    if not inside:
        yield ()
    for key, below in inside.items():
        yield from ((key, *path) for path in _paths(below))


def _by_status(calls: Calls) -> Counter[int]:
    told: Counter[int] = Counter()
    for (_, status), count in calls.items():
        told[status] += count
    return told
