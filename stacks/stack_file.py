"""Stack files: `stacks/<name>.yaml` says where models live; ZenML's state is planned and made after it."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from models.config import Layer, read_yaml
from models.errors import ConfigError, bounded, guess
from models.section import Section
from stacks.home import environment as home_environment
from stacks.home import home_dir, use_home
from stacks.write_ahead import write_ahead

if TYPE_CHECKING:
    from zenml.models import FlavorResponse, SecretResponse, StackResponse

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
SECRET_REFERENCE = re.compile(r"^\{\{\s*[^{}]+\.[^{}]+\}\}$")
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
        for path, text in _texts(self.model_dump(exclude={"secrets"})):
            if PASSWORD_IN_URL.search(REFERENCE.sub("", text)):
                raise ValueError(f"{path} holds a password: put the whole address into a variable, ${{NAME}}")
        return self

    def components(self) -> dict[str, Component]:
        """The components that are given, by ZenML's name of their type."""
        return {kind: part for kind in TYPES if (part := getattr(self, kind)) is not None}


@dataclass(frozen=True)
class Change:
    """One difference between a stack file and ZenML's state, without any value."""

    action: Literal["create", "update"]
    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        """One line for people, for example `update artifact_store 'cloud': config.path`."""
        return f"{self.action} {self.kind} '{self.name}'" + (f": {self.detail}" if self.detail else "")


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
    missing = sorted({v for _, text in _texts(raw) for v in REFERENCE.findall(text) if not known.get(v)})
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
    return [change for change, _ in _Difference(name).steps()]


def apply(name: str) -> list[Change]:
    """Make ZenML's state as the stack file says and return what was changed. Never asks, never deletes.

    Raises:
        ConfigError: As `plan`, or ZenML refuses a configuration.
    """
    use_home()
    from zenml.exceptions import ZenMLBaseException

    done = []
    with _first_use_lock():
        for change, do in _Difference(name).steps():
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


