"""Names of a package that are imported when somebody first uses them (PEP 562).

So a package can offer what needs torch beside what does not, and nobody waits for what they do not use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def imported_on_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package. modules: for each name, the module that has it."""

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"{package} has no {name!r}")
        try:
            value = getattr(import_module(modules[name]), name)
        except ModuleNotFoundError as missing:
            if str(missing.name).startswith("servelab"):
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs {missing.name}: run `pip install 'servelab[models]'`.",
                name=missing.name,
            ) from missing
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return find
