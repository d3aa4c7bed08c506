"""Servers that the tests of sources start."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.steps.website import Serve, website


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a web server that answers as a function says; it ends with the test."""
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(website(respond))
