"""A modality that a test adds: its package, its input, and one line in each of the four lists."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROOMS = ("warehouse", "extractors", "embedders", "pipelines", "validation", "flows")
FILES = {
    "settings.py": "extractors/waves/settings.py",
    "index.py": "extractors/waves/index.py",
    "inputs.py": "embedders/inputs/waves.py",
}
# By list: the line that the new one stands beside, the new line, and the import that it needs.
LINES = {
    "warehouse/modalities.py": (
        '        Modality("note", 4,',
        '        Modality("waves", 5, title="wave", unit="window", event="RECORDING/WAVES"),',
        "",
    ),
    "extractors/modalities.py": (
        '    "wsi": WSI,',
        '    "waves": WAVES,',
        "from extractors.waves.settings import WAVES",
    ),
    "embedders/inputs/registry.py": (
        '    "wsi": TileSpec(),',
        '    "waves": WaveSpec(),',
        "from embedders.inputs.waves import WaveSpec",
    ),
    "embedders/encoders/registry.py": (
        '    "random-dinov2": Network(',
        '    "random-waves": Network({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,'
        ' "patch_size": 16, "image_size": 224}, "embedders.encoders.build:build_random", pretrained=False),',
        "",
    ),
}


def with_waves(tree: Path) -> None:
    """Copies the rooms to `tree` and adds the modality there: three files, four lines and their imports."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "extractors" / "waves").mkdir()
    (tree / "extractors" / "waves" / "__init__.py").touch()
    for name, target in FILES.items():
        shutil.copy(Path(__file__).with_name(name), tree / target)
    for name, (neighbour, line, needed) in LINES.items():
        path = tree / name
        lines = path.read_text(encoding="utf-8").splitlines()
        (place,) = [number for number, text in enumerate(lines) if text.startswith(neighbour)]
        lines.insert(place + (0 if neighbour.endswith("(") else 1), line)
        if needed:
            first = next(number for number, text in enumerate(lines) if text.startswith("from "))
            lines.insert(first, needed)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_wave(path: Path, subject: str, time: str, samples: int, seed: int) -> None:
    """One recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [str((place * (seed + 3)) % 29 / 10) for place in range(samples)]
    path.write_text("\n".join([subject, time, *values]) + "\n", encoding="utf-8")
