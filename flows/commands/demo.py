"""The demo's configuration: the simulated hospital beside its warehouse."""

import re
from collections.abc import Collection
from pathlib import Path

from extractors.simulate.hospital import READ_AS
from warehouse.files import atomic_write
from warehouse.modalities import INDEXED

TEMPLATE = Path(__file__).parent / "demo.yaml"


def write_config(root: Path, modalities: Collection[str] = INDEXED) -> Path:
    """Writes `demo.yaml` into the demo's folder, unless it is there to be changed; gives its path.

    Args:
        modalities: kinds of items of the simulated hospital whose modalities' blocks it has.
    """
    path = root / TEMPLATE.name
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(config_text(modalities), encoding="utf-8")
    return path


def config_text(modalities: Collection[str]) -> str:
    """The demo's configuration with the blocks of some modalities."""
    text = TEMPLATE.read_text(encoding="utf-8")
    read = {READ_AS[kind] for kind in modalities}
    for name in INDEXED:
        if name not in read:
            text = re.sub(rf"(?m)^  {name}:.*\n(?:    .*\n)*", "", text)
    return text
