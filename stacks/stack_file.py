"""Stack files: `stacks/<name>.yaml` says where models live; ZenML's state is planned and made after it."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from models.config import Layer, read_yaml
from models.errors import ConfigError, bounded, guess
from models.section import Section
from stacks.home import environment as home_environment
from stacks.home import home_dir, use_home
from stacks.write_ahead import write_ahead

ComponentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
TYPES = (
    "orchestrator",
    "artifact_store",
    "experiment_tracker",
    "model_registry",
    "alerter",
    "container_registry",
    "image_builder",
)
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


class Component(Section):
    """One stack component: a ZenML flavor and its configuration."""

    flavor: str
    name: ComponentName | None = Field(None, description="Its name in ZenML; the stack's name when left out.")
    config: dict[str, Any] = Field(default_factory=dict, description="Keys of the flavor; `${VARIABLE}` is replaced.")


class StackFile(Section):
    """All that a stack file may say."""

    description: str = ""
    orchestrator: Component
    artifact_store: Component
    experiment_tracker: Component | None = None
    model_registry: Component | None = None
    alerter: Component | None = None
    container_registry: Component | None = None
    image_builder: Component | None = None
    environment: dict[str, str] = Field(default_factory=dict, description="Set for every run, and read by commands.")
    secrets: dict[ComponentName, dict[str, str] | None] = Field(
        default_factory=dict,
        description="ZenML secrets whose values are set like the environment: their `${VARIABLE}`s, or null for one "
        "that exists already.",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="Overrides for every model's configuration.")

    @model_validator(mode="after")
    def _no_literal_secret(self) -> "StackFile":
        for name, values in self.secrets.items():
            for key, value in (values or {}).items():
                if not REFERENCE.fullmatch(value):
                    raise ValueError(f"secrets.{name}.{key} must be a reference like ${{{key}}}, not the value itself")
        for path, text in texts(self.model_dump(exclude={"secrets"})):
            if PASSWORD_IN_URL.search(REFERENCE.sub("", text)):
                raise ValueError(f"{path} holds a password: put the whole address into a variable, ${{NAME}}")
        return self

    def components(self) -> dict[str, Component]:
        """The components that are given, by ZenML's name of their type."""
        return {kind: part for kind in TYPES if (part := getattr(self, kind)) is not None}


