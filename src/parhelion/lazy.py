"""Imports that wait until they are needed, so that nobody waits for torch and timm in vain."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazily(
    package: str, names: Mapping[str, str], *, modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for `package`, whose names are imported when they are first used (PEP 562).

    names: what the package offers, and the module that each comes from.
    modules: Modules inside it that are there without an import of their own.
    """

    def get(name: str) -> Any:
        if name in names:
            found = getattr(import_module(names[name]), name)
        elif name in modules:
            found = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Python asks only for what the package does not hold yet.
        setattr(sys.modules[package], name, found)
        return found

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *modules})

    return get, listed


def once_imported(module: str, act: Callable[[], None]) -> None:
    """Do `act` when `module` has been imported: at once if it is there, else at the end of its import."""
    if module in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Waiting(module, act))


class _Waiting:
    """Finds a module as the other finders do, and does something at the end of its import."""

    def __init__(self, module: str, act: Callable[[], None]) -> None:
        self._module, self._act = module, act

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                # An import that failed may be tried again, so only now.
                sys.meta_path.remove(self)
                self._act()

            vars(spec.loader)["exec_module"] = execute_and_act
        return spec
