"""A flow that is cancelled while a command of ours executes it, not a worker: Prefect leaves it `Cancelling`."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.states import Cancelled


def end_cancelled(flow: Any, flow_run: Any, state: Any) -> None:  # noqa: ARG001
    """Give a cancelled flow run its final state, as a worker does for what it started; a hook `on_cancellation`."""
    if flow_run.deployment_id is None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message="Stopped while it was executed."), force=True)
