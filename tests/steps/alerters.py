"""An alerter of a ZenML stack that writes what it is told to a file."""

from pathlib import Path
from typing import Any

from zenml.alerter.base_alerter import BaseAlerter, BaseAlerterConfig, BaseAlerterFlavor


class FileAlerterConfig(BaseAlerterConfig):
    path: str


class FileAlerter(BaseAlerter):
    def post(self, message: str, params: Any = None) -> bool:
        path = Path(self.config.path)  # type: ignore[attr-defined]
        if not path.parent.is_dir():
            return False
        with path.open("a") as file:
            file.write(message + "\n")
        return True


class FileAlerterFlavor(BaseAlerterFlavor):
    @property
    def name(self) -> str:
        return "file"

    @property
    def config_class(self) -> type[FileAlerterConfig]:
        return FileAlerterConfig

    @property
    def implementation_class(self) -> type[FileAlerter]:
        return FileAlerter
