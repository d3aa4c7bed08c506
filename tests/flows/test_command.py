"""The exit code that a command ends with, whatever Ctrl-C turned into on its way up."""

import os
import signal
import time
from collections.abc import Callable

import pytest
import typer

from flows.command import reported
from models.errors import ConfigError


def _pressed_and_lost() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        raise ConnectionError("the server went away") from None


def _broken() -> None:
    raise ConnectionError("the server went away")


def _misspelt() -> None:
    raise ConfigError("no model 'wien'")


def _pressed() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (lambda: None, 0, ""),
        (_broken, 1, "ConnectionError: the server went away (--debug shows the traceback)"),
        (_misspelt, 2, "no model 'wien'"),
        (_pressed, 130, "interrupted"),
        (_pressed_and_lost, 130, "interrupted"),
    ],
)
def test_exit_codes(work: Callable[[], None], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(typer.Exit) as end:
        reported(work)()
    assert end.value.exit_code == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert signal.getsignal(signal.SIGINT) is before
