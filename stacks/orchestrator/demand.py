"""What a step asks for of a machine, in Dask's terms, and whether any worker can ever give it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zenml.config import ResourceSettings

SHOWN = 5


def demand(settings: "ResourceSettings") -> dict[str, float]:
    """Dask resources that a step needs: `CPU` and `GPU` in units, `MEMORY` in bytes; only what it asks for."""
    memory = settings.get_memory(unit="B") if settings.memory else None
    asked = {"CPU": settings.cpu_count, "GPU": settings.gpu_count, "MEMORY": memory}
    return {name: float(amount) for name, amount in asked.items() if amount}


def unmet(
    demands: Mapping[str, Mapping[str, float]], offers: Mapping[str, Mapping[str, float]]
) -> dict[str, Mapping[str, float]]:
    """The demands, by step, that no single worker can meet, even when it is idle.

    Args:
        demands: Resources that each step needs.
        offers: Resources that each worker has in all.
    """
    return {
        step: needed
        for step, needed in demands.items()
        if not any(all(offer.get(name, 0) >= amount for name, amount in needed.items()) for offer in offers.values())
    }


def in_words(resources: Mapping[str, float]) -> str:
    """`CPU=2 MEMORY=8e9`, as `dask worker --resources` takes it."""
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items())) or "none"


def listed(resources: Mapping[str, Mapping[str, float]]) -> str:
    """What each step needs, or each worker has; the first few."""
    shown = [f"{name}: {in_words(each)}" for name, each in list(resources.items())[:SHOWN]]
    return "; ".join(shown) + (f" (and {len(resources) - SHOWN} more)" if len(resources) > SHOWN else "")
