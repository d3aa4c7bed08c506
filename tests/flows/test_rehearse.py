"""`make rehearse`, once: the cloud stack with every back end real."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.backends import missing_programs
from flows.rehearse import STEPS, Door
from models.errors import WorkError

ROOT = Path(__file__).parents[2]


def _knocked(secret: str, refusal: Exception | None) -> Callable[[str], None]:
    def knock(word: str) -> None:
        if word != secret and refusal:
            raise refusal

    return knock


def test_a_door_is_closed_to_a_wrong_password_only() -> None:
    refusal = PermissionError("wrong password")
    Door("store", _knocked("right", refusal), "right", "wrong password").check()
    with pytest.raises(WorkError, match="store let somebody in"):
        Door("store", _knocked("right", None), "right", "wrong password").check()
    # Nobody is there to refuse.
    with pytest.raises(WorkError, match="does not refuse a wrong password, it fails: OSError"):
        Door("store", _knocked("right", OSError("nobody answers")), "right", "wrong password").check()
    with pytest.raises(PermissionError):
        Door("store", _knocked("right", refusal), "another", "wrong password").check()


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_the_cloud_stack_is_rehearsed(proof: Callable[[str, object, str], None]) -> None:
    if (missing := missing_programs()) and os.environ.get("GAUNTLET_REQUIRE_SERVICES") != "1":
        pytest.skip(f"programs of {', '.join(missing)} are missing")
    state = ROOT / ".gauntlet" / "gauntlet.db"
    before = state.stat().st_mtime_ns if state.exists() else None
    done = subprocess.run([sys.executable, "-m", "flows.rehearse"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = [line.removeprefix("✓ ").split(":")[0] for line in done.stdout.splitlines() if line.startswith("✓ ")]
    assert told == ["back ends", *STEPS]
    assert (state.stat().st_mtime_ns if state.exists() else None) == before
    seen = dict(zip(told, done.stdout.splitlines(), strict=True))
    proof(
        "the cloud stack rehearsed on the loopback, real back ends with sign-in",
        len(STEPS),
        seen["cloud run"][2:],
    )
