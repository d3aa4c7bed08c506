"""`${VARIABLE}` in a source: the value from the environment, or from the active stack that carries it."""

import os

from models.config import REFERENCE
from models.errors import ConfigError


def expand(text: str, where: str) -> str:
    """`text` with every `${VARIABLE}` replaced by its value; the values are secrets and not for printing.

    Args:
        text: A value of the YAML.
        where: What names the variables, for the message.

    Raises:
        ConfigError: Variables are not set; names them all.
    """
    names = set(REFERENCE.findall(text))
    known = {name: os.environ[name] for name in names if os.environ.get(name)}
    if names - known.keys():
        from stacks.stack_file import active_environment

        known = {**active_environment(), **known}
    if missing := sorted(name for name in names if not known.get(name)):
        raise ConfigError(
            f"{where} needs {'variables that are' if len(missing) > 1 else 'a variable that is'} not set: "
            f"{', '.join(missing)}; export {'them' if len(missing) > 1 else 'it'}, or set it in the active stack's file"
        )
    return REFERENCE.sub(lambda match: known[match[1]], text)
