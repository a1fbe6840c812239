"""The demo's configuration: the simulated hospital beside its warehouse."""

import re
from collections.abc import Collection
from pathlib import Path

from warehouse.files import atomic_write
from warehouse.modalities import INDEXED

TEMPLATE = Path(__file__).parent / "demo.yaml"


def write_config(root: Path, modalities: Collection[str] = INDEXED) -> Path:
    """Writes `demo.yaml` into the demo's folder, unless it is there to be changed; gives its path.

    Args:
        modalities: those whose blocks it has.
    """
    path = root / TEMPLATE.name
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(config_text(modalities), encoding="utf-8")
    return path


def config_text(modalities: Collection[str]) -> str:
    """The demo's configuration with the blocks of some modalities."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name in INDEXED:
        if name not in modalities and not (name == "ct" and "nifti" in modalities):
            text = re.sub(rf"(?m)^  {name}:.*\n(?:    .*\n)*", "", text)
    return text
