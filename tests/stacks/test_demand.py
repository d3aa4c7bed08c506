"""What a step asks for, in Dask's terms."""

import pytest
from zenml.config import ResourceSettings

from stacks.orchestrator.demand import demand, in_words, listed, unmet


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ResourceSettings(), {}),
        (ResourceSettings(cpu_count=0.5), {"CPU": 0.5}),
        (ResourceSettings(gpu_count=0, memory="2GB"), {"MEMORY": 2e9}),
        (ResourceSettings(cpu_count=2, gpu_count=1, memory="3GiB"), {"CPU": 2, "GPU": 1, "MEMORY": 3 * 2**30}),
    ],
)
def test_resource_settings_become_dask_resources(settings: ResourceSettings, expected: dict[str, float]) -> None:
    assert demand(settings) == expected


def test_what_no_single_worker_has_is_unmet() -> None:
    offers = {"large": {"CPU": 4.0}, "with-gpu": {"CPU": 1.0, "GPU": 1.0}}
    demands = {"any": {}, "four": {"CPU": 4.0}, "five": {"CPU": 5.0}, "both": {"CPU": 2.0, "GPU": 1.0}}
    assert unmet(demands, offers) == {"five": {"CPU": 5.0}, "both": {"CPU": 2.0, "GPU": 1.0}}
    assert unmet(demands, {}) == demands


def test_words_are_what_dask_s_command_takes_and_few() -> None:
    assert in_words({"MEMORY": 8e9, "CPU": 2.0}) == "CPU=2 MEMORY=8e+09" and in_words({}) == "none"
    text = listed({f"worker-{number}": {"CPU": 1.0} for number in range(2_000)})
    assert text.startswith("worker-0: CPU=1; worker-1: CPU=1") and text.endswith("(and 1995 more)") and len(text) < 200
