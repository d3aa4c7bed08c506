"""Looks that find drift week after week, and what follows from them; run as a script, in a flow run of its own."""

import functools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow
from zenml import pipeline, step
from zenml.utils import source_utils

from flows.release import finished, output
from flows.retrain import act
from flows.run import own_error, use_prefect
from models.config import load_model
from stacks.findings import Finding, Findings, record_findings
from stacks.home import clone_dir, use_home
from stacks.ledger import open_ledger
from stacks.stack_file import ensure_active
from steps.caching import parameter
from steps.respond import respond

NOW = datetime(2026, 3, 2, 4, tzinfo=UTC)
WEEK = timedelta(days=7)


@step(enable_cache=False)
def find(model: str, week: int) -> Annotated[Findings, "findings"]:
    """Find drift in this week and in the one before."""
    version = open_ledger().champion(model)
    assert version is not None
    ends = [NOW + (week - 1) * WEEK, NOW + week * WEEK]
    plain: dict[str, Any] = {"model": model, "version": version, "check": "drift", "state": "found", "said": "age"}
    found = [Finding(since=end - WEEK, until=end, looked=end, **plain) for end in ends]
    record_findings(open_ledger(), found)
    return Findings(of=tuple(found))


@pipeline(enable_cache=False)
def look_pipeline(config: str, model: str, week: int) -> None:
    """As `monitor_pipeline`: findings, then the decision."""
    respond(config, find(model, week))


@flow(name="look")
def look(model: str, week: int) -> dict[str, Any]:
    """As the flow `monitor`: the pipeline, then what was decided is done."""
    ensure_active()
    source_utils.set_custom_source_root(str(clone_dir()))
    config = parameter(load_model(model).config.model_dump(mode="json"))
    response = output(finished(look_pipeline(config, model, week)), "respond").load()
    return {"response": response.model_dump(mode="json"), "done": act(config, response)}


def main(model: str, weeks: Sequence[int]) -> int:
    """Look in these weeks; prints what came of each, or the error, as a line of JSON."""
    with use_prefect(use_home(), "flows.retrain"):
        for week in weeks:
            try:
                told = own_error(functools.partial(look, model, week))
            except Exception as error:
                told = {"error": str(error), "kind": type(error).__name__}
            print(json.dumps(told))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [int(week) for week in sys.argv[2:]]))