@dataclass(frozen=True)
class Change:
    """One difference between a stack file and ZenML's state, without any value.

    Attributes:
        also_used_by: Other stacks that have the component and do not ask for the same: it is not changed under them.
    """

    action: Literal["create", "update"]
    kind: str
    name: str
    detail: str = ""
    also_used_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for people, for example `update artifact_store 'cloud': config.path`."""
        return f"{self.action} {self.kind} '{self.name}'" + (f": {self.said}" if self.said else "")

    @property
    def said(self) -> str:
        """The detail, and whom else it would concern."""
        return self.detail + (f" (also used by {', '.join(self.also_used_by)})" if self.also_used_by else "")


def stacks_dir() -> Path:
    """The folder of stack files."""
    return Path(__file__).absolute().parent


def stack_names() -> list[str]:
    """Names of all stack files, sorted."""
    return sorted(path.stem for path in stacks_dir().glob("*.yaml"))


def load_stack(name: str) -> StackFile:
    """Read and check a stack file; its references stay as they are.

    Raises:
        ConfigError: There is no such file, or a key or value in it is wrong.
    """
    path = stacks_dir() / f"{name}.yaml"
    if name not in stack_names():
        raise ConfigError(f"unknown stack '{name}'{guess(name, stack_names())}")
    try:
        return StackFile.model_validate_json(json.dumps(read_yaml(path), default=str))
    except ValidationError as error:
        raise ConfigError(_explain(f"stacks/{name}.yaml", error)) from None


def resolve_stack(name: str, variables: Mapping[str, str] | None = None) -> StackFile:
    """Read a stack file and replace every `${VARIABLE}`.

    Args:
        name: The stack's name.
        variables: Where to take values from; the environment, over the homes of this clone, when left out.

    Raises:
        ConfigError: As `load_stack`, or variables are not set; the message names them all.
    """
    known = {**home_environment(home_dir()), **os.environ} if variables is None else variables
    raw = load_stack(name).model_dump(mode="json")
    missing = sorted({v for _, text in texts(raw) for v in REFERENCE.findall(text) if not known.get(v)})
    if missing:
        raise ConfigError(f"stacks/{name}.yaml needs variables that are not set: {', '.join(missing)}")
    # Secrets are references in a file, values from here on: not validated again.
    return StackFile.model_construct(**_replace(StackFile, raw, known))


def config_layer(name: str) -> Layer | None:
    """What the stack file sets for every model, as a layer of their configuration; None for a stack without a file.

    Raises:
        ConfigError: The file is wrong.
    """
    if name not in stack_names():
        return None
    return Layer(f"stacks/{name}.yaml", load_stack(name).config)


def plan(name: str) -> list[Change]:
    """What `apply` would do, in its order; empty when ZenML's state is as the file says.

    Raises:
        ConfigError: The file is wrong, a variable is missing, or a component cannot be what the file asks for.
    """
    from stacks.stack_difference import Difference

    use_home()
    return [change for change, _ in Difference(name).steps()]


def apply(name: str) -> list[Change]:
    """Make ZenML's state as the stack file says and return what was changed. Never asks, never deletes.

    All that can be checked is checked before anything is changed; what ZenML refuses nevertheless leaves what was
    changed before it, which the next `apply` completes.

    Raises:
        ConfigError: As `plan`, a component is another stack's too, or ZenML refuses a configuration.
    """
    use_home()
    from zenml.exceptions import ZenMLBaseException

    from stacks.stack_difference import Difference

    done = []
    with _first_use_lock():
        steps = [*Difference(name).steps()]
        if taken := [str(change) for change, _ in steps if change.also_used_by]:
            raise ConfigError(
                f"stacks/{name}.yaml would change components of other stacks too: {bounded('; '.join(taken), 1000)}. "
                "Give them a name of their own (`name:`), or write the same into the other stacks' files"
            )
        for change, do in steps:
            try:
                do()
            except (ZenMLBaseException, ValueError, ImportError, KeyError) as error:
                raise ConfigError(
                    f"stacks/{name}.yaml: ZenML refuses to {change}: {bounded(str(error), 500)}"
                ) from None
            done.append(change)
    return done


def ensure_active(name: str = "local") -> str:
    """Make a stack of ours the active one at the first use of this home; later only say which is active.

    Whatever the user activates afterwards, ZenML's `default` included, stays. A ZenML server is never written to.

    Returns:
        The name of the active stack.
    """
    use_home()
    from zenml.client import Client

    mark = _mark()
    if not mark.exists():
        with _first_use_lock():
            client = Client()
            if client.zen_store.is_local_store() and client.active_stack_model.name == "default" and not mark.exists():
                apply(name)
                client.activate_stack(name)
            mark.touch()
    write_ahead()
    return str(Client().active_stack_model.name)


def active_environment() -> dict[str, str]:
    """The environment and secrets of the active ZenML stack, which ZenML sets for every run on it."""
    use_home()
    from zenml.client import Client

    # Another process may be making the store that this one found.
    with _first_use_lock():
        client = Client()
        stack = client.active_stack_model
    values: dict[str, str] = {key: str(value) for key, value in (stack.environment or {}).items()}
    for secret_id in stack.secrets or []:
        values |= client.get_secret(secret_id).secret_values
    return values


def _mark() -> Path:
    """The file that says that the first use is over, for this home or for the `.zen` folder that is used here."""
    from zenml.client import Client

    root = Client().root
    folder = Path(root) / ".zen" if root else Path(os.environ["ZENML_CONFIG_PATH"])
    return folder / "gauntlet-first-use"


@contextmanager
def _first_use_lock() -> Iterator[None]:
    """One process at a time: ZenML's own first use of a home is not safe against a second one."""
    from filelock import FileLock

    home = use_home()
    with FileLock(home / "stack.lock", is_singleton=True):
        yield


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested data, with their dotted paths."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from texts(part, f"{path}.{key}".lstrip("."))
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            yield from texts(part, f"{path}.{index}")


def _replace(model: type[StackFile], raw: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return REFERENCE.sub(lambda match: known[match.group(1)], value)
        if isinstance(value, Mapping):
            return {key: filled(part) for key, part in value.items()}
        if isinstance(value, list):
            return [filled(part) for part in value]
        return value

    values = filled(raw)
    return {
        k: Component(**v) if k in TYPES and v is not None else v for k, v in values.items() if k in model.model_fields
    }


def _explain(file: str, error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        path = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            inside = Component if len(problem["loc"]) > 1 else StackFile
            said = f"unknown key{guess(str(problem['loc'][-1]), list(inside.model_fields))}"
        lines.append(": ".join(part for part in (file, path, said) if part))
    return "\n".join(lines)
