"""A model's configuration as a run sees it: base, model, stack, `--set`."""

from collections.abc import Sequence

from models.config import Resolved, load_model, parse_set
from models.errors import ConfigError
from stacks.stack_file import config_layer


def resolve_model(model: str, assignments: Sequence[str] = (), stack: str | None = None) -> Resolved:
    """The configuration of `model` on a stack, with `--set` on top.

    Raises:
        ConfigError: The model is unknown, a key or value is wrong, or `--set` takes the rule of four eyes away.
    """
    layers = [config_layer(stack) if stack else None, parse_set(assignments) if assignments else None]
    resolved = load_model(model, [layer for layer in layers if layer])
    loose = assignments and not resolved.config.promotion.four_eyes
    if loose and resolve_model(model, (), stack).config.promotion.four_eyes:
        raise ConfigError("--set may not take promotion.four_eyes away, which the YAML asks for; change the YAML")
    return resolved
