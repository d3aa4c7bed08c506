"""A lane of `gauntlet run --all` that also writes down how long each step function took, for `benchmarks.hundred`."""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from zenml.steps.base_step import BaseStep

from flows import lane

FIGURES = "GAUNTLET_BENCH_STEPS"


def timed(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    """`function`, which then writes a JSON line with its wall and CPU seconds; `name` says what it was for."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            figures = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
            with Path(os.environ[FIGURES]).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"of": name(*args), **figures}) + "\n")

    return call


if __name__ == "__main__":
    BaseStep.call_entrypoint = timed(BaseStep.call_entrypoint, lambda step: step.name)
    lane.train_one = timed(lane.train_one, lambda *_: "model")
    sys.exit(lane.main())
