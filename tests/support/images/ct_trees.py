"""What tests ask of folders of CT: their items, verdicts and pixels; and studies packed as archives."""

import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from extractors.ct.index import index_ct, read_volume
from extractors.items import FoundItem, UnitRequest


def verdicts(root: Path, **options: Any) -> Counter[str]:
    return Counter(item.verdict for item in index_ct(root, **options))


def usable(root: Path, **options: Any) -> FoundItem:
    (item,) = [item for item in index_ct(root, **options) if item.verdict == "ok"]
    return item


def pixels_of(item: FoundItem, root: Path) -> np.ndarray:
    return np.stack(list(read_volume(item.paths, root, item.geometry)))


def request(item: FoundItem, root: Path, start: int = 0, stop: int | None = None) -> UnitRequest:
    return UnitRequest(root, item.paths, item.geometry, start, stop)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"study/{path.name}")
    shutil.rmtree(folder)
    return target


def tarred(folder: Path, target: Path) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[target.suffix]
    with tarfile.open(target, mode) as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.add(path, f"study/{path.name}")
    shutil.rmtree(folder)
    return target
