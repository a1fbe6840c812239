"""The base of settings: frozen, unknown keys refused, paths relative to the file that names them."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")

# `s3://bucket/x` as a path is `s3:/bucket/x`; a drive of Windows has one letter.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_address(path: str | Path) -> bool:
    """Whether a path is an address, such as that of an object store, and no folder of this machine."""
    return _ADDRESS.match(str(path)) is not None


def located(value: Any, info: ValidationInfo) -> Any:
    """A path with `${VARIABLE:-default}` filled in. It is relative to the configuration file's folder; a variable's own
    value, at its start, to where the command runs."""
    if not isinstance(value, str | Path):
        return value

    def fill(match: re.Match[str]) -> str:
        filled = os.environ.get(match["name"])
        if filled and match.start() == 0:
            return str(Path(filled).expanduser().absolute())
        if not filled and match["default"] is None:
            raise ValueError(f"the environment variable {match['name']} is not set")
        return filled or str(match["default"])

    base = (info.context or {}).get("base", Path())
    named = _VARIABLE.sub(fill, str(value))
    if is_address(named):
        raise ValueError("a file or folder of this machine is needed, and this is an address: mount the store")
    return (base / Path(named).expanduser()).resolve()


LocatedPath = Annotated[Path, BeforeValidator(located)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
