"""The contracts on disk, and the readers that trainers import: `from warehouse import Release`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warehouse.readers.release import Release

__all__ = ["Release"]


def __getattr__(name: str) -> Any:
    # On demand, because the reader imports torch and most of this package's users do not need it.
    if name == "Release":
        from warehouse.readers.release import Release

        return Release
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
