"""Virtual environments that hold a distribution of ours and what it requires, and nothing else.

Third-party packages are links to the ones of the running environment, so that nothing is downloaded.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOME = Path(__file__).parents[2]


def declared(project: str = ".") -> dict[str, Any]:
    """The `[project]` of a pyproject.toml: of the repository, or of a folder in it."""
    return dict(tomllib.loads((HOME / project / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements ask for, as package indexes spell them."""
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Every distribution that pip would install for the requirements, as it is in the running environment."""
    found: dict[str, Distribution] = {}
    visited: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        wanted = {(name, asked) for asked in ("", *requirement.extras)} - visited
        visited |= wanted
        for _, asked in wanted:
            found[name] = distribution(name)
            waiting += [(Requirement(text), asked) for text in found[name].requires or ()]
    return found


def build_wheel(folder: Path, project: str = ".") -> Path:
    """A wheel of the repository, or of the project in one of its folders, built from a copy: nothing is left behind."""
    copy = folder / "source"
    litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "site", "tests", "benchmarks")
    shutil.copytree(HOME, copy, ignore=litter)
    run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(copy / project))
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_pip(*arguments: str) -> None:
    """Runs this environment's pip, which reaches for no network."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class LightEnvironment:
    """An environment with one wheel and links to what it requires.

    Args:
        folder: where it goes; absent.
        wheel: what is installed.
        requirements: what is linked, with all that it requires itself.
    """

    def __init__(self, folder: Path, wheel: Path, requirements: Iterable[str]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        version = f"python{sysconfig.get_python_version()}"
        self.packages = folder / "lib" / version / "site-packages"
        run_pip("--python", str(self.python), "install", "--no-deps", "--no-index", str(wheel))
        self.installed = {path.name for path in self.packages.iterdir()}
        self.linked = closure(requirements)
        for found in self.linked.values():
            self._link(found)

    def _link(self, found: Distribution) -> None:
        for name in {file.parts[0] for file in found.files or () if not re.match(r"\.\.|__pycache__", file.parts[0])}:
            link = self.packages / name
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(name))).resolve())

    def run(self, arguments: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Runs its Python, which sees nothing of this process's path."""
        environment = {"PATH": f"{self.python.parent}:/usr/bin:/bin", "HOME": str(cwd)}
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
