"""Our packages have plain names, and anyone may publish packages of those names: this finds who else owns one."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from warehouse.errors import TimeloomError

PACKAGES = ("warehouse", "extractors", "embedders", "pipelines", "validation", "flows", "trainers")


def owners(package: str, search: list[str] | None = None) -> set[Path]:
    """Every folder or file on the import path that answers to a package's name, ours among them.

    A folder without `__init__` answers only where nothing else does, which is so beside an editable install of ours.
    """
    entries = [entry or "." for entry in (search if search is not None else sys.path)]
    found = set()
    for entry in entries:
        spec = PathFinder.find_spec(package, [entry])
        if spec is not None and spec.origin is not None:
            found.add(Path(spec.origin).resolve().parent)
    whole = PathFinder.find_spec(package, entries)
    if whole is not None and whole.origin is None:
        folders = [Path(folder).resolve() for folder in whole.submodule_search_locations or ()]
        found.update(folder for folder in folders if folder.is_dir())
    return found


def check_ownership(search: list[str] | None = None) -> None:
    """Refuses to start where another distribution could be imported in our place.

    Raises:
        TimeloomError: names the package.
    """
    home = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        strangers = owners(package, search) - {home / package}
        if strangers:
            raise TimeloomError(
                f"another installed package is called {package}", remedy="install timeloom in an environment of its own"
            )
