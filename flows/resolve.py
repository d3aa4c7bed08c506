"""A model's configuration as a run sees it: base, model, stack, `--set`."""

from collections.abc import Sequence

from models.config import Resolved, load_model, parse_set
from models.errors import ConfigError
from models.judgement import Promotion
from stacks.stack_file import config_layer

_ASKED = ("auto", "on_warning", "manual")  # the later, the more often a person


def resolve_model(model: str, assignments: Sequence[str] = (), stack: str | None = None) -> Resolved:
    """The configuration of `model` on a stack, with `--set` on top.

    Raises:
        ConfigError: The model is unknown, a key or value is wrong, or `--set` asks fewer people than the YAML does.
    """
    layers = [config_layer(stack) if stack else None, parse_set(assignments) if assignments else None]
    resolved = load_model(model, [layer for layer in layers if layer])
    if assignments:
        _require_people(resolve_model(model, (), stack).config.promotion, resolved.config.promotion)
    return resolved


def _require_people(asked: Promotion, given: Promotion) -> None:
    """Refuse `--set` that leaves to nobody, or to fewer people, what the YAML leaves to them."""
    if asked.four_eyes and not given.four_eyes:
        raise ConfigError("--set may not take promotion.four_eyes away, which the YAML asks for; change the YAML")
    if _ASKED.index(given.approval.mode) < _ASKED.index(asked.approval.mode):
        raise ConfigError(
            f"--set may not make promotion.approval {given.approval.mode}, the YAML asks for {asked.approval.mode}; "
            "change the YAML"
        )