class _Difference:
    """Compares a stack file with ZenML's state, part by part."""

    def __init__(self, name: str) -> None:
        use_home()
        from zenml.client import Client
        from zenml.enums import StackComponentType

        self._name = name
        self._file = resolve_stack(name)
        self._raw = load_stack(name)
        self._client = Client()
        self._type = StackComponentType

    def steps(self) -> Iterator[tuple[Change, Callable[[], object]]]:
        """Changes with what makes each so; a later one may rely on an earlier one being made."""
        yield from self._flavor()
        yield from self._secrets()
        for kind, part in self._file.components().items():
            yield from self._component(kind, part)
        yield from self._stack()

    def _flavor(self) -> Iterator[tuple[Change, Callable[[], object]]]:
        from stacks.orchestrator.flavor import FLAVOR_NAME, PrefectOrchestratorFlavor

        if self._file.orchestrator.flavor != FLAVOR_NAME:
            return
        from zenml.models import FlavorUpdate

        wanted = PrefectOrchestratorFlavor().to_model(integration="custom", is_custom=True)
        known = self._find_flavor("orchestrator", FLAVOR_NAME)
        if known is None:
            yield Change("create", "flavor", FLAVOR_NAME), lambda: self._client.zen_store.create_flavor(wanted)
        elif (known.source, known.config_schema) != (wanted.source, wanted.config_schema):
            update = FlavorUpdate(source=wanted.source, config_schema=wanted.config_schema)
            yield (
                Change("update", "flavor", FLAVOR_NAME),
                lambda: self._client.zen_store.update_flavor(known.id, update),
            )

    def _secrets(self) -> Iterator[tuple[Change, Callable[[], object]]]:
        for name, values in self._file.secrets.items():
            secret = self._find_secret(name)
            if values is None:
                if secret is None:
                    raise ConfigError(
                        f"stacks/{self._name}.yaml uses ZenML secret '{name}', which does not exist: "
                        f"zenml secret create {name} --KEY=VALUE"
                    )
            elif secret is None:
                yield (
                    Change("create", "secret", name, ", ".join(values)),
                    partial(self._client.create_secret, name, values),
                )
            elif changed := [key for key, value in values.items() if secret.secret_values.get(key) != value]:
                yield (
                    Change("update", "secret", name, ", ".join(changed)),
                    partial(self._client.update_secret, secret.id, add_or_update_values=values),
                )

    def _component(self, kind: str, part: Component) -> Iterator[tuple[Change, Callable[[], object]]]:
        name = part.name or self._name
        self._check_config(kind, part)
        found = self._client.list_stack_components(name=name, type=kind, hydrate=True).items
        if not found:
            yield (
                Change("create", kind, name, f"flavor {part.flavor}"),
                lambda: self._client.create_stack_component(name, part.flavor, self._type(kind), part.config),
            )
            return
        component = found[0]
        if component.flavor_name != part.flavor:
            raise ConfigError(
                f"stacks/{self._name}.yaml: {kind} '{name}' is of flavor {component.flavor_name} in ZenML and "
                f"cannot become {part.flavor}: give it another name"
            )
        old = {key: value for key, value in component.configuration.items() if value is not None}
        if changed := [key for key in sorted({*old, *part.config}) if old.get(key) != part.config.get(key)]:
            # ZenML merges configurations; None takes a key out.
            config = {**dict.fromkeys(old), **part.config}
            yield (
                Change("update", kind, name, ", ".join(f"config.{key}" for key in changed)),
                lambda: self._client.update_stack_component(component.id, self._type(kind), configuration=config),
            )

    def _check_config(self, kind: str, part: Component) -> None:
        flavor = self._find_flavor(kind, part.flavor)
        where = f"stacks/{self._name}.yaml: {kind}"
        if flavor is None:
            from stacks.orchestrator.flavor import FLAVOR_NAME, PrefectOrchestratorFlavor

            if (kind, part.flavor) != ("orchestrator", FLAVOR_NAME):
                known = sorted({f.name for f in self._client.list_flavors(type=kind, size=200).items})
                raise ConfigError(f"{where}: unknown flavor '{part.flavor}'{guess(part.flavor, known)}")
            schema = PrefectOrchestratorFlavor().config_schema
        else:
            schema = flavor.config_schema
        keys = schema.get("properties", {})
        raw: dict[str, Any] = getattr(self._raw, kind).config
        for key, value in raw.items():
            if key not in keys:
                raise ConfigError(f"{where}: unknown key '{key}' of flavor {part.flavor}{guess(key, sorted(keys))}")
            literal = isinstance(value, str) and not (SECRET_REFERENCE.match(value) or REFERENCE.fullmatch(value))
            if keys[key].get("sensitive") and literal:
                raise ConfigError(f"{where}.{key} is secret: write ${{VARIABLE}} or a ZenML secret, {{{{name.key}}}}")

    def _stack(self) -> Iterator[tuple[Change, Callable[[], object]]]:
        from zenml.models import StackRequest, StackUpdate

        wanted = {kind: part.name or self._name for kind, part in self._file.components().items()}
        stack = self._find_stack()
        if stack is None:
            yield (
                Change("create", "stack", self._name, ", ".join(wanted)),
                lambda: self._client.zen_store.create_stack(
                    StackRequest(
                        name=self._name,
                        description=self._file.description,
                        components=self._ids(wanted),
                        environment=self._file.environment,
                        secrets=[*self._file.secrets],
                    )
                ),
            )
            return
        differences = self._stack_differences(stack, wanted)
        if differences:
            yield (
                Change("update", "stack", self._name, ", ".join(differences)),
                lambda: self._client.zen_store.update_stack(
                    stack.id,
                    StackUpdate(
                        description=self._file.description,
                        components=self._ids(wanted),
                        environment=self._file.environment,
                        add_secrets=[name for name in self._file.secrets if name not in self._secret_names(stack)],
                        remove_secrets=[name for name in self._secret_names(stack) if name not in self._file.secrets],
                    ),
                ),
            )

    def _stack_differences(self, stack: "StackResponse", wanted: Mapping[str, str]) -> list[str]:
        # What ZenML adds by itself to every stack is none of ours.
        known = {str(kind): parts[0].name for kind, parts in stack.components.items() if str(kind) in TYPES}
        differences = [kind for kind in TYPES if known.get(kind) != wanted.get(kind)]
        if (stack.environment or {}) != self._file.environment:
            differences.append("environment")
        if set(self._secret_names(stack)) != set(self._file.secrets):
            differences.append("secrets")
        if (stack.description or "") != self._file.description:
            differences.append("description")
        return differences

    def _ids(self, wanted: Mapping[str, str]) -> dict[Any, list[Any]]:
        return {
            self._type(kind): [self._client.list_stack_components(name=name, type=kind).items[0].id]
            for kind, name in wanted.items()
        }

    def _secret_names(self, stack: "StackResponse") -> list[str]:
        return [str(self._client.get_secret(secret_id).name) for secret_id in stack.secrets or []]

    def _find_stack(self) -> "StackResponse | None":
        return next(iter(self._client.list_stacks(name=self._name, hydrate=True).items), None)

    def _find_flavor(self, kind: str, name: str) -> "FlavorResponse | None":
        return next(iter(self._client.list_flavors(type=kind, name=name, hydrate=True).items), None)

    def _find_secret(self, name: str) -> "SecretResponse | None":
        try:
            return self._client.get_secret(name, allow_partial_name_match=False, allow_partial_id_match=False)
        except KeyError:
            return None


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in nested data, with their dotted paths."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{path}.{key}".lstrip("."))
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            yield from _texts(part, f"{path}.{index}")


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
