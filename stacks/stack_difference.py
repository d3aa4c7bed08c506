"""What would have to change in ZenML for a stack file to be true, part by part."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.models import FlavorUpdate, StackRequest, StackUpdate

from models.errors import ConfigError, guess
from stacks.orchestrator.flavor import FLAVOR_NAME, PrefectOrchestratorFlavor
from stacks.stack_file import REFERENCE, TYPES, Change, Component, load_stack, resolve_stack, stack_names, texts

if TYPE_CHECKING:
    from zenml.models import FlavorResponse, SecretResponse, StackResponse

SECRET_REFERENCE = re.compile(r"^\{\{\s*([^{}.]+)\.([^{}]+?)\s*\}\}$")
FLAVOR_SOURCE = f"{PrefectOrchestratorFlavor.__module__}.{PrefectOrchestratorFlavor.__name__}"
Step = tuple[Change, Callable[[], object]]


class Difference:
    """Compares a stack file with ZenML's state, part by part; call `use_home` before."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file = resolve_stack(name)
        self._raw = load_stack(name)
        self._client = Client()
        self._type = StackComponentType

    def steps(self) -> Iterator[Step]:
        """Changes with what makes each so; a later one may rely on an earlier one being made."""
        yield from self._flavor()
        yield from self._secrets()
        for kind, part in self._file.components().items():
            yield from self._component(kind, part)
        self._check_secret_references()
        yield from self._stack()

    def _flavor(self) -> Iterator[Step]:
        if self._file.orchestrator.flavor != FLAVOR_NAME:
            return
        wanted = PrefectOrchestratorFlavor().to_model(integration="custom", is_custom=True)
        # ZenML names it after the folder that the caller happens to be in.
        wanted.source = FLAVOR_SOURCE
        known = self._find_flavor("orchestrator", FLAVOR_NAME)
        if known is None:
            yield Change("create", "flavor", FLAVOR_NAME), lambda: self._client.zen_store.create_flavor(wanted)
        elif (known.source, known.config_schema) != (wanted.source, wanted.config_schema):
            update = FlavorUpdate(source=wanted.source, config_schema=wanted.config_schema)
            yield (
                Change("update", "flavor", FLAVOR_NAME),
                lambda: self._client.zen_store.update_flavor(known.id, update),
            )

    def _secrets(self) -> Iterator[Step]:
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

    def _component(self, kind: str, part: Component) -> Iterator[Step]:
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
            keys = ", ".join(f"config.{key}" for key in changed)
            yield (
                Change("update", kind, name, keys, self._others(kind, component.id)),
                lambda: self._client.update_stack_component(component.id, self._type(kind), configuration=config),
            )

    def _others(self, kind: str, component_id: UUID) -> tuple[str, ...]:
        """Stacks that have a component and whose file does not ask for the same configuration of it."""
        found = self._client.list_stacks(component_id=component_id, size=100).items
        own = getattr(self._raw, kind)
        return tuple(
            sorted(
                stack.name
                for stack in found
                if stack.name != self._name
                and (stack.name not in stack_names() or getattr(load_stack(stack.name), kind) != own)
            )
        )

    def _check_secret_references(self) -> None:
        """Look for every secret, and key of it, that a component's `{{secret.key}}` names."""
        for kind, part in self._file.components().items():
            for path, text in texts(part.config):
                if (match := SECRET_REFERENCE.match(text)) is None:
                    continue
                name, key = match[1].strip(), match[2].strip()
                known = self._secret_keys(name)
                if known is None or key not in known:
                    what = "which does not exist" if known is None else f"which has no key '{key}'{guess(key, known)}"
                    command = "create" if known is None else "update"
                    raise ConfigError(
                        f"stacks/{self._name}.yaml: {kind}.{path} uses ZenML secret '{name}', {what}: "
                        f"zenml secret {command} {name} --{key}=VALUE"
                    )

    def _secret_keys(self, name: str) -> list[str] | None:
        """Keys that a secret has, or is going to have; None when there is no such secret."""
        secret = self._find_secret(name)
        given = self._file.secrets.get(name)
        if secret is None and given is None:
            return None
        return sorted({*(secret.secret_values if secret else ()), *(given or ())})

    def _check_config(self, kind: str, part: Component) -> None:
        flavor = self._find_flavor(kind, part.flavor)
        where = f"stacks/{self._name}.yaml: {kind}"
        if flavor is None:
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

    def _stack(self) -> Iterator[Step]:
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
