"""A flow run that is cancelled while a command executes it comes to an end in Prefect's record."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run

from flows.cancelled import end_cancelled
from flows.run import use_prefect


@pytest.mark.parametrize("hooks", [[end_cancelled], []])
def test_a_cancelled_flow_run_ends_as_cancelled(hooks: list[object], home: Path) -> None:
    ids = []

    @flow(on_cancellation=hooks)
    def stopped() -> None:
        ids.append(flow_run.id)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(ids[0], State(type=StateType.CANCELLING))
        raise RuntimeError("stopped")

    with use_prefect(home):
        with pytest.raises(RuntimeError):
            stopped()
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(ids[0]).state
    assert state is not None
    # Without the hook Prefect calls it cancelling for ever: once it does not, the hook can go.
    assert state.type == (StateType.CANCELLED if hooks else StateType.CANCELLING)
