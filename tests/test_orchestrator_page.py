"""docs/orchestrator.md: its tables are the flavor's, and its commands make a stack that runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic.fields import FieldInfo
from zenml import pipeline, step
from zenml.cli.cli import cli
from zenml.client import Client
from zenml.enums import ExecutionStatus

from stacks.orchestrator.flavor import PrefectOrchestratorConfig, PrefectOrchestratorSettings
from stacks.orchestrator.outcome import NAMED, STATUS
from stacks.stack_file import ensure_active

PAGE = (Path(__file__).parents[1] / "docs" / "orchestrator.md").read_text()


def rows(fields: dict[str, FieldInfo]) -> list[str]:
    """Lines of a table of settings."""
    found = []
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), {}) else f"`{default}`"
        found.append(f"| `{name}` | {shown} | {field.description} |")
    return found


def test_the_tables_of_settings_are_the_flavors() -> None:
    settings = PrefectOrchestratorSettings.model_fields
    own = {name: field for name, field in PrefectOrchestratorConfig.model_fields.items() if name not in settings}
    tables = re.findall(r"\| key \| default \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert [table.splitlines() for table in tables] == [rows(own), rows(settings)]


def test_every_status_is_on_the_page() -> None:
    (table,) = re.findall(r"\| Prefect \| ZenML \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    assert {str(status) for status in [*STATUS.values(), *NAMED.values()]} == set(re.findall(r"`([a-z]+)`", table))


@pytest.fixture
def before(home: Path) -> Iterator[None]:
    ensure_active()
    was = Client().active_stack_model.id
    yield
    Client().activate_stack(was)


@step
def one() -> int:
    return 1


@pipeline(enable_cache=False)
def on_the_page() -> None:
    one()


def test_the_commands_of_the_page_make_a_stack_that_runs(before: None) -> None:
    register, *others = re.findall(r"```bash\n(.*?)```", PAGE, re.S)[0].splitlines()
    # The flavor of the home's own stacks is the same one, and ZenML takes a name once.
    known = Client().get_flavor_by_name_and_type("prefect", "orchestrator")
    assert register == f"zenml orchestrator flavor register {known.source}"
    for line in others:
        done = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output[-1000:]} {done.exception}"
    stack = Client().active_stack
    assert stack.name == "prefect" and stack.orchestrator.config.max_parallel == 4  # type: ignore[attr-defined]
    assert on_the_page().status == ExecutionStatus.COMPLETED
