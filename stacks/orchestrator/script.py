"""The user's script in a step's process: what it defines, without what it does.

Steps that are defined in the script itself are looked for in `__main__`. A script with an `if __name__ == "__main__":`
guard is executed without what the guard keeps. Of one without a guard, which would run its pipelines again, only those
top-level statements are executed that bind a name that is asked for, and those that bind the names that these refer to;
bare expressions never. A pipeline that is called on the way does not run.
"""

import ast
import dis
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
STORES = {"STORE_NAME", "STORE_GLOBAL"}


class Script(ModuleType):
    """A stand-in for `__main__` that executes the script's definitions when they are asked for."""

    def __init__(self, path: Path | None, package: str | None) -> None:
        super().__init__("__main__")
        self.__package__ = package
        if path is None:
            return
        self.__file__ = str(path)
        self._open: dict[int, CodeType] = {}
        self._binders: dict[str, list[int]] = {}
        self._everything = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_open", "_binders", "_everything"):
            raise AttributeError(f"module '__main__' has no attribute '{name}'")
        self._read()
        if self._everything:
            self._execute(*self._open)
        else:
            self._provide(name)
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(
            f"'{name}' is not defined at the top level of {getattr(self, '__file__', 'the script')}, or only by a bare "
            'expression; put what the script does under `if __name__ == "__main__":`'
        )

    def _read(self) -> None:
        """Take the script apart into statements, once."""
        path = self.__dict__.get("__file__")
        if path is None or self._open or self._binders:
            return
        body = ast.parse(Path(path).read_bytes(), filename=path).body
        self._everything = any(_is_guard(node) for node in body)
        futures = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        kept = [part for node in body for part in (node.orelse if _is_guard(node) else [node])]  # type: ignore[attr-defined]
        for number, node in enumerate(kept):
            code = compile(ast.Module([*futures, node], []), path, "exec", dont_inherit=True)
            self._open[number] = code
            for name in () if isinstance(node, ast.Expr) else _bound(node, code):
                self._binders.setdefault(name, []).append(number)

    def _provide(self, name: str) -> None:
        self._execute(*(number for wanted in ("*", name) for number in self._binders.get(wanted, ())))

    def _execute(self, *numbers: int) -> None:
        from zenml.execution.pipeline.utils import prevent_pipeline_execution

        for number in sorted(numbers):
            code = self._open.pop(number, None)
            if code is None:
                continue
            self._provide_all(_loaded(code, later=False))
            with prevent_pipeline_execution():
                exec(code, self.__dict__)
            self._provide_all(_loaded(code, later=True))

    def _provide_all(self, names: Iterator[str]) -> None:
        for name in () if self._everything else names:
            self._provide(name)


def _is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Compare)
        and isinstance(part.ops[0], ast.Eq)
        and {getattr(side, "id", getattr(side, "value", None)) for side in (part.left, *part.comparators)}
        == {"__name__", "__main__"}
        for part in ast.walk(node.test)
    )


def _bound(node: ast.stmt, code: CodeType) -> Iterator[str]:
    """Names that a top-level statement gives a value, or changes the value of."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in STORES:
            yield str(instruction.argval)
        elif instruction.opname == "IMPORT_STAR" or instruction.argrepr == "INTRINSIC_IMPORT_STAR":
            yield "*"
    for target in getattr(node, "targets", [getattr(node, "target", None)]):
        while isinstance(target, ast.Subscript | ast.Attribute):
            target = target.value
        if isinstance(target, ast.Name):
            yield target.id


def _loaded(code: CodeType, later: bool) -> Iterator[str]:
    """Module-level names that a piece of code refers to when it is executed, or also when its functions are called."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in LOADS:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and (later or not _is_called(constant)):
            yield from _loaded(constant, later)


def _is_called(code: CodeType) -> bool:
    """Whether code is a function's, not a class's body or a comprehension's, which are executed on the spot."""
    return bool(code.co_flags & CO_OPTIMIZED) and (code.co_name == "<lambda>" or not code.co_name.startswith("<"))
