"""What modelers import, and nothing else is theirs to import: `from warehouse import Release`.

`attention` and `scaling` are modules: attention over packed batches, and the accounts of a scaling study.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warehouse.arrays import NO_TIME
    from warehouse.errors import TimeloomError
    from warehouse.readers import attention, scaling
    from warehouse.readers.batch import Batch
    from warehouse.readers.dataset import ShardDataset
    from warehouse.readers.mixture import Curriculum, Mixture
    from warehouse.readers.release import Release
    from warehouse.readers.tasks.features import Features
    from warehouse.readers.tasks.probes import ProbeBatch, ProbeDataset
    from warehouse.readers.tasks.prompts import Prompt

__all__ = [
    "NO_TIME",
    "Batch",
    "Curriculum",
    "Features",
    "Mixture",
    "ProbeBatch",
    "ProbeDataset",
    "Prompt",
    "Release",
    "ShardDataset",
    "TimeloomError",
    "attention",
    "scaling",
]
_FOUND_IN = {
    "NO_TIME": "warehouse.arrays",
    "TimeloomError": "warehouse.errors",
    "Batch": "warehouse.readers.batch",
    "ShardDataset": "warehouse.readers.dataset",
    "Curriculum": "warehouse.readers.mixture",
    "Features": "warehouse.readers.tasks.features",
    "Mixture": "warehouse.readers.mixture",
    "ProbeBatch": "warehouse.readers.tasks.probes",
    "ProbeDataset": "warehouse.readers.tasks.probes",
    "Prompt": "warehouse.readers.tasks.prompts",
    "Release": "warehouse.readers.release",
}


def __getattr__(name: str) -> Any:
    # On demand, because batches import torch and most of this package's users do not need it.
    if name in _FOUND_IN:
        return getattr(import_module(_FOUND_IN[name]), name)
    if name in __all__:
        return import_module(f"warehouse.readers.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
