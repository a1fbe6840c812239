"""Imports Great Expectations without what the gate never asks of it: half of the time that its import takes."""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from threading import get_ident
from types import ModuleType
from typing import Any

# Single expectations, none of ours, use them: they are loaded when an attribute of theirs is first asked for.
_LATER = ("altair", "scipy.stats")
# It works without this one, as an installation that has no SQL sources does.
_OPTIONAL = ("sqlalchemy",)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Importing Great Expectations and running it makes objects that stay: looking through them for garbage again and
    again takes an eighth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Lean(MetaPathFinder):
    """Finds modules for the thread that made it; what other threads import meanwhile is found as ever."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if get_ident() != self._thread:
            return None
        if name in _OPTIONAL:
            raise ModuleNotFoundError(name, name=name)
        if name not in _LATER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def great_expectations() -> Any:
    """The package, imported once."""
    finder = _Lean()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("great_expectations")
    finally:
        sys.meta_path.remove(finder)
