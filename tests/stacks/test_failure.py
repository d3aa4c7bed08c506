"""Failures that cross from one process to another as plain values."""

import json

import pytest

from models.errors import ConfigError, DataError
from stacks.orchestrator.failure import StepFailed, described, rebuilt


class Particular(Exception):
    """Wants what a description does not have, and says something else."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Worded(Exception):
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def crossed(error: BaseException) -> BaseException:
    """The error as the other side gets it: raised, described, through JSON, rebuilt."""
    try:
        raise error
    except BaseException as caught:
        return rebuilt(json.loads(json.dumps(described(caught))))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such luck"),
        KeyError("column"),
        OSError(2, "No such file"),
        Worded("wine", "corked"),
        DataError("the file is empty"),
        KeyboardInterrupt(),
    ],
)
def test_it_is_of_the_same_class_says_the_same_and_tells_where_it_was_raised(error: BaseException) -> None:
    again = crossed(error)
    assert type(again) is type(error) and str(again) == str(error)
    assert "in crossed" in again.__notes__[0]


def test_what_cannot_be_rebuilt_is_a_failed_step_that_names_it() -> None:
    again = crossed(Particular(code=3))
    assert type(again) is StepFailed and str(again) == "Particular: code 3"
    again = crossed(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    assert type(again) is StepFailed and "invalid start byte" in str(again)
    unknown = {**described(DataError("gone")), "module": "never.imported"}
    assert str(rebuilt(unknown)) == "DataError: gone"
    assert "never" not in __import__("sys").modules


def test_the_class_that_a_command_s_exit_code_goes_by_is_found_behind_others() -> None:
    error = RuntimeError("the step failed")
    error.__cause__ = ConfigError("unknown metric")
    again = crossed(error)
    assert isinstance(again.__cause__, ConfigError) and again.__cause__.exit_code == 2
    try:
        try:
            raise DataError("the file is empty")
        except DataError:
            raise TypeError("while handling it")  # noqa: B904
    except TypeError as caught:
        assert isinstance(rebuilt(described(caught)).__cause__, DataError)


def test_a_description_is_bounded() -> None:
    error = ValueError("x" * 10_000_000)
    deep: BaseException = error
    for _ in range(50):
        deep.__cause__ = ValueError("deeper")
        deep = deep.__cause__
    assert len(json.dumps(described(error))) < 3_000_000
