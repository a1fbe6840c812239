"""The demo's configuration: the simulated hospital beside its warehouse."""

from pathlib import Path

from warehouse.files import atomic_write

TEMPLATE = Path(__file__).parent / "demo.yaml"


def write_config(root: Path) -> Path:
    """Writes `demo.yaml` into the demo's folder, unless it is there to be changed; gives its path."""
    path = root / TEMPLATE.name
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    return path
