"""A model's configuration as a run sees it: base, model, stack, `--set`."""

from collections.abc import Sequence

from models.config import Resolved, load_model, parse_set
from stacks.stack_file import config_layer


def resolve_model(model: str, assignments: Sequence[str] = (), stack: str | None = None) -> Resolved:
    """The configuration of `model` on a stack, with `--set` on top.

    Raises:
        ConfigError: The model is unknown, or a key or value is wrong.
    """
    layers = [config_layer(stack) if stack else None, parse_set(assignments) if assignments else None]
    return load_model(model, [layer for layer in layers if layer])
