"""A model whose rows do not fit into memory: what is said, and what else is left as it is."""

import numpy as np
import pytest

from flows.train import fitting
from models.errors import DataError, WorkError
from stacks.orchestrator.failure import described, rebuilt


def test_rows_that_do_not_fit_lead_to_dask() -> None:
    said = r"'loans': its rows do not fit .* set `compute: dask` in models/loans\.yaml"
    with pytest.raises(WorkError, match=said), fitting("loans"):
        np.ones(1 << 50)


def test_a_step_that_had_too_little_memory_in_a_process_of_its_own_is_known() -> None:
    with pytest.raises(MemoryError) as raised:
        np.ones(1 << 50)
    with pytest.raises(WorkError, match="do not fit"), fitting("loans"):
        raise rebuilt(described(raised.value))


def test_another_failure_is_left_as_it_is() -> None:
    with pytest.raises(DataError, match="no rows"), fitting("loans"):
        raise DataError("no rows")
