"""What a script defines, without what it does."""

import sys
from pathlib import Path

import pytest

from stacks.orchestrator.script import Script

UNGUARDED = """
from __future__ import annotations
import json as codec
from pathlib import Path
SEEN = Path(__file__).with_name("seen")
LIMITS = {}
LIMITS["low"] = 1
BASE, TOP = 2, 3
TOP += 1

def helper(number: int) -> int:
    name = number
    return name * TOP + LIMITS["low"]

class Thing:
    base = BASE
    def value(self) -> int:
        return helper(self.base)

for name in ("a", "b"):
    SEEN.write_text(f"loop {name}")

print("top")
result = open(SEEN, "w").write("assigned")
answer = lambda: codec.loads("[4]")[0] + helper(1)
"""
GUARDED = """
REGISTRY = []
def register(function):
    REGISTRY.append(function.__name__)
    return function
register(print)

@register
def one():
    return len(REGISTRY)

if __name__ == "__main__" and REGISTRY:
    raise SystemExit("it ran")
else:
    OTHERWISE = True
"""


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Script:
    path = tmp_path / "user_script.py"
    path.write_text(request.param)
    return Script(path, None)


@pytest.mark.parametrize("script", [UNGUARDED], indirect=True)
def test_of_a_script_without_a_guard_only_what_is_asked_for_is_executed(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.Thing().value() == 2 * 4 + 1
    assert script.answer() == 4 + 4 + 1
    assert script.Thing.__module__ == "__main__"
    assert not (tmp_path / "seen").exists() and capsys.readouterr().out == ""
    assert "result" not in vars(script) and "SEEN" not in vars(script)
    with pytest.raises(AttributeError, match="'missing' is not defined at the top level"):
        _ = script.missing


@pytest.mark.parametrize("script", [GUARDED], indirect=True)
def test_a_script_with_a_guard_is_executed_without_what_it_keeps(script: Script) -> None:
    assert script.one() == 2
    assert script.OTHERWISE is True


PIPELINE = """
from zenml import pipeline, step

@step
def one() -> int:
    return run or 1

@pipeline
def whole():
    one()

run = whole()
"""


@pytest.mark.parametrize("script", [PIPELINE], indirect=True)
def test_a_pipeline_that_is_called_on_the_way_does_not_run(script: Script) -> None:
    assert script.one.entrypoint() == 1
    assert script.run is None


def test_there_may_be_no_script() -> None:
    with pytest.raises(AttributeError):
        _ = Script(None, None).anything
    assert not hasattr(Script(None, None), "__file__")
    assert "user_script" not in sys.modules
