"""Raw files that are rewritten while worker processes read them.

A worker that imports this module wraps the function that the environment names. When the function has begun to read (a
generator has given its first value, any other function has returned), the next of the waiting contents is written into
the file, in place.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from inspect import isgenerator
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "REWRITING_OF_A_TEST"
MODULE = "tests.support.nights.rewriting"


def rewrite_while_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path, path: Path, contents: list[bytes], function: str
) -> None:
    """This process and workers that are started from now on write `contents` into `path`, one each time it is read.

    Args:
        folder: keeps what waits to be written.
        function: `module:name` of what reads it, or `module:class.method`.
    """
    folder.mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / f"{number:03d}").write_bytes(content)
    named = {"folder": str(folder), "path": str(path), "function": function}
    monkeypatch.setenv(VARIABLE, json.dumps(named))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    # A single task runs in this process.
    owner, name, reading = _wrapped(folder, path, function)
    monkeypatch.setattr(owner, name, reading)


def _wrapped(folder: Path, path: Path, function: str) -> tuple[Any, str, Callable[..., Any]]:
    """What holds the function, its name there, and the function that rewrites."""
    module, name = function.split(":")
    *outer, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    read: Callable[..., Any] = getattr(owner, last)

    def rewrite() -> None:
        for waiting in sorted(folder.iterdir()):
            taken = waiting.with_name(f"{waiting.name}.{os.getpid()}")
            try:
                waiting.rename(taken)
            except FileNotFoundError:  # another worker was faster
                continue
            path.write_bytes(taken.read_bytes())
            taken.unlink()
            return

    def begun(values: Iterator[Any]) -> Iterator[Any]:
        for number, value in enumerate(values):
            yield value
            if number == 0:
                rewrite()

    def reading(*arguments: Any, **named: Any) -> Any:
        found = read(*arguments, **named)
        if isgenerator(found):
            return begun(found)
        rewrite()
        return found

    return owner, last, reading


if VARIABLE in os.environ:
    given = json.loads(os.environ[VARIABLE])
    setattr(*_wrapped(Path(given["folder"]), Path(given["path"]), given["function"]))
