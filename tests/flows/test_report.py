"""`gauntlet report`: what it refuses, and with which exit code."""

from collections.abc import Sequence

import pytest

from tests.flows.conftest import Invoke


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["wien"], 2, "unknown model 'wien'; did you mean 'wine'?"),
        (["wine", "--versions", "1,2,3"], 2, "give one version or two, for example --versions 3,4"),
        (["wine", "--versions", "one"], 2, "give one version or two"),
        (["wine", "--format", "pdf"], 2, "--format 'pdf': unknown (there is: md, html)"),
        (["wine"], 1, "no version of 'wine' was ever judged; `gauntlet run wine` trains and judges one"),
        (["wine", "--versions", "v3"], 1, "v3 of 'wine' was never judged (there is: no judged version)"),
    ],
)
def test_what_cannot_be_reported_is_refused(invoke: Invoke, arguments: Sequence[str], code: int, said: str) -> None:
    done = invoke(["report", *arguments])
    assert done.code == code
    assert done.json is not None and said in done.json["error"]


def test_the_gate_table_has_margin_and_reason_and_calls_a_warning_so(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.gates import print_gates

    common = {"value": 0.4, "threshold": 0.3, "margin": -0.1}
    print_gates(
        [
            {**common, "name": "drift", "blocking": False, "verdict": "failed", "reason": "too far"},
            {**common, "name": "floor", "blocking": True, "verdict": "failed", "reason": "too low"},
            {"name": "first", "value": None, "threshold": None, "margin": None}
            | {"blocking": True, "verdict": "skipped", "reason": "no [champion]"},
        ]
    )
    head, *rows = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [cell.strip() for cell in head] == ["gate", "value", "threshold", "margin", "verdict", "reason"]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["drift", "0.4", "0.3", "-0.1", "warning", "too far"],
        ["floor", "0.4", "0.3", "-0.1", "failed", "too low"],
        ["first", "skipped", "no", "[champion]"],
    ]
